"""From a training state to a checkpoint of the run folder, and back: what is saved, and what a resume insists on."""

import dataclasses
import json
import logging
from typing import Any

import torch

from brainseg import __version__
from brainseg.config import TrainConfig, restore
from brainseg.data.split import Split
from brainseg.errors import DataError, check
from brainseg.records import checkpoint
from brainseg.records.run import RunFolder
from brainseg.training.engine import State, Task

PLANNED = ("cosine", "one_cycle")  # schedules that were drawn over the number of steps: more steps would be another curve
log = logging.getLogger("brainseg")


def save(folder: RunFolder, state: State, task: Task, split: Split, improved: bool = False) -> None:
    """Write last.pt (keeping the one before as previous.pt), best.pt if this epoch is the best, then metrics.jsonl."""
    content = payload(folder, state, task, split)
    folder.rotate()
    checkpoint.save(folder.last, content)
    if improved:
        checkpoint.save(folder.best, content)
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
    state.load_state_dict(content)
    if config.max_minutes is None and config.epochs != stored.epochs:
        more = config.epochs * task.steps_per_epoch
        check(more >= state.step, "epochs", config.epochs, f"the run has done {state.epoch} epochs already", "ask for more")
        rule = f"scheduler={config.scheduler.name} was drawn over {stored.epochs} epochs"
        check(config.scheduler.name not in PLANNED, "epochs", config.epochs, rule, "start anew; none, step and plateau can be extended")
        state.total_steps = more
    if content["threads"] != task.device.threads:
        log.warning("made with %d threads, going on with %d: the bits will differ; set device.threads=%d", content["threads"],
                    task.device.threads, content["threads"])
    return True


def extends(folder: RunFolder, config: TrainConfig) -> bool:
    """Whether a finished run is asked for more epochs than it was started with, or than it has had since."""
    rows = (folder.path / "metrics.jsonl").read_text().splitlines()
    done = json.loads(rows[-1])["epoch"] + 1 if rows else 0
    return config.max_minutes is None and config.epochs > done and config.resume not in (None, "auto", "never")


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
