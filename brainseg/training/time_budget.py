"""How long a step and a validation take, from a few timed ones: what turns minutes into a number of steps."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from torch import Tensor

from brainseg.evaluation.evaluate import evaluate
from brainseg.training.context import Callbacks, TrainingContext
from brainseg.training.loop import train_epoch
from brainseg.training.nonfinite import naming_memory
from brainseg.training.plan import Plan
from brainseg.training.replan import steps_within
from brainseg.training.state import State


class StepTimings(NamedTuple):
    """What a step, a step at half resolution and a validation take, in seconds."""

    step: float
    half_step: float
    validation: float


def begin_plan(state: State, scratch: State, task: TrainingContext, hooks: Callbacks) -> None:
    """Give `state`, before its first step, the first plan of `max_minutes`, from a few timed steps on `scratch` (thrown away).

    The plan is made anew while the run goes on (`replanning.replan`): something else may have run while these steps were timed.
    """
    assert task.config.max_minutes is not None
    with naming_memory(task):
        pace = measure_pace(scratch, task, hooks)
    state.validation_seconds = pace.validation
    state.full_to_half = pace.step / pace.half_step if pace.half_step else 1.0
    state.follow([Plan(0, 0.0, *steps_at(pace, task, task.config.max_minutes))])


def steps_at(pace: StepTimings, task: TrainingContext, minutes: float) -> tuple[int, int]:
    """Return how many steps fit into `minutes`, validations included, and how many of them are at half resolution.

    At least one step is at full size.
    """
    budget = minutes * 60 - pace.validation  # the last epoch is validated too, however short
    validation = pace.validation / (task.steps_per_epoch * task.config.validate_every)
    share = task.config.half_resolution
    half_steps = steps_within(share * budget, pace.half_step + validation)
    return half_steps + max(
        1, steps_within((1 - share) * budget, pace.step + validation)
    ), half_steps


def measure_pace(scratch: State, task: TrainingContext, hooks: Callbacks) -> StepTimings:
    """Time a few steps of each size, and the validation of one patient, on a `scratch` state (thrown away)."""
    forward = task.device.forward(scratch.model)
    half_step = (
        _seconds_a_step(scratch, task, forward, hooks, half=True)
        if task.config.half_resolution
        else 0.0
    )
    step = _seconds_a_step(scratch, task, forward, hooks, half=False)
    one = task.validation[: len(task.validation.of_volume(task.validation.volumes[0]))]
    started = time.perf_counter()
    for _ in evaluate(
        scratch.validated,
        one,
        task.config.inference,
        task.device,
        task.config.batch_size,
        task.criterion_on_cpu,
    ):
        pass
    return StepTimings(
        step, half_step, (time.perf_counter() - started) * len(task.validation) / len(one)
    )


def _seconds_a_step(
    scratch: State,
    task: TrainingContext,
    forward: Callable[[Tensor], Tensor],
    hooks: Callbacks,
    half: bool,
    rounds: int = 9,
) -> float:
    """The median of some rounds: on a desktop something else runs for a moment, and a mean of few would give the run too few steps.

    A round is a step; several on a device that works off a queue, whose host waits once a round. Fewer where the epoch ends before.
    """
    length = 5 if task.device.is_asynchronous else 1
    scratch.step, scratch.seconds, scratch.half_steps = 0, 0.0, (2 + rounds * length) * half
    paces = []
    for steps in (2, *[length] * rounds):  # the first two also compile, allocate and fill caches
        done, seconds = scratch.step, scratch.seconds
        scratch.total_steps = done + steps
        train_epoch(scratch, task, forward, hooks)
        if scratch.step == done:
            break
        paces.append((scratch.seconds - seconds) / (scratch.step - done))
    return median(paces[1:] or paces)
