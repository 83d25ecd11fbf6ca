"""The lines that a run logs before its first step, and the number of steps of a time budget."""

import logging
from pathlib import Path

from brainseg.config import StepConfig
from brainseg.data.split import Split
from brainseg.reports import tables
from brainseg.runs.identity import training_budget
from brainseg.training.context import TrainingContext
from brainseg.training.state import State

# A run with fewer optimizer steps gets a warning.
FEW_STEPS = 100
log = logging.getLogger("brainseg")


def announce(state: State, task: TrainingContext, folder: Path, split: Split) -> None:
    """Log what is about to be trained, with warnings about settings without effect."""
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    log.info("run folder:   %s", folder)
    log.info("device:       requested %s, using %s", task.device.requested, task.device.description)
    log.info(
        "data:         %d training slices of %s, %s, split %s %s",
        len(task.train),
        tables.format_count(len(split.train), "patient"),
        tables.format_count(len(split.validation), "validation patient"),
        split.name,
        split.sha256[:10],
    )
    if split.leaky:
        shared = len(set(split.train) & set(split.validation))
        log.warning(
            "LEAKY SPLIT:  %d of %d validation patients are trained on; "
            "no score of this run is measured on held-out patients",
            shared,
            len(split.validation),
        )
    log.info(
        "model:        %s, %s parameters; %d steps of %d slices, %d steps per epoch",
        task.config.model.name,
        f"{parameters:,}",
        state.total_steps,
        task.config.batch_size * task.config.accumulate,
        task.steps_per_epoch,
    )
    _warn_of_few_steps(state, task)
    _warn_of_settings(state, task)
    if state.half_steps:
        log.info(
            "half size:    the first %d steps, into epoch %d, use images of half the size%s",
            state.half_steps,
            (state.half_steps - 1) // task.steps_per_epoch,
            "; val/dice is always measured at full size and means little until then"
            if len(task.validation)
            else "",
        )
    if state.step:
        log.info("resumed:      at epoch %d, step %d", state.epoch, state.step)


def announce_steps(state: State, task: TrainingContext) -> None:
    """Log the final number of steps of a time budget if the first plan had another number."""
    plans = state.plans
    # The number of steps of `steps_of` was logged at the start.
    if not plans or task.config.steps_of is not None:
        return
    if plans[-1].is_settled and plans[-1].total != plans[0].total:
        log.info(
            "steps:        %d in %g minutes; the first estimate was %d",
            plans[-1].total,
            task.config.max_minutes,
            plans[0].total,
        )
        # With a low first estimate the warning has been logged at the start.
        if plans[0].total >= FEW_STEPS:
            _warn_of_few_steps(state, task)


def _warn_of_settings(state: State, task: TrainingContext) -> None:
    """Log a warning for each setting that has no effect, or too little."""
    if state.total_steps < task.steps_per_epoch:
        log.warning(
            "note:         the run covers %.1f of an epoch: some slices are never used%s",
            state.total_steps / task.steps_per_epoch,
            ", and there is only one validation" if len(task.validation) else "",
        )
    schedule = task.config.scheduler
    if isinstance(schedule, StepConfig) and all(
        epoch * task.steps_per_epoch >= state.total_steps for epoch in schedule.epochs
    ):
        log.warning(
            "note:         scheduler=step lowers the learning rate at epochs %s, "
            "but the run ends before the first of them",
            schedule.epochs,
        )
    inference = task.config.inference
    if inference.min_volume and inference.components != "min_volume":
        log.warning(
            "note:         inference.min_volume=%d has no effect with inference.components=%s",
            inference.min_volume,
            inference.components,
        )


def _warn_of_few_steps(state: State, task: TrainingContext) -> None:
    if state.total_steps < FEW_STEPS:
        log.warning(
            "note:         the run has %d optimizer steps, and fewer than %d rarely suffice "
            "to train a network; raise %s",
            state.total_steps,
            FEW_STEPS,
            training_budget(task.config)[0],
        )
