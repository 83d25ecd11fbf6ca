"""The number of steps of a time budget, estimated from a short benchmark at the start."""

import time
from statistics import median
from typing import NamedTuple

from brainseg.evaluation.evaluate import evaluate
from brainseg.training.context import Callbacks, TrainingContext
from brainseg.training.cuda_graphs import Forward, training_forward
from brainseg.training.loop import train_epoch
from brainseg.training.nonfinite import explaining_out_of_memory
from brainseg.training.plan import Plan
from brainseg.training.replan import count_steps_within
from brainseg.training.state import State


class StepTimings(NamedTuple):
    """Seconds of a step, of a step at half resolution, and of a validation."""

    step: float
    half_step: float
    validation: float


def make_first_plan(state: State, scratch: State, task: TrainingContext, hooks: Callbacks) -> None:
    """Set the first plan of `max_minutes` for `state`, from a few timed steps on `scratch`.

    `scratch` is a state to be thrown away. During the run the plan is revised (`replan`), because
    other processes may have slowed down these steps.
    """
    assert task.config.max_minutes is not None
    with explaining_out_of_memory(task):
        pace = measure_pace(scratch, task, hooks)
    state.validation_seconds = pace.validation
    state.full_to_half = pace.step / pace.half_step if pace.half_step else 1.0
    state.adopt_plans([Plan(0, 0.0, *estimate_steps(pace, task, task.config.max_minutes))])


def estimate_steps(pace: StepTimings, task: TrainingContext, minutes: float) -> tuple[int, int]:
    """Return how many steps fit into `minutes`, and how many of them are at half resolution.

    Validations are included. At least one step is at full size.
    """
    # The last epoch is validated, too, however short it is.
    budget = minutes * 60 - pace.validation
    validation = pace.validation / (task.steps_per_epoch * task.config.validate_every)
    share = task.config.half_resolution
    half_steps = count_steps_within(share * budget, pace.half_step + validation)
    full_steps = max(1, count_steps_within((1 - share) * budget, pace.step + validation))
    return half_steps + full_steps, half_steps


def measure_pace(scratch: State, task: TrainingContext, hooks: Callbacks) -> StepTimings:
    """Time a few steps of each size, and the validation of one patient if there are any.

    `scratch` is a state to be thrown away.
    """
    with training_forward(scratch.model, task.config, task.device) as forward:
        half_step = (
            _seconds_per_step(scratch, task, forward, hooks, half=True)
            if task.config.half_resolution
            else 0.0
        )
        step = _seconds_per_step(scratch, task, forward, hooks, half=False)
    if not len(task.validation):
        return StepTimings(step, half_step, 0.0)
    patient = task.validation[: len(task.validation.of_volume(task.validation.volumes[0]))]
    started = time.perf_counter()
    for _ in evaluate(
        scratch.evaluated_model,
        patient,
        task.config.inference,
        task.device,
        task.config.batch_size,
        task.criterion_on_cpu,
        with_geometry=False,
    ):
        pass
    # The time of a validation is proportional to the number of slices.
    validation = (time.perf_counter() - started) * len(task.validation) / len(patient)
    return StepTimings(step, half_step, validation)


def _seconds_per_step(
    scratch: State,
    task: TrainingContext,
    forward: Forward,
    hooks: Callbacks,
    half: bool,
    rounds: int = 9,
) -> float:
    """Return the median seconds per step over some rounds, fewer if the epoch ends before."""
    # Other programs on a desktop disturb single steps. A mean of so few steps would then be too
    # high, and the run would get too few steps. On an asynchronous device the host waits once per
    # round, so that a round has several steps.
    length = 5 if task.device.is_asynchronous else 1
    scratch.step, scratch.seconds, scratch.half_steps = 0, 0.0, (2 + rounds * length) * half
    paces = []
    # The first two steps also compile, allocate and fill caches.
    for steps in (2, *[length] * rounds):
        done, seconds = scratch.step, scratch.seconds
        scratch.total_steps = done + steps
        train_epoch(scratch, task, forward, hooks)
        if scratch.step == done:
            break
        paces.append((scratch.seconds - seconds) / (scratch.step - done))
    return median(paces[1:] or paces)
