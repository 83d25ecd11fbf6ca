"""From a training state to a checkpoint of the run folder, and back: what is saved, and what a resume insists on."""

import dataclasses
import logging
from typing import Any

import torch

from brainseg import __version__
from brainseg.config import TrainConfig, restore
from brainseg.data.split import Split
from brainseg.errors import DataError, check
from brainseg.records import checkpoint
from brainseg.records.run import RunFolder
from brainseg.training.faults import look
from brainseg.training.state import State
from brainseg.training.task import Task

PLANNED = ("cosine", "one_cycle")  # schedules that were drawn over the number of steps: more steps would be another curve
log = logging.getLogger("brainseg")


def save(folder: RunFolder, state: State, task: Task, split: Split, improved: bool = False) -> None:
    """Write best.pt if this epoch is the best, last.pt (keeping the one before as previous.pt), then metrics.jsonl.

    Before that it looks at the steps that a GPU has been given. Raises NonFiniteError, and writes nothing, if one was not finite.
    """
    look(state, task)
    content = payload(folder, state, task, split)
    if improved:  # first: a kill in between repeats this epoch and writes best.pt again; the other way round it would be missing
        checkpoint.save(folder.best, content)
    folder.rotate()
    checkpoint.save(folder.last, content)
    folder.write_history(state.history)


def payload(folder: RunFolder, state: State, task: Task, split: Split) -> dict[str, Any]:
    """A checkpoint's content: the state, and all that is needed to use the weights without the folder."""
    store = task.train.store
    return {
        **state.state_dict(),
        "config": dataclasses.asdict(task.config),
        "in_channels": task.train.channels,
        "image_size": list(task.train.size),
        "channels": list(store.channels),
        "classes": list(store.classes),
        "split": split.as_dict(),
        "fingerprint": store.fingerprint,
        "threads": task.device.threads,
        "uid": folder.facts["uid"],
        "versions": {"brainseg": __version__, "torch": str(torch.__version__)},
    }


def load_into(state: State, folder: RunFolder, task: Task) -> bool:
    """Take over the newest sound checkpoint of the folder; returns whether there was one.

    A damaged last.pt is passed over for previous.pt, with a warning. Raises RequestError for an extension that is none.
    """
    content = _newest(folder)
    if content is None:
        return False
    config = task.config
    stored = restore(content["config"])
    try:
        state.load_state_dict(content)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:  # what torch raises for a state of another kind
        raise DataError(f"resume={folder.path}: its checkpoint does not fit the run ({' '.join(str(error).split())[:200]})") from error
    _extend(state, stored, config, task.steps_per_epoch)
    threads = content["threads"]
    if task.device.torch.type == "cpu" and threads != task.device.threads:
        rule = f"the run was made with {threads}, and with another number the bits differ"
        check(config.force, "device.threads", task.device.threads, rule, f"set device.threads={threads}, or force=true")
        log.warning("going on with %d threads instead of %d: the bits will differ", task.device.threads, threads)
    folder.write_history(state.history)  # the kill may have come between the two, and after the last epoch nothing else writes it
    return True


def _extend(state: State, stored: TrainConfig, config: TrainConfig, steps_per_epoch: int) -> None:
    """Give a run the further epochs or minutes that are asked for."""
    name = "epochs" if config.max_minutes is None else "max_minutes"
    before, now = getattr(stored, name), getattr(config, name)
    if before == now:
        return
    check(before is not None, name, now, f"the run was given epochs={stored.epochs}", "extend it by epochs")
    total = now * steps_per_epoch if name == "epochs" else _steps_for(state, config.half_resolution, before, now)
    check(total >= state.step, name, now, f"the run has done {state.step} steps already, that would be {total}", "ask for more")
    if config.scheduler.name in PLANNED:
        rule = f"scheduler={config.scheduler.name} was drawn over {name}={before}: the further steps belong to another curve"
        check(config.force, name, now, rule, "start anew, or force=true to go on all the same; none, step and plateau can be extended")
        log.warning("%s; going on all the same", rule)
    state.total_steps = total
    if state.step < min(total, state.epoch * steps_per_epoch):  # the last epoch was cut short by the old budget: it goes on
        state.epoch -= 1
        state.history.pop()


def _steps_for(state: State, half_resolution: float, before: float, now: float) -> int:
    """The steps of a run of `now` minutes that was given `before`: those added are all at full size."""
    share = half_resolution if state.half_steps else 0.0
    return state.total_steps + round((state.total_steps - state.half_steps) / (1 - share) * (now - before) / before)


def _newest(folder: RunFolder) -> dict[str, Any] | None:
    candidates = [path for path in (folder.last, folder.previous, folder.best) if path.is_file()]
    for path in candidates:
        try:
            return checkpoint.load(path)
        except DataError as error:
            log.warning("%s; trying the one before", error)
    if candidates:
        raise DataError(f"resume={folder.path}: none of its checkpoints can be read")
    return None
