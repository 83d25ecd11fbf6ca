"""Measure how often 95 % bootstrap intervals cover the true Dice of simulated cohorts.

    python scripts/coverage_of_intervals.py [--scores runs/RUN/patients.csv ...]

Each cohort is drawn from a population of Dice scores. Without `--scores` a patient is missed (Dice
0) with probability `--missed`, and otherwise its Dice is distributed as Beta(6, 1.5), with mean
0.80 and skewed to low values like published scores on these data. With `--scores` the population
are the patients of these files, drawn with replacement.

For each number of patients, two methods are compared on the same cohorts: the percentile bootstrap,
and the method of `brainseg.evaluation.statistics` (BCa for the mean). An interval can miss the true
value because it lies entirely below or entirely above it. An exact interval does each in 2.5 % of
the cohorts. The share over 1,000 cohorts is itself known to about 1 point (its standard error is
0.7).
"""

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from brainseg.evaluation.statistics import METHODS, bootstrap

SHAPE = (6.0, 1.5)
STATISTICS = {"mean": np.mean, "median": np.median}
POPULATION = 1_000_000


def make_population(
    random: np.random.Generator, missed: float, scores: Sequence[str]
) -> np.ndarray:
    """Return the Dice of the patients from which cohorts are drawn, (N,)."""
    if scores:
        return np.concatenate([pd.read_csv(path).dice.to_numpy() for path in scores])
    return random.beta(*SHAPE, POPULATION) * (random.random(POPULATION) >= missed)


def percentile_interval(values: np.ndarray, statistic: str, draws: int) -> tuple[float, float]:
    """Return the interval of the percentile bootstrap."""
    interval = stats.bootstrap(
        (values,),
        STATISTICS[statistic],
        n_resamples=draws,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return interval.low, interval.high


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cohorts", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--patients", type=int, nargs="+", default=[22, 61])
    parser.add_argument("--missed", type=float, default=0.05)
    parser.add_argument("--scores", nargs="+", default=[])
    options = parser.parse_args()

    # A fixed seed, so that the documented figures can be reproduced.
    random = np.random.default_rng(0)
    population = make_population(random, options.missed, options.scores)
    print(f"{options.cohorts} cohorts from a population of {len(population)}")
    shares = f"{'covered':>8} {'too low':>8} {'too high':>8}"
    print(f"{'patients':>8} {'statistic':>9} {'method':>10} {shares} {'width':>6}")
    for patients in options.patients:
        cohorts = [random.choice(population, patients) for _ in range(options.cohorts)]
        for statistic, measure in STATISTICS.items():
            methods = {"percentile": percentile_interval}
            if METHODS[statistic] != "percentile":
                methods[METHODS[statistic]] = bootstrap
            for method, interval_of in methods.items():
                low, high = np.array(
                    [interval_of(values, statistic, options.draws) for values in cohorts]
                ).T
                truth = measure(population)
                below, above = (high < truth).mean(), (low > truth).mean()
                shares = f"{1 - below - above:>8.1%} {below:>8.1%} {above:>8.1%}"
                row = f"{patients:>8} {statistic:>9} {method:>10} {shares}"
                print(f"{row} {(high - low).mean():>6.3f}", flush=True)


if __name__ == "__main__":
    main()
