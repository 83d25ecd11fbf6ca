"""Learning rates as functions of the step.

The rate of a step is `optimizer.lr` times `learning_rate_factor(...)`, and `set_learning_rate` in
`loop.py` multiplies them. A function of (step, total) has no state to save, so that a run which
resumes at step k has the same rates as a run that was never interrupted. Under a time budget the
total changes with the pace, and the plans with these totals are stored in the checkpoint. Only
`Plateau`, which depends on `val/dice`, has a state of three numbers, which is stored in the
checkpoint.
"""

import math
from collections.abc import Sequence

from brainseg.config import CosineConfig, OneCycleConfig, PlateauConfig, SchedulerConfig, StepConfig
from brainseg.core.errors import check
from brainseg.training.plan import Plan, plan_at
from brainseg.training.progressive_resizing import ProgressiveResizing


def learning_rate_factor(
    scheduler: SchedulerConfig,
    step: int,
    resizing: ProgressiveResizing,
    steps_per_epoch: int,
    half_share: float = 0.0,
    plans: Sequence[Plan] = (),
) -> float:
    """Return the factor of `optimizer.lr` at `step`.

    Steps are optimizer steps, from 0 to resizing.total_steps - 1. After the last step the factor
    keeps its end value. For a plateau the factor is 1, and the caller multiplies by
    `Plateau.factor`. The steps at half size take `half_share` of the time. Under a time budget the
    curve is a function of the share of the budget that is used at `step`, according to the `plans`
    of the run. Raises RequestError for a schedule without a formula.
    """
    if plans:
        plan = plan_at(plans, step)
        total, planned = plan.total, plan.share_at(step, half_share) * plan.total
    else:
        total, planned = resizing.total_steps, resizing.time_position(step, half_share)
    match scheduler:
        case StepConfig():
            # Epochs count from 0, as in the reference implementation, whose rate drops before its
            # 31st epoch.
            epoch = step // steps_per_epoch
            return scheduler.factor ** sum(drop <= epoch for drop in scheduler.epochs)
        case CosineConfig():
            return cosine(planned, total, scheduler.warmup, scheduler.final)
        case OneCycleConfig():
            return one_cycle(planned, total, scheduler.warmup, scheduler.start, scheduler.final)
    check(
        scheduler.name in ("none", "plateau"),
        "scheduler.name",
        scheduler.name,
        f"has no formula as {type(scheduler).__name__}",
    )
    return 1.0


def half_cosine(first: float, last: float, progress: float) -> float:
    """Return the value on half a cosine from `first` to `last`, with progress limited to [0, 1]."""
    progress = min(max(progress, 0.0), 1.0)
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


def cosine(step: float, total: int, warmup: float, final: float) -> float:
    """Compute a linear warm-up over warmup * total steps, then half a cosine.

    Reference: Loshchilov and Hutter 2017, SGDR, without restarts. The warm-up counts from 1, so
    that the first step is not wasted on a rate of 0. For the same reason the curve reaches `final`
    only after the last step. Without warm-up this is torch's CosineAnnealingLR with T_max=total.
    """
    warmup_steps = min(round(warmup * total), total - 1)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return half_cosine(1.0, final, (step - warmup_steps) / (total - warmup_steps))


def one_cycle(step: float, total: int, warmup: float, start: float, final: float) -> float:
    """Compute a rise from `start` to 1 and a fall to `final`, which the last step reaches.

    Reference: Smith 2018, "Super-convergence". The two half cosines meet at step
    warmup * total - 1, as in torch's OneCycleLR.
    """
    last = total - 1
    peak = warmup * total - 1
    if step < peak:
        return half_cosine(start, 1.0, step / peak)
    peak = max(peak, 0.0)
    return half_cosine(
        1.0, final, (step - peak) / (last - peak) if last > peak else float(step > last)
    )


class Plateau:
    """Learning-rate factor that falls when the validation score does not rise.

    The rules are those of torch's ReduceLROnPlateau(mode="max"). After more than `patience` epochs
    in a row without a new best score, `factor` is multiplied by `config.factor`, down
    to `config.final`, and the count starts again. A score that is not a number counts as no rise.
    """

    def __init__(self, config: PlateauConfig) -> None:
        self.config = config
        self.factor = 1.0
        self.best = -math.inf
        self.bad_epochs = 0

    def update(self, value: float) -> None:
        """Update the factor with a score (higher is better), once after each validation."""
        if value > self.best:
            self.best = value
            self.bad_epochs = 0
            return
        self.bad_epochs += 1
        if self.bad_epochs > self.config.patience:
            self.factor = max(self.factor * self.config.factor, self.config.final)
            self.bad_epochs = 0

    def state_dict(self) -> dict[str, float]:
        return {"factor": self.factor, "best": self.best, "bad_epochs": self.bad_epochs}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.factor = float(state["factor"])
        self.best = float(state["best"])
        self.bad_epochs = int(state["bad_epochs"])
