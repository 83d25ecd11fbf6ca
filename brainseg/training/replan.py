"""A new plan of a budget of minutes, by the pace of the steps since the last one."""

import logging

from brainseg.training.context import TrainingContext
from brainseg.training.plan import Plan
from brainseg.training.state import State, Window

NOTABLE = 0.5  # a change of the number of steps by this share is logged
log = logging.getLogger("brainseg")


def steps_within(seconds: float, step: float) -> int:
    """Return how many steps of `step` seconds fit into `seconds`, none into a time that is over."""
    return max(0, int(seconds / max(step, 1e-9)))


def seconds_for_validation(state: State, task: TrainingContext) -> float:
    """Return the seconds of validation that fall to a step."""
    return state.validation_seconds / (task.steps_per_epoch * task.config.validate_every)


def replan(state: State, task: TrainingContext) -> None:
    """Append the plan that the steps since the last one suggest, and take its number of steps.

    The budget is `max_minutes`; the last validation must fit into it. A plan whose time is over is settled. Call it between two
    optimizer steps, when the device has done them all.
    """
    assert state.window is not None and task.config.max_minutes is not None
    state.tick()
    before, window = state.plans[-1], state.window
    validation = seconds_for_validation(state, task)
    pace = (state.elapsed - window.elapsed - window.validating) / max(state.step - window.step, 1)
    budget = task.config.max_minutes * 60
    half_share = task.config.half_resolution
    was_half = window.step < before.half_steps
    half_steps = before.half_steps
    if was_half and state.step < half_steps:
        half_steps = state.step + steps_within(
            half_share * budget - state.elapsed, pace + validation
        )
    full_pace = pace * state.full_to_half if was_half else pace
    if state.step < half_steps:
        further = max(
            1,
            steps_within(
                (1 - half_share) * budget - state.validation_seconds, full_pace + validation
            ),
        )
        total = half_steps + further
    else:
        least = 1 if was_half else 0
        left = budget - state.elapsed - state.validation_seconds
        total = state.step + max(least, steps_within(left, full_pace + validation))
    is_over = state.step == before.total and (total - state.step) * 100 <= total
    plan = Plan(
        state.step, min(state.elapsed / budget, 1.0), state.step if is_over else total, half_steps
    )
    if abs(plan.total - before.total) > NOTABLE * before.total:
        log.info(
            "note:         max_minutes=%g gives %d steps at the pace of the last %d, not %d as planned",
            task.config.max_minutes,
            plan.total,
            state.step - window.step,
            before.total,
        )
    state.follow([*state.plans, plan])
    state.window = Window(state.step, state.elapsed)
