"""How many steps a budget of minutes gives: estimated before the first step, and again while the run goes on.

    plans   (step 0, share 0.00, 364 steps in all)   from a few timed steps
            (step 37, share 0.03, 1150 in all)       from the pace of the first 37
            ...
            (step 1201, share 1.00, 1201 in all)     settled: the time is over

Each plan holds from its step to the step of the next one. The learning rate goes by the share of the budget that is used, so that
it ends where it should however the pace changes. The plans are stored with the run: they say exactly what its steps were, and a
resumed or repeated run takes the same steps under the same rates.
"""

from collections.abc import Sequence
from typing import NamedTuple

WINDOWS = 10  # a plan is looked at again after this part of the steps that are left
LEAST_WINDOW = 100  # but not before this part of all steps


class Plan(NamedTuple):
    """The steps that a budget gives, as estimated at one step of the run."""

    step: int  # optimizer steps done when the plan was made
    share: float  # of the budget that was used by then
    total: int  # optimizer steps of the whole run
    half_steps: int  # the first so many of them see images of half the size

    @property
    def is_settled(self) -> bool:
        """Return True if the plan was made behind the last step: the budget is used."""
        return self.step >= self.total

    @property
    def next_step(self) -> int:
        """Return the step at which the pace is looked at again. No window holds steps of both sizes."""
        window = max(-(-(self.total - self.step) // WINDOWS), -(-self.total // LEAST_WINDOW), 1)
        ends = [self.total, self.half_steps] if self.step < self.half_steps else [self.total]
        return min(self.step + window, *ends)

    def share_at(self, step: int, half_share: float) -> float:
        """Return the share of the budget that is used at `step`: linear in time. `half_share` of it is spent at half size."""
        if step < self.half_steps:
            return _between(step, self.step, self.half_steps, self.share, half_share)
        if self.step < self.half_steps:
            return _between(step, self.half_steps, self.total, half_share, 1.0)
        return _between(step, self.step, self.total, self.share, 1.0)


def plan_at(plans: Sequence[Plan], step: int) -> Plan:
    """Return the plan that holds at `step`: the last one that was made by then."""
    return next(plan for plan in reversed(plans) if plan.step <= step)


def _between(step: int, first: int, last: int, low: float, high: float) -> float:
    return low + (high - low) * (step - first) / max(last - first, 1)
