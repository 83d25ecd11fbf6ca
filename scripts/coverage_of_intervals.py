"""Measure how often the 95 % bootstrap interval covers the true mean Dice in simulated cohorts.

    python scripts/coverage_of_intervals.py [--cohorts 1000] [--patients 22 61 110] [--missed 0.05]

The interval is that of `brainseg.evaluation.statistics`, with `--draws` resamples (10000). A
patient is missed (Dice 0) with probability `--missed`. Otherwise, its Dice is distributed as
Beta(6, 1.5), with mean 0.80 and skewed to low values like published scores on these data. An
interval can miss the true value because it lies entirely below or entirely above it. An exact
interval does each in 2.5 % of the cohorts. The share over 1,000 cohorts is itself known to about 1
point (its standard error is 0.7).
"""

import argparse

import numpy as np

from brainseg.evaluation.statistics import bootstrap

SHAPE = (6.0, 1.5)


def cohort(random: np.random.Generator, patients: int, missed: float) -> np.ndarray:
    """Return the Dice of each patient of a random cohort, (P,)."""
    return random.beta(*SHAPE, patients) * (random.random(patients) >= missed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cohorts", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--patients", type=int, nargs="+", default=[22, 61, 110])
    parser.add_argument("--missed", type=float, default=0.05)
    options = parser.parse_args()

    # A fixed seed, so that the documented figures can be reproduced.
    random = np.random.default_rng(0)
    truth = {"mean": (1 - options.missed) * SHAPE[0] / sum(SHAPE)}
    # The median has no closed form here, so it is estimated from a very large cohort.
    truth["median"] = float(np.median(cohort(random, 10_000_000, options.missed)))
    print(f"{options.cohorts} cohorts; true mean {truth['mean']:.4f}, median {truth['median']:.4f}")
    shares = f"{'covered':>8} {'too low':>8} {'too high':>8}"
    print(f"{'patients':>8} {'statistic':>9} {shares} {'width':>6}")
    for patients in options.patients:
        cohorts = [cohort(random, patients, options.missed) for _ in range(options.cohorts)]
        for statistic, true in truth.items():
            low, high = np.array(
                [bootstrap(values, statistic, options.draws) for values in cohorts]
            ).T
            below, above = (high < true).mean(), (low > true).mean()
            shares = f"{1 - below - above:>8.1%} {below:>8.1%} {above:>8.1%}"
            width = (high - low).mean()
            print(f"{patients:>8} {statistic:>9} {shares} {width:>6.3f}", flush=True)


if __name__ == "__main__":
    main()
