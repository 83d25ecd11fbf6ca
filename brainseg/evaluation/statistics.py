"""Confidence intervals over patients, paired tests, and correction for multiple comparisons.

All functions are pure functions of arrays, and the unit of every interval and test is the patient.
Several volumes of a patient are resampled together, because they resemble one another. The
variation between trainings (seeds, folds) is measured by `standard_deviation` alone and is part of
no interval.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from brainseg.core.errors import DataError, check

# Resampled values in memory at a time. They take 16 MB, their indices as much again, and so does
# the copy that the median makes.
CHUNK = 2_000_000
# The method of the interval of each statistic, as scipy names it.
METHODS = {"mean": "BCa", "median": "percentile"}


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedComparison:
    """A comparison of a configuration with a baseline on the same patients.

    Every difference is ours - baseline.
    """

    patients: int
    # The mean of the differences over volumes, and its 95 % bootstrap interval.
    mean: float
    low: float
    high: float
    # The two-sided Wilcoxon signed-rank test, not yet corrected for the number of configurations.
    # `adjust_p_values` corrects it.
    p: float
    # Patients with a higher score in ours, with the same score, and with a lower score.
    wins: int
    ties: int
    losses: int


def bootstrap(
    values: np.ndarray,
    patients: Sequence[str] | np.ndarray | None = None,
    *,
    statistic: str = "mean",
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the bootstrap interval of the mean or median over volumes.

    `values` (V,) has a value per volume, and `patients` (V,) the patient of each. None means that
    each volume is another patient. Patients are resampled with replacement, each with all its
    volumes (the cluster bootstrap; Davison and Hinkley 1997, section 3.8). The interval of the mean
    is BCa, corrected for bias and skewness (Efron 1987). That of the median is the percentile
    interval (Efron 1979), because the jackknife, from which BCa takes its correction, fails for
    medians. The interval covers the sampling of patients, which is how far the number would move on
    other patients of the same kind. It does not cover retraining, because the models that gave
    these values are fixed. On few patients the interval is too narrow
    (scripts/coverage_of_intervals.py measures how much). The same values and seed give the same
    interval for any order of the patients. Raises DataError for fewer than 2 patients or a value
    that is not finite, RequestError for the median if a patient has several volumes.
    """
    values = _require_finite(values)
    sums, counts = _sum_by_patient(values, patients)
    if len(sums) < 2:
        raise DataError(f"an interval over patients needs at least 2 of them, not {len(sums)}")
    check(statistic in METHODS, "statistic", statistic, "must be mean or median")
    check(
        statistic == "mean" or len(sums) == len(values),
        "statistic",
        statistic,
        "must be mean if a patient has several volumes",
    )
    check(
        draws > 1 and 0 < level < 1,
        "draws, level",
        f"{draws}, {level}",
        "must be at least two draws, and a level between 0 and 1",
    )
    if values.min() == values.max():
        return Interval(float(values[0]), float(values[0]))
    interval = _resample(sums, counts, statistic, METHODS[statistic], draws, seed, level)
    # BCa is undefined if all resamples lie on one side of the value, or if the values differ by
    # rounding alone. The percentile interval is BCa without its corrections.
    if not math.isfinite(interval.low + interval.high):
        interval = _resample(sums, counts, statistic, "percentile", draws, seed, level)
    return interval


def _sum_by_patient(
    values: np.ndarray, patients: Sequence[str] | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum and the number of the values of each patient, (P,) each."""
    if patients is None:
        return values, np.ones(len(values))
    _, index = np.unique(np.asarray(patients, str), return_inverse=True)
    return np.bincount(index, values), np.bincount(index).astype(np.float64)


def _resample(
    sums: np.ndarray,
    counts: np.ndarray,
    statistic: str,
    method: str,
    draws: int,
    seed: int,
    level: float,
) -> Interval:
    """Return the interval of a method of `scipy.stats.bootstrap`, NaN where it is undefined.

    `sums` and `counts` (P,) are those of the values of each patient.
    """
    from scipy.stats import DegenerateDataWarning, bootstrap

    def mean_over_volumes(sums: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
        return sums.sum(axis=axis) / counts.sum(axis=axis)

    # The values are sorted by size, so that the order of the patients has no effect. Swapping the
    # two sides of a comparison then negates its interval. This is exact unless two differences are
    # equal and opposite, and holds within the Monte-Carlo error otherwise.
    order = np.lexsort((sums, np.abs(sums)))
    is_single = bool((counts == 1).all())
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)
        result = bootstrap(
            (sums[order],) if is_single else (sums[order], counts[order]),
            {"mean": np.mean, "median": np.median}[statistic] if is_single else mean_over_volumes,
            paired=not is_single,
            n_resamples=draws,
            batch=max(1, CHUNK // len(sums)),
            confidence_level=level,
            method=method,
            rng=np.random.default_rng(seed),
        )
    return Interval(*map(float, result.confidence_interval))


def compare_paired(
    ours: np.ndarray,
    baseline: np.ndarray,
    patients: Sequence[str] | np.ndarray | None = None,
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> PairedComparison:
    """Return the comparison of two configurations patient by patient.

    `ours` and `baseline` (V,) contain the same volumes in the same order, and `patients` is that of
    `bootstrap`. The test compares the mean difference of each patient. It is Wilcoxon's
    signed-rank (1945), two-sided, with zero differences ranked but not counted (Pratt 1959). It is
    exact if scipy has an exact method, and p is 1 without any difference. The interval is that of
    `bootstrap`, with the same coverage. Raises DataError if the two differ in length, have fewer
    than 2 patients, or contain a value that is not finite.
    """
    from scipy.stats import wilcoxon

    ours, baseline = _require_finite(ours), _require_finite(baseline)
    if len(ours) != len(baseline):
        raise DataError(
            "a paired comparison needs the same patients on both sides, "
            f"not {len(ours)} and {len(baseline)} of them"
        )
    volume_differences = ours - baseline
    low, high = bootstrap(volume_differences, patients, draws=draws, seed=seed)
    sums, counts = _sum_by_patient(volume_differences, patients)
    differences = sums / counts
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    p = float(wilcoxon(differences, zero_method="pratt").pvalue) if wins + losses else 1.0
    return PairedComparison(
        len(differences),
        float(volume_differences.mean()),
        low,
        high,
        p,
        wins,
        len(differences) - wins - losses,
        losses,
    )


def adjust_p_values(p: Sequence[float]) -> list[float]:
    """Return the adjusted p-values of several comparisons, in their order (Holm 1979).

    If the comparisons below 0.05 are accepted, the chance that any of them is false stays below
    0.05. The smallest of m p-values is multiplied by m, the next by m - 1, and so on. No adjusted
    p-value falls below the previous one or rises above 1. Raises DataError for a value outside 0
    to 1.
    """
    raw = _require_finite(p)
    if len(raw) and not (raw.min() >= 0 and raw.max() <= 1):
        raise DataError(f"p={raw.tolist()}: p-values must lie between 0 and 1")
    order = np.argsort(raw, kind="stable")
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1)))
    return [float(value) for value in adjusted]


def standard_deviation(values: np.ndarray) -> float:
    """Return the standard deviation of `values` (n,) over folds or seeds.

    It is NaN with fewer than two values. It is not the standard error of a mean. Folds share
    training patients and seeds share all of them. Dividing by the root of n would therefore claim
    too high a precision (Bengio and Grandvalet 2004).
    """
    values = _require_finite(values)
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan


def _require_finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the values as float64 (n,).

    Raises DataError for an undefined value. The caller has to leave such values out, because only
    the caller knows why they are undefined.
    """
    array = np.asarray(values, np.float64)
    undefined = array.size - int(np.isfinite(array).sum())
    if array.ndim != 1 or undefined:
        raise DataError(
            f"values of shape {array.shape} with {undefined} that are not finite; "
            "give one finite number per patient, fold or seed"
        )
    return array
