"""Progressive resizing: the first steps of a run use images of half the size, the others all of it.

A step at half size takes a fraction of the time, so that a run of the same length sees more slices.
Patients are scored at full size, so that the last steps must be at full size.
"""

from typing import NamedTuple

from brainseg.config.train import LARGEST_HALF_RESOLUTION


class ProgressiveResizing(NamedTuple):
    """The number of optimizer steps of a run, and how many of them are at half size."""

    total_steps: int
    # Number of steps, from the first one, that use images of half the size.
    half_steps: int = 0

    @classmethod
    def from_fraction(cls, fraction: float, total_steps: int) -> "ProgressiveResizing":
        """Return a run in which `fraction` of the steps, but never the last, are at half size."""
        return cls(total_steps, min(round(fraction * total_steps), total_steps - 1))

    @property
    def fraction(self) -> float:
        """Return the value of `half_resolution` that gives a run in steps as many half steps.

        A time budget may have more steps at half size than the setting allows. The value is then
        the highest that is allowed.
        """
        return min(self.half_steps / self.total_steps, LARGEST_HALF_RESOLUTION)

    @property
    def fewest_steps(self) -> int:
        """Return the lowest number of steps that this run can be given later."""
        return self.half_steps + 1

    def is_half(self, step: int) -> bool:
        """Return True if the step after `step` steps uses images of half the size."""
        return step < self.half_steps

    def is_score_meaningful(self, steps_done: int) -> bool:
        """Return True if `val/dice` after these steps shows how good the network is.

        Validation is at full size. A network that was trained at half size alone scores low
        there, whatever it has learnt, so that patience, plateaus and pruning wait.
        """
        return steps_done > self.half_steps

    def time_position(self, step: int, half_share: float) -> float:
        """Return the position in the run, from 0 to the total, as if all steps took equally long.

        The steps at half size are many and fast and take only `half_share` of the time. As a
        function of the plain step a cosine would be near its end before the first image of full
        size. Without a time budget `half_share` is the share of steps, and the result is `step`.
        """
        if not self.half_steps:
            return step
        if self.is_half(step):
            return step / self.half_steps * half_share * self.total_steps
        full_steps = max(self.total_steps - self.half_steps, 1)
        progress = (step - self.half_steps) / full_steps
        return (half_share + (1 - half_share) * progress) * self.total_steps
