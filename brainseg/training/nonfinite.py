"""Errors of a training step: values that are not finite, and a full memory."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from brainseg.training.context import TrainingContext
from brainseg.training.state import State, StepResult

log = logging.getLogger("brainseg")


class NonFiniteError(ArithmeticError):
    """The loss or the gradient is not finite.

    The error is raised before a checkpoint is written and, on a CPU, before a weight changes.
    """


def collect_step_results(state: State, task: TrainingContext) -> bool:
    """Add the losses of all pending steps to the epoch's totals.

    Returns True if the last step was finite. This synchronizes with the device. Raises
    NonFiniteError for the first step that was not finite, or counts the step under
    on_nonfinite=skip. Under float16 a gradient that is not finite is no error, because the loss
    scaler skips the step.
    """
    pending, state.pending_steps = state.pending_steps, []
    # A single transfer from the device for all steps.
    numbers = (
        torch.stack(
            [torch.stack([result.loss, result.gradient_norm]) for result in pending]
        ).tolist()
        if pending
        else []
    )
    is_finite = True
    for result, (loss, norm) in zip(pending, numbers, strict=True):
        is_finite = math.isfinite(loss) and (math.isfinite(norm) or state.scaler.is_enabled())
        if is_finite:
            state.loss_sum += loss * len(result.positions)
            state.slices_seen += len(result.positions)
            state.last_loss = loss
        else:
            _skip_or_raise(state, task, result, loss, norm)
    return is_finite


def _skip_or_raise(
    state: State, task: TrainingContext, result: StepResult, loss: float, norm: float
) -> None:
    """Raise NonFiniteError for a step, or log and count the step under on_nonfinite=skip."""
    slices = ", ".join(
        f"{task.train.patients[i]} slice {task.train.slices[i]}" for i in result.positions
    )
    values = f"loss {loss}, gradient norm {norm} at epoch {state.epoch} step {result.step}"
    if task.config.on_nonfinite == "error":
        # On an asynchronous device later steps have already used the values.
        consequence = (
            "no checkpoint contains it" if task.device.is_asynchronous else "no weight was changed"
        )
        raise NonFiniteError(
            f"{values}: not finite, {consequence}; "
            f"lower optimizer.lr={task.config.optimizer.lr}, set clip_norm, "
            f"or set on_nonfinite=skip to leave such steps out; slices: {slices}"
        )
    log.warning("%s: not finite, step left out; slices: %s", values, slices)
    state.skipped += 1


@contextmanager
def explaining_out_of_memory(task: TrainingContext) -> Iterator[None]:
    """Raise a MemoryError that names the settings to lower if the block runs out of memory.

    Torch's own error only names the size of an allocation in bytes.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        # On a CPU torch raises a plain RuntimeError with this text. Its subclasses have other
        # reasons, such as a failed assertion on a GPU.
        is_out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_out_of_memory and "can't allocate memory" not in str(error):
            raise
        height, width = task.train.sample_size
        shape = (task.config.batch_size, task.train.channels, height, width)
        rule = f"out of memory on {task.device.torch} with batches of shape {shape}"
        remedy = (
            f"lower batch_size={shape[0]} and raise accumulate={task.config.accumulate} instead, "
            "or lower model.width or model.depth"
        )
        if task.device.torch.type == "cuda" and task.config.device.graphs != "no":
            remedy += "; device.graphs=no needs less memory, too"
        raise MemoryError(f"{rule}; {remedy}") from error
