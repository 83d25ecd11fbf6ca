"""Learning rates as functions of the step: the rate of a step is `optimizer.lr` times `factor(...)`.

A function of (step, total) has no state to save: a run that resumes at step k goes on exactly as if it had never stopped. Under a
budget of minutes the total changes with the pace; the plans that say so are kept in the checkpoint.
Only `Plateau`, which waits for `val/dice`, has a state; three numbers, kept in the checkpoint.
"""

import math
from collections.abc import Sequence

from brainseg.config import CosineConfig, OneCycleConfig, PlateauConfig, SchedulerConfig, StepConfig
from brainseg.core.errors import check
from brainseg.training.plan import Plan, plan_at


def factor(
    scheduler: SchedulerConfig,
    step: int,
    total: int,
    steps_per_epoch: int,
    half_steps: int = 0,
    half_share: float = 0.0,
    plans: Sequence[Plan] = (),
) -> float:
    """The share of `optimizer.lr` at `step` of `total`, both in optimizer steps; the first step is 0, the last total - 1.

    From step `total` on (a run that was asked for less) it stays at the end value. A plateau gives 1 here: multiply by
    `Plateau.factor`. `half_steps` and `half_share` as in `position`. Under a budget of minutes the `plans` of the run say which share
    of it is used at `step`, and what is drawn over the steps is drawn over that share. Raises RequestError for a schedule without a
    formula.
    """
    if plans:
        plan = plan_at(plans, step)
        total, planned = plan.total, plan.share_at(step, half_share) * plan.total
    else:
        planned = position(step, total, half_steps, half_share)
    match scheduler:
        case StepConfig():
            epoch = (
                step // steps_per_epoch
            )  # counted from 0, as in the reference, whose rate drops before its 31st epoch
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


def position(step: int, total: int, half_steps: int, share: float) -> float:
    """The step as if all steps took the same time: 0 to `total`, linear in the time that the run takes.

    Its first `half_steps` steps, at half resolution, are quick and many, yet take only `share` of the time: without this a cosine
    would be near its end before the first image of full size.
    """
    if step < half_steps:
        return step / half_steps * share * total
    if not half_steps:
        return step
    return (share + (1 - share) * (step - half_steps) / max(total - half_steps, 1)) * total


def half_cosine(first: float, last: float, progress: float) -> float:
    """From `first` to `last` along half a cosine; progress from 0 to 1, held at its ends beyond."""
    progress = min(max(progress, 0.0), 1.0)
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


def cosine(step: float, total: int, warmup: float, final: float) -> float:
    """Linear warm-up over warmup * total steps, then half a cosine (Loshchilov and Hutter 2017, SGDR, without restarts).

    The warm-up counts from 1, so that the first step is not lost on a rate of 0, and for the same reason the curve reaches
    `final` just behind the last step. Without warm-up it is torch's CosineAnnealingLR with T_max=total.
    """
    warm = min(round(warmup * total), total - 1)
    if step < warm:
        return (step + 1) / (warm + 1)
    return half_cosine(1.0, final, (step - warm) / (total - warm))


def one_cycle(step: float, total: int, warmup: float, start: float, final: float) -> float:
    """From `start` up to 1 and down to `final`, reached at the last step (Smith 2018, "Super-convergence").

    Two half cosines that meet at step warmup * total - 1: torch's OneCycleLR.
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
    """Drops the rate when the validation score has not risen; the semantics of torch's ReduceLROnPlateau(mode="max").

    After more than `patience` epochs in a row without a new best score, `factor` is multiplied by `config.factor`, down to
    `config.final`, and the count starts again. A score that is not a number counts as no rise.
    """

    def __init__(self, config: PlateauConfig) -> None:
        self.config = config
        self.factor = 1.0
        self.best = -math.inf
        self.bad_epochs = 0

    def update(self, value: float) -> None:
        """Take the score of an epoch, the higher the better; call once after each validation."""
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
