"""From a training state to a checkpoint of the run folder, and back: what is saved, and what a resume insists on."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import Any

import torch

from brainseg import __version__
from brainseg.config import TrainConfig, restore
from brainseg.core.errors import DataError, check
from brainseg.core.files import write_json
from brainseg.data.signatures import signatures_of
from brainseg.data.split import Split
from brainseg.runs import checkpoint
from brainseg.runs.find import resolve_run
from brainseg.runs.identity import training_budget
from brainseg.runs.run_folder import RunFolder
from brainseg.training.context import TrainingContext
from brainseg.training.nonfinite import collect_step_results
from brainseg.training.plan import Plan
from brainseg.training.state import State, plans_of

PLANNED = (
    "cosine",
    "one_cycle",
)  # schedules that were drawn over the number of steps: more steps would be another curve
log = logging.getLogger("brainseg")


def save(
    folder: RunFolder, state: State, task: TrainingContext, split: Split, improved: bool = False
) -> None:
    """Write best.pt if this epoch is the best, last.pt (keeping the one before as previous.pt), then metrics.jsonl.

    Before that it looks at the steps that a GPU has been given. Raises NonFiniteError, and writes nothing, if one was not finite.
    """
    collect_step_results(state, task)
    content = payload(folder, state, task, split)
    if improved:  # first: a kill in between repeats this epoch and writes best.pt again; the other way round it would be missing
        checkpoint.save(folder.best, content)
    folder.rotate()
    checkpoint.save(folder.last, content)
    if state.plans:
        write_json(folder.plan, [list(plan) for plan in state.plans])
    folder.write_history(state.history)


def payload(folder: RunFolder, state: State, task: TrainingContext, split: Split) -> dict[str, Any]:
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
        "data_path": str(store.path.resolve()),
        "signatures": signatures_of(store),
        "threads": task.device.threads,
        "uid": folder.facts["uid"],
        "versions": {"brainseg": __version__, "torch": str(torch.__version__)},
    }


def load_into(state: State, folder: RunFolder, task: TrainingContext) -> bool:
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
    except (
        RuntimeError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:  # what torch raises for a state of another kind
        raise DataError(
            f"resume={folder.path}: its checkpoint does not fit the run ({' '.join(str(error).split())[:200]})"
        ) from error
    granted = training_budget(folder.config) == training_budget(
        config
    )  # by an extension that was stopped before its first checkpoint
    _extend(state, stored, config, task.steps_per_epoch, granted)
    threads = content["threads"]
    if task.device.torch.type == "cpu" and threads != task.device.threads:
        rule = f"the run was made with {threads}, and with another number the bits differ"
        check(
            config.force,
            "device.threads",
            task.device.threads,
            rule,
            f"set device.threads={threads}, or force=true",
        )
        log.warning(
            "going on with %d threads instead of %d: the bits will differ",
            task.device.threads,
            threads,
        )
    folder.write_history(
        state.history
    )  # the kill may have come between the two, and after the last epoch nothing else writes it
    return True


def check_extension(folder: RunFolder, task: TrainingContext) -> None:
    """Refuse further epochs or minutes that the run cannot be given, before anything in its folder changes. Raises RequestError."""
    content = (
        _newest(folder)
        if folder.exists and training_budget(folder.config) != training_budget(task.config)
        else None
    )
    if content is not None:
        check_curve(folder.config, task.config)
        _total(content, restore(content["config"]), task.config, task.steps_per_epoch)


def check_curve(stored: TrainConfig, config: TrainConfig) -> None:
    """Refuse to extend a run whose learning rate was drawn over its length, unless `force` says so. Raises RequestError."""
    name, now = training_budget(config)
    given = "{}={}".format(*training_budget(stored))
    check(
        name == "epochs" or stored.max_minutes is not None,
        name,
        now,
        f"the run was given {given}",
        "extend it by epochs",
    )
    fine = (
        training_budget(stored) == training_budget(config)
        or config.scheduler.name not in PLANNED
        or config.force
    )
    check(
        fine,
        name,
        now,
        f"scheduler={config.scheduler.name} was drawn over {given}: the further steps belong to another curve",
        "start anew, or force=true to go on all the same; none, step and plateau can be extended",
    )


def _extend(
    state: State, stored: TrainConfig, config: TrainConfig, steps_per_epoch: int, granted: bool
) -> None:
    """Give a run the further epochs or minutes that are asked for."""
    if training_budget(stored) == training_budget(config):
        return
    numbers = {name: getattr(state, name) for name in (*state.NUMBERS, "history")}
    if not granted:
        check_curve(stored, config)
    state.total_steps = _total(numbers, stored, config, steps_per_epoch)
    _extend_plan(state, training_budget(stored)[1], config.max_minutes)
    if config.scheduler.name in PLANNED:
        log.warning(
            "scheduler=%s was drawn over %s=%s; going on all the same, on another curve",
            config.scheduler.name,
            *training_budget(stored),
        )


def _extend_plan(state: State, before: float, minutes: float | None) -> None:
    """Add the plan of a budget that has grown to `minutes`, behind the steps that the old one gave; None: epochs need no plan."""
    if minutes is None or not state.plans:
        state.plans = []
        return
    last = state.plans[-1]
    if last.is_settled:
        plans, at, share = state.plans[:-1], last.total, before / minutes
    else:
        plans, at, share = state.plans, max(state.step, last.step), state.elapsed / (60 * minutes)
    state.follow([*plans, Plan(at, min(share, 1.0), state.total_steps, state.half_steps)])


def plans_to_repeat(config: TrainConfig) -> list[Plan]:
    """Return the plans of the run that `steps_of` names; none without it, or if that run is not counted in minutes.

    Raises RequestError if `steps_of` names no run, DataError if its plan cannot be read.
    """
    plans = (
        _plans_in(RunFolder(resolve_run(config.steps_of, "steps_of")))
        if config.steps_of is not None
        else []
    )
    if plans:
        log.info(
            "note:         the %d steps are those of %s, not measured anew",
            plans[-1].total,
            config.steps_of,
        )
    return plans


def _plans_in(folder: RunFolder) -> list[Plan]:
    try:
        return (
            plans_of({"plans": json.loads(folder.plan.read_text())})
            if folder.plan.is_file()
            else []
        )
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{folder.plan}: not what a run writes ({error}); remove it to have the steps measured anew"
        ) from error


def _with_later_plans(content: dict[str, Any], folder: RunFolder) -> dict[str, Any]:
    """Return the checkpoint's content with the plans that the run made after it: its steps are taken again as they were."""
    plans, stored = _plans_in(folder), content.get("plans")
    if not plans or not stored or [list(plan) for plan in plans[: len(stored)]] != stored:
        return content
    last = plans[-1]
    return content | {
        "plans": [list(plan) for plan in plans],
        "total_steps": last.total,
        "half_steps": last.half_steps,
    }


def _total(
    counts: Mapping[str, Any], stored: TrainConfig, config: TrainConfig, steps_per_epoch: int
) -> int:
    """The steps of the extended run. `counts` are the numbers and the history of a state. Raises RequestError."""
    name, now = training_budget(config)
    if name == "epochs":
        total = round(now) * steps_per_epoch
    else:
        before = training_budget(stored)[1]
        total = counts["total_steps"] + round(
            (now - before) * _steps_a_minute(counts, config, before, steps_per_epoch)
        )
    done = max(counts["step"], counts["half_steps"] + 1)  # the last step, at least, is at full size
    check(
        total >= done,
        name,
        now,
        f"the run has done {counts['step']} steps already, that would be {total}",
        "ask for more",
    )
    return total


def _steps_a_minute(
    counts: Mapping[str, Any], config: TrainConfig, minutes: float, steps_per_epoch: int
) -> float:
    """At full size, as all further steps are: by the whole epochs at that size, validations included; without one, as was planned."""
    if not counts["half_steps"]:
        return counts["total_steps"] / minutes
    steps, seconds, began = 0, 0.0, 0
    for row in counts["history"]:
        if began >= counts["half_steps"] and row["step"] - began == steps_per_epoch:
            steps, seconds = (
                steps + steps_per_epoch,
                seconds + row["metrics"]["speed/epoch_seconds"],
            )
        began = row["step"]
    return (
        steps / seconds * 60
        if steps
        else (counts["total_steps"] - counts["half_steps"])
        / ((1 - config.half_resolution) * minutes)
    )


def _newest(folder: RunFolder) -> dict[str, Any] | None:
    """Return the content of the newest sound checkpoint, None if there is none. Raises DataError if none of them is sound."""
    candidates = [path for path in (folder.last, folder.previous, folder.best) if path.is_file()]
    for path in candidates:
        try:
            return _with_later_plans(checkpoint.load(path), folder)
        except DataError as error:
            log.warning("%s; trying the one before", error)
    if candidates:
        raise DataError(f"resume={folder.path}: none of its checkpoints can be read")
    return None
