"""Revision of the plan of a time budget, from the pace of the steps since the last plan."""

import logging

from brainseg.training.context import TrainingContext
from brainseg.training.plan import Plan
from brainseg.training.state import State, Window

# The smallest relative change of the number of steps that is logged.
LOGGED_CHANGE = 0.5
log = logging.getLogger("brainseg")


def count_steps_within(seconds: float, step: float) -> int:
    """Return how many steps of `step` seconds fit into `seconds`, 0 if `seconds` is negative."""
    return max(0, int(seconds / max(step, 1e-9)))


def seconds_for_validation(state: State, task: TrainingContext) -> float:
    """Return the seconds of validation per training step."""
    return state.validation_seconds / (task.steps_per_epoch * task.config.validate_every)


def replan(state: State, task: TrainingContext) -> None:
    """Append a plan from the pace since the last plan, and adopt its number of steps.

    The budget is `max_minutes`, the last validation included. A plan is settled when the time is
    over. Call this between two optimizer steps, when the device has finished its queue.
    """
    assert state.window is not None and task.config.max_minutes is not None
    state.tick()
    previous, window = state.plans[-1], state.window
    validation = seconds_for_validation(state, task)
    pace = (state.elapsed - window.elapsed - window.validating) / max(state.step - window.step, 1)
    budget = task.config.max_minutes * 60
    half_share = task.config.half_resolution
    was_half = previous.resizing.is_half(window.step)
    half_steps = previous.half_steps
    if was_half and state.step < half_steps:
        half_steps = state.step + count_steps_within(
            half_share * budget - state.elapsed, pace + validation
        )
    # At half size no step at full size has been timed yet, so that the benchmark's ratio is used.
    full_pace = pace * state.full_to_half if was_half else pace
    if state.step < half_steps:
        seconds_left = (1 - half_share) * budget - state.validation_seconds
        # At least one step is at full size.
        total = half_steps + max(1, count_steps_within(seconds_left, full_pace + validation))
    else:
        minimum = 1 if was_half else 0
        seconds_left = budget - state.elapsed - state.validation_seconds
        total = state.step + max(minimum, count_steps_within(seconds_left, full_pace + validation))
    # After the last planned step, time for at most 1 % more steps is not used.
    is_over = state.step == previous.total and (total - state.step) * 100 <= total
    plan = Plan(
        state.step, min(state.elapsed / budget, 1.0), state.step if is_over else total, half_steps
    )
    if abs(plan.total - previous.total) > LOGGED_CHANGE * previous.total:
        log.info(
            "note:         max_minutes=%g gives %d steps at the pace of the last %d, "
            "not %d as planned",
            task.config.max_minutes,
            plan.total,
            state.step - window.step,
            previous.total,
        )
    state.adopt_plans([*state.plans, plan])
    state.window = Window(state.step, state.elapsed)
