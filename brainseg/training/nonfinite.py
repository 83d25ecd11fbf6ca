"""What a step may die of, named so that one knows what to lower: a number that is not finite, a full memory."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from brainseg.training.context import TrainingContext
from brainseg.training.state import State, StepResult

log = logging.getLogger("brainseg")


class NonFiniteError(ArithmeticError):
    """The loss or the gradient is not a number; raised before a checkpoint has seen it, on a CPU before any weight has."""


def collect_step_results(state: State, task: TrainingContext) -> bool:
    """Take what the steps gave since the last look into the epoch's sums; returns whether the last of them was finite.

    To look is to wait until the device has done all that it was given. Raises NonFiniteError for the first step that was not
    finite, or counts it under on_nonfinite=skip. Under float16 the scaler itself leaves out steps whose gradient overflowed.
    """
    pending, state.pending_steps = state.pending_steps, []
    numbers = (
        torch.stack([torch.stack([given.loss, given.norm]) for given in pending]).tolist()
        if pending
        else []
    )  # one transfer
    finite = True
    for given, (loss, norm) in zip(pending, numbers, strict=True):
        finite = math.isfinite(loss) and (math.isfinite(norm) or state.scaler.is_enabled())
        if finite:
            state.loss_sum += loss * len(given.chosen)
            state.slices_seen += len(given.chosen)
            state.last_loss = loss
        else:
            _skip_or_raise(state, task, given, loss, norm)
    return finite


def _skip_or_raise(
    state: State, task: TrainingContext, given: StepResult, loss: float, norm: float
) -> None:
    where = ", ".join(
        f"{task.train.patients[i]} slice {task.train.slices[i]}" for i in given.chosen
    )
    what = f"loss {loss}, gradient norm {norm} at epoch {state.epoch} step {given.step}"
    if task.config.on_nonfinite == "error":
        kept = (
            "no checkpoint has seen it" if task.device.is_asynchronous else "no weight was changed"
        )
        raise NonFiniteError(
            f"{what}: not finite, {kept}; lower optimizer.lr={task.config.optimizer.lr}, set clip_norm, "
            f"or leave such steps out with on_nonfinite=skip; slices: {where}"
        )
    log.warning("%s: not finite, step left out; slices: %s", what, where)
    state.skipped += 1


@contextmanager
def naming_memory(task: TrainingContext) -> Iterator[None]:
    """Name what to lower when the device's memory is full; torch's own error names an allocation in bytes."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and "can't allocate memory" not in str(
            error
        ):  # how torch says it for the CPU
            raise
        height, width = task.train.size
        shape = (task.config.batch_size, task.train.channels, height, width)
        rule = f"out of memory on {task.device.torch} with batches of shape {shape}"
        remedy = f"lower batch_size={shape[0]} and raise accumulate={task.config.accumulate} instead, or lower model.width or model.depth"
        raise MemoryError(f"{rule}; {remedy}") from error
