"""Checkpoints of a training state in the run folder, and the rules for resuming and extending."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import torch

from brainseg import __version__
from brainseg.config import TrainConfig, restore_config
from brainseg.core.errors import DataError, check, shorten_error
from brainseg.core.files import write_json
from brainseg.data.signatures import signatures_of
from brainseg.data.split import Split
from brainseg.runs import checkpoint
from brainseg.runs.find import resolve_run
from brainseg.runs.identity import training_budget
from brainseg.runs.plan_file import read_plans
from brainseg.runs.run_folder import RunFolder
from brainseg.training.context import TrainingContext
from brainseg.training.nonfinite import collect_step_results
from brainseg.training.plan import Plan
from brainseg.training.progressive_resizing import ProgressiveResizing
from brainseg.training.state import State

# Schedules whose curve depends on the number of steps: with more steps it is another curve.
LENGTH_DEPENDENT_SCHEDULES = ("cosine", "one_cycle")
log = logging.getLogger("brainseg")


def save_checkpoints(
    folder: RunFolder, state: State, task: TrainingContext, split: Split, improved: bool = False
) -> None:
    """Write the checkpoints, then metrics.jsonl.

    best.pt is written if this epoch is the best (`improved`). The former last.pt is kept as
    previous.pt. Pending GPU losses are collected first. If one of them is not finite, this raises
    NonFiniteError and writes nothing.
    """
    collect_step_results(state, task)
    content = checkpoint_content(folder, state, task, split)
    # best.pt comes first. A run that is killed in between repeats this epoch and writes best.pt
    # again. In the other order best.pt would be missing.
    if improved:
        checkpoint.save(folder.best, content)
    folder.rotate()
    checkpoint.save(folder.last, content)
    if state.plans:
        write_json(folder.plan, [list(plan) for plan in state.plans])
    folder.write_history(state.history)


def checkpoint_content(
    folder: RunFolder, state: State, task: TrainingContext, split: Split
) -> dict[str, Any]:
    """Return the content of a checkpoint: the state, and all that the weights need elsewhere.

    A checkpoint can be used without its run folder.
    """
    store, facts = task.train.store, folder.facts
    # Other programs need not know which tensors fitted.
    provenance = ("name", "sha256", "leaky", "is_complete", "trained", "selected")
    initial = {name: facts["initial"][name] for name in provenance} if "initial" in facts else {}
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
        "uid": facts["uid"],
        **({"initial": initial} if initial else {}),
        "versions": {"brainseg": __version__, "torch": str(torch.__version__)},
    }


def restore_run(state: State, folder: RunFolder, task: TrainingContext) -> bool:
    """Restore a run from the newest undamaged checkpoint of its folder.

    Returns False if there is no checkpoint. The order is last.pt, previous.pt, best.pt, and a
    damaged one causes a warning. The run then gets the plans that it made after the checkpoint and
    the longer budget of the request, and metrics.jsonl is written again. Raises DataError if no
    checkpoint can be read, RequestError if the run cannot be extended as requested or would change
    its number of CPU threads.
    """
    content = _load_newest(folder)
    if content is None:
        return False
    config = task.config
    stored = restore_config(content["config"])
    try:
        state.load_state_dict(content)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        # Torch raises any of these for the state of another model, optimizer or schedule.
        raise DataError(
            f"resume={folder.path}: its checkpoint does not fit the run ({shorten_error(error)})"
        ) from error
    # The folder already has the longer budget if an earlier extension was stopped before its first
    # checkpoint. It was checked then, possibly with force=true, which no run stores.
    is_checked = training_budget(folder.config) == training_budget(config)
    _extend(state, stored, config, task.steps_per_epoch, is_checked)
    threads = content["threads"]
    if task.device.torch.type == "cpu" and threads != task.device.threads:
        rule = f"the run used {threads} threads, and another number changes the bits of its results"
        check(
            config.force,
            "device.threads",
            task.device.threads,
            rule,
            f"set device.threads={threads}, or force=true to accept other bits",
        )
        log.warning(
            "resuming with %d threads instead of %d: the bits will differ",
            task.device.threads,
            threads,
        )
    # The run may have been killed between checkpoint and history. After the last epoch nothing else
    # writes the history again.
    folder.write_history(state.history)
    return True


def check_extension(folder: RunFolder, task: TrainingContext) -> None:
    """Raise RequestError if the run cannot be extended as requested.

    Call this before anything in the run folder changes.
    """
    content = (
        _load_newest(folder)
        if folder.exists and training_budget(folder.config) != training_budget(task.config)
        else None
    )
    if content is not None:
        check_curve(folder.config, task.config)
        _extended_steps(
            content, restore_config(content["config"]), task.config, task.steps_per_epoch
        )


def check_curve(stored: TrainConfig, config: TrainConfig) -> None:
    """Raise RequestError if a run would be extended whose learning rates depend on its length.

    `force` permits the extension. A run without a time budget cannot be extended by minutes.
    """
    unit, budget = training_budget(config)
    stored_budget = "{}={}".format(*training_budget(stored))
    check(
        unit != "max_minutes" or stored.max_minutes is not None,
        unit,
        budget,
        f"the run was started with {stored_budget}, not with a time budget",
        "extend it by epochs or max_steps",
    )
    is_allowed = (
        training_budget(stored) == training_budget(config)
        or config.scheduler.name not in LENGTH_DEPENDENT_SCHEDULES
        or config.force
    )
    check(
        is_allowed,
        unit,
        budget,
        f"the learning rates of scheduler={config.scheduler.name} were planned for "
        f"{stored_budget}, and the added steps would follow another curve",
        "start a new run, or set force=true to extend this one all the same "
        "(scheduler=none, step and plateau need no force)",
    )


def _extend(
    state: State, stored: TrainConfig, config: TrainConfig, steps_per_epoch: int, is_checked: bool
) -> None:
    """Add the requested epochs, steps or minutes to a run.

    With `is_checked` the extension has been accepted before, by `check_curve`.
    """
    if training_budget(stored) == training_budget(config):
        return
    numbers = {name: getattr(state, name) for name in (*state.NUMBERS, "history")}
    if not is_checked:
        check_curve(stored, config)
    state.total_steps = _extended_steps(numbers, stored, config, steps_per_epoch)
    _extend_plan(state, training_budget(stored)[1], config.max_minutes)
    if config.scheduler.name in LENGTH_DEPENDENT_SCHEDULES:
        log.warning(
            "the learning rates of scheduler=%s were planned for %s=%s; "
            "the added steps follow another curve",
            config.scheduler.name,
            *training_budget(stored),
        )


def _extend_plan(state: State, stored_minutes: float, minutes: float | None) -> None:
    """Append the plan of a time budget that has grown from `stored_minutes` to `minutes`.

    The plan begins after the steps of the former budget. With minutes=None the run is counted in
    epochs or steps and needs no plan.
    """
    if minutes is None or not state.plans:
        state.plans = []
        return
    last = state.plans[-1]
    if last.is_settled:
        plans, step, share = state.plans[:-1], last.total, stored_minutes / minutes
    else:
        plans, step, share = state.plans, max(state.step, last.step), state.elapsed / (60 * minutes)
    state.adopt_plans([*plans, Plan(step, min(share, 1.0), state.total_steps, state.half_steps)])


def plans_to_repeat(config: TrainConfig) -> list[Plan]:
    """Return the plans of the run that `steps_of` names.

    The list is empty without `steps_of`, or if that run has no time budget. Raises RequestError if
    `steps_of` names no run, DataError if its plan cannot be read.
    """
    plans = (
        read_plans(RunFolder(resolve_run(config.steps_of, "steps_of")))
        if config.steps_of is not None
        else []
    )
    if not plans:
        return []
    last = plans[-1]
    log.info(
        "note:         the number of steps, %d, is that of %s and is not measured again",
        last.total,
        config.steps_of,
    )
    # The last plan of a run that was stopped is an estimate, which would be revised.
    return plans if last.is_settled else [*plans, last._replace(step=last.total, share=1.0)]


def _add_later_plans(content: dict[str, Any], folder: RunFolder) -> dict[str, Any]:
    """Return the content of a checkpoint with the plans that the run made after that checkpoint.

    The run then repeats the same steps that it took after the checkpoint.
    """
    plans, stored = read_plans(folder), content.get("plans")
    if not plans or not stored or [list(plan) for plan in plans[: len(stored)]] != stored:
        return content
    last = plans[-1]
    return content | {"plans": [list(plan) for plan in plans], **last.resizing._asdict()}


def _extended_steps(
    counts: Mapping[str, Any], stored: TrainConfig, config: TrainConfig, steps_per_epoch: int
) -> int:
    """Return the total number of steps of the extended run. Raises RequestError if it is too low.

    `counts` holds the numbers and the history of a state.
    """
    unit, budget = training_budget(config)
    if unit == "epochs":
        total = round(budget) * steps_per_epoch
    elif unit == "max_steps":
        total = round(budget)
    else:
        stored_minutes = training_budget(stored)[1]
        total = counts["total_steps"] + round(
            (budget - stored_minutes)
            * _steps_per_minute(counts, config, stored_minutes, steps_per_epoch)
        )
    minimum = max(counts["step"], _resizing(counts).fewest_steps)
    check(
        total >= minimum,
        unit,
        budget,
        f"the run has already done {counts['step']} steps, and this would make {total} in all",
        "ask for more",
    )
    return total


def _steps_per_minute(
    counts: Mapping[str, Any], config: TrainConfig, minutes: float, steps_per_epoch: int
) -> float:
    """Return the pace at full size, which all added steps have, validations included.

    The pace is that of the complete epochs at full size. Without such an epoch it is the pace that
    was planned.
    """
    resizing = _resizing(counts)
    if not resizing.half_steps:
        return resizing.total_steps / minutes
    steps, seconds, first_step = 0, 0.0, 0
    for row in counts["history"]:
        # An epoch that a budget cut short does not show the pace.
        if not resizing.is_half(first_step) and row["step"] - first_step == steps_per_epoch:
            steps += steps_per_epoch
            seconds += row["metrics"]["speed/epoch_seconds"]
        first_step = row["step"]
    return (
        steps / seconds * 60
        if steps
        else (resizing.total_steps - resizing.half_steps) / ((1 - config.half_resolution) * minutes)
    )


def _resizing(counts: Mapping[str, Any]) -> ProgressiveResizing:
    """Return the number of steps of each size from the numbers of a state."""
    return ProgressiveResizing(counts["total_steps"], counts["half_steps"])


def _load_newest(folder: RunFolder) -> dict[str, Any] | None:
    """Return the content of the newest undamaged checkpoint, or None if there is no checkpoint.

    Raises DataError if all checkpoints are damaged.
    """
    candidates = [path for path in (folder.last, folder.previous, folder.best) if path.is_file()]
    for path in candidates:
        try:
            return _add_later_plans(checkpoint.load(path), folder)
        except DataError as error:
            log.warning("%s; trying an older checkpoint", error)
    if candidates:
        raise DataError(f"resume={folder.path}: none of its checkpoints can be read")
    return None
