"""The number of steps of a time budget, estimated before the first step and again during the run.

    plans   (step 0, share 0.00, 364 steps in all)   from a few timed steps
            (step 37, share 0.03, 1150 in all)       from the pace of the first 37
            ...
            (step 1201, share 1.00, 1201 in all)     settled: the time is over

Each plan holds from its step to the step of the next plan. The learning rate depends on the share
of the budget that is used, so that it reaches its end value however the pace changes. The plans are
stored with the run. A resumed or repeated run therefore takes the same steps at the same rates.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from brainseg.training.progressive_resizing import ProgressiveResizing

# A plan is revised after 1/10 of the steps that are left, but not before 1/100 of all steps.
WINDOWS_LEFT = 10
MAX_WINDOWS = 100


class Plan(NamedTuple):
    """Number of steps of a time budget, as estimated at one step of the run."""

    # Optimizer steps done when the plan was made.
    step: int
    # Share of the budget that was used when the plan was made.
    share: float
    # Optimizer steps of the complete run.
    total: int
    # Number of steps, from the first one, that use images of half the size.
    half_steps: int

    @property
    def resizing(self) -> ProgressiveResizing:
        """Return the number of steps of each size."""
        return ProgressiveResizing(self.total, self.half_steps)

    @property
    def is_settled(self) -> bool:
        """Return True if the plan was made after the last step, when the budget is used."""
        return self.step >= self.total

    @property
    def next_step(self) -> int:
        """Return the step at which the pace is measured again."""
        # -(-a // b) rounds up.
        window = max(-(-(self.total - self.step) // WINDOWS_LEFT), -(-self.total // MAX_WINDOWS), 1)
        # Steps of both sizes in one window would give the pace of neither.
        ends = [self.total, self.half_steps] if self.resizing.is_half(self.step) else [self.total]
        return min(self.step + window, *ends)

    def share_at(self, step: int, half_share: float) -> float:
        """Return the share of the budget that is used at `step`, interpolated between the plans.

        The steps at half size use `half_share` of the budget.
        """
        if self.resizing.is_half(step):
            return _interpolate(step, self.step, self.half_steps, self.share, half_share)
        if self.resizing.is_half(self.step):
            return _interpolate(step, self.half_steps, self.total, half_share, 1.0)
        return _interpolate(step, self.step, self.total, self.share, 1.0)


def plan_at(plans: Sequence[Plan], step: int) -> Plan:
    """Return the plan that holds at `step`, the last one that was made before or at this step."""
    return next(plan for plan in reversed(plans) if plan.step <= step)


def restore_plans(stored: Mapping[str, Any]) -> list[Plan]:
    """Return the plans in a checkpoint's content, none for a run without a time budget."""
    return [
        Plan(int(step), float(share), int(total), int(half))
        for step, share, total, half in stored.get("plans", [])
    ]


def _interpolate(step: int, first: int, last: int, low: float, high: float) -> float:
    """Return the value at `step` of the line from `low` at `first` to `high` at `last`."""
    return low + (high - low) * (step - first) / max(last - first, 1)
