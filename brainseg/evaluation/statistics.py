"""How sure a score is: intervals over patients, paired tests, correction for many comparisons. Pure functions of arrays.

A patient is the unit throughout. What varies from training to training (seeds, folds) is `spread`, and is never mixed in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from brainseg.core.errors import DataError, check

CHUNK = 2_000_000  # resampled values held at once: 16 MB, and as much again for their indices and for the median's copy


class Interval(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """One configuration against a baseline on the same patients; every difference is ours - baseline."""

    patients: int
    mean: float  # of the differences
    low: float  # 95 % bootstrap interval of that mean
    high: float
    p: float  # two-sided Wilcoxon signed-rank; not yet corrected for the number of configurations: see `holm`
    wins: int  # patients on whom ours is higher
    ties: int
    losses: int


def bootstrap(
    values: np.ndarray,
    statistic: str = "mean",
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of the mean or median over patients (Efron 1979): `values` (P,) is resampled with replacement.

    It covers the sampling of patients: how far the number would move on other patients of the same kind. It does not cover
    retraining: the models that gave these values are taken as they are. On few patients it is too narrow: where 1 in 20 is
    missed, 95 % cover the true mean in 86 % of cohorts of 22, 92 % of 61, 94 % of 110 (scripts/coverage_of_intervals.py).
    The same values and seed give the same interval, in whatever order the patients come. Raises DataError for fewer than 2
    patients or a value that is not finite.
    """
    values = _finite(values)
    if len(values) < 2:
        raise DataError(f"{len(values)} patient: an interval over patients needs at least 2")
    check(statistic in ("mean", "median"), "statistic", statistic, "must be mean or median")
    check(
        draws > 0 and 0 < level < 1,
        "draws, level",
        f"{draws}, {level}",
        "at least one draw, and a level between 0 and 1",
    )
    # By size: the order of patients then plays no part, and swapping the two sides of a comparison negates its interval
    # (where no two differences are equal and opposite; else within the Monte-Carlo error).
    values = values[np.lexsort((values, np.abs(values)))]
    generator = np.random.default_rng(seed)
    over_patients = np.mean if statistic == "mean" else np.median
    resampled = np.empty(draws)
    rows = max(1, CHUNK // len(values))
    for start in range(0, draws, rows):
        chosen = generator.integers(
            len(values), size=(min(rows, draws - start), len(values))
        )  # (rows, P)
        resampled[start : start + rows] = over_patients(values[chosen], axis=1)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def compare_paired(
    ours: np.ndarray, baseline: np.ndarray, draws: int = 10_000, seed: int = 0
) -> Paired:
    """Compare two configurations patient by patient: `ours` and `baseline` (P,) hold the same patients in the same order.

    The test is Wilcoxon's signed-rank (1945), two-sided, with zero differences ranked but not counted (Pratt 1959), exact
    where scipy can; without any difference p is 1. The interval is that of `bootstrap`, and covers what that covers.
    Raises DataError when the two differ in length, hold fewer than 2 patients, or a value that is not finite.
    """
    from scipy.stats import wilcoxon

    ours, baseline = _finite(ours), _finite(baseline)
    if len(ours) != len(baseline):
        raise DataError(
            f"{len(ours)} and {len(baseline)} patients: a paired comparison needs the same ones on both sides"
        )
    differences = ours - baseline
    low, high = bootstrap(differences, draws=draws, seed=seed)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    p = float(wilcoxon(differences, zero_method="pratt").pvalue) if wins + losses else 1.0
    return Paired(
        len(differences),
        float(differences.mean()),
        low,
        high,
        p,
        wins,
        len(differences) - wins - losses,
        losses,
    )


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values of all comparisons of one call, in their order (Holm 1979): below 0.05 keeps the chance of any false one there.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none falls below the one before it, or rises above 1.
    """
    raw = _finite(p)
    if len(raw) and not (raw.min() >= 0 and raw.max() <= 1):
        raise DataError(f"p={raw.tolist()}: p-values lie between 0 and 1")
    order = np.argsort(raw, kind="stable")
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1)))
    return [float(value) for value in adjusted]


def spread(values: np.ndarray) -> float:
    """Standard deviation over folds or seeds, `values` (n,); NaN with fewer than two.

    This is the spread, not the standard error of a mean: folds share training patients and seeds share all of them, so
    that dividing by the root of n would claim a precision that is not there (Bengio and Grandvalet 2004).
    """
    values = _finite(values)
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """As float64 (n,); what is undefined has to be left out by whoever knows what that means, not averaged here."""
    array = np.asarray(values, np.float64)
    undefined = array.size - int(np.isfinite(array).sum())
    if array.ndim != 1 or undefined:
        raise DataError(
            f"values of shape {array.shape}, {undefined} of them not finite: give one number per patient, fold or seed"
        )
    return array
