"""Intervals and tests against scipy, against enumeration and by hand; and what must not change them."""

import itertools
import math
import tracemalloc
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from brainseg.core.errors import DataError, RequestError
from brainseg.evaluation import statistics
from brainseg.evaluation.statistics import (
    PairedComparison,
    adjust_p_values,
    bootstrap,
    compare_paired,
    standard_deviation,
)

DICE = st.floats(0, 1, allow_subnormal=False)
P_VALUES = st.lists(st.floats(0, 1), max_size=12)


def dice(patients: int, seed: int = 0) -> np.ndarray:
    """Skewed to the left, as Dice is, with some patients missed."""
    random = np.random.default_rng(seed)
    return random.beta(5, 1.5, patients) * (random.random(patients) > 0.1)


def test_the_volumes_of_a_patient_count_as_one_patient() -> None:
    """A second scan that scores as the first one does makes no interval narrower."""
    values, other = dice(20), dice(20, seed=1)
    patients = [f"p{number}" for number in range(20)]
    twice, names = np.repeat(values, 2), np.repeat(patients, 2)
    assert bootstrap(twice, names) == pytest.approx(bootstrap(values), abs=1e-9)
    assert bootstrap(values, patients) == bootstrap(values)
    low, high = bootstrap(twice)
    assert high - low < 0.8 * np.subtract(*bootstrap(values)[::-1]), "as if they were independent"
    found = compare_paired(twice, np.repeat(other, 2), names)
    expected = compare_paired(values, other)
    assert (found.patients, found.wins, found.losses) == (20, expected.wins, expected.losses)
    assert found.p == expected.p and found.low == pytest.approx(expected.low, abs=1e-9)


def test_the_mean_is_over_volumes_however_many_a_patient_has() -> None:
    scores, names = np.array([0.9, 0.9, 0.9, 0.1, 0.5]), ["a", "a", "a", "b", "c"]
    low, high = bootstrap(scores, names)
    assert low < scores.mean() < high
    assert compare_paired(scores, np.zeros(5), names).mean == pytest.approx(scores.mean())
    with pytest.raises(DataError, match="needs at least 2 of them, not 1"):
        bootstrap(scores[:3], names[:3])
    with pytest.raises(RequestError, match="must be mean if a patient has several volumes"):
        bootstrap(scores, names, statistic="median")


def bca_by_hand(values: np.ndarray, level: float) -> tuple[float, float]:
    """The interval of the mean by the formulas of Efron and Tibshirani 1993, 14.3."""
    normal = NormalDist()
    random = np.random.default_rng(1)
    means = random.choice(values, (200_000, len(values))).mean(axis=1)
    bias = normal.inv_cdf(float((means < values.mean()).mean()))
    without = np.array([np.delete(values, i).mean() for i in range(len(values))])
    lever = without.mean() - without
    skew = (lever**3).sum() / (6 * (lever**2).sum() ** 1.5)
    ends = []
    for share in ((1 - level) / 2, (1 + level) / 2):
        z = bias + normal.inv_cdf(share)
        ends.append(np.quantile(means, normal.cdf(bias + z / (1 - skew * z))))
    return tuple(ends)


@pytest.mark.parametrize("level", [0.95, 0.8])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_interval_of_the_mean_equals_its_formulas(seed: int, level: float) -> None:
    values = dice(25, seed)
    interval = bootstrap(values, draws=100_000, level=level)
    assert interval == pytest.approx(bca_by_hand(values, level), abs=2e-3)
    percentile = np.quantile(
        np.random.default_rng(2).choice(values, (100_000, 25)).mean(axis=1),
        [(1 - level) / 2, (1 + level) / 2],
    )
    assert interval.low < percentile[0] - 5e-3, "Dice is skewed, so BCa reaches further down"


def test_the_interval_of_the_median_is_that_of_the_percentiles() -> None:
    values = dice(25)
    medians = np.median(np.random.default_rng(2).choice(values, (100_000, 25)), axis=1)
    expected = np.quantile(medians, [0.025, 0.975])
    assert bootstrap(values, statistic="median", draws=100_000) == pytest.approx(expected, abs=2e-3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("statistic", ["mean", "median"])
@pytest.mark.parametrize(
    "values",
    [
        [0.2, 0.7],
        [0.0, 5e-324],
        [0.1, 0.1, 0.1 + 1e-17, 0.1 + 2e-17],
        [0.0] * 20 + [1e-300],
        [0.0] * 21 + [1.0],
        [0.9, 0.9, 0.9, 0.9, 0.1],
        [-1e-12, 1.0, 1.0, 1.0],
    ],
)
@pytest.mark.parametrize("draws", [2, 10, 2_000])
def test_nearly_equal_patients_and_few_draws_give_an_interval_without_a_warning(
    values: list[float], statistic: str, draws: int
) -> None:
    low, high = bootstrap(np.array(values), statistic=statistic, draws=draws)
    assert min(values) - 1e-12 <= low <= high <= max(values) + 1e-12


def test_two_patients_by_enumeration() -> None:
    """Of 0 and 1, resampled, the mean is 0, 0.5 or 1 in 1, 2 and 1 of 4 draws."""
    assert bootstrap(np.array([0.0, 1.0]), level=0.55) == (0, 1)  # cuts 0.225 from either end
    assert bootstrap(np.array([0.0, 1.0]), level=0.45) == (0.5, 0.5)  # cuts 0.275


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_equal_patients_leave_no_doubt(statistic: str) -> None:
    assert bootstrap(np.full(61, 0.75), statistic=statistic) == (0.75, 0.75)


@settings(max_examples=50, deadline=None)
@given(st.lists(DICE, min_size=2, max_size=30), st.randoms(), st.sampled_from(["mean", "median"]))
def test_the_order_of_patients_plays_no_part(values: list[float], random, statistic: str) -> None:
    shuffled = random.sample(values, len(values))
    interval = bootstrap(np.array(values), statistic=statistic, draws=200)
    assert bootstrap(np.array(shuffled), statistic=statistic, draws=200) == interval
    assert min(values) - 1e-12 <= interval.low <= interval.high <= max(values) + 1e-12


def test_a_seed_is_a_draw_and_a_wider_level_a_wider_interval() -> None:
    values = dice(30)
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3) != bootstrap(values, seed=4)
    wide, narrow = bootstrap(values, level=0.99), bootstrap(values, level=0.5)
    assert wide.low < narrow.low < values.mean() < narrow.high < wide.high


def test_memory_is_bounded_and_the_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = dice(5_000)
    tracemalloc.start()
    whole = bootstrap(values, statistic="median", draws=2_000)  # 160 MB at once
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
    monkeypatch.setattr(statistics, "CHUNK", 700_000)
    assert bootstrap(values, statistic="median", draws=2_000) == whole


@pytest.mark.parametrize(
    "values", [[], [0.5], [0.5, math.nan], [0.5, math.inf], [[0.5, 0.6], [0.7, 0.8]]]
)
def test_too_few_patients_and_undefined_values_are_refused(values: list) -> None:
    with pytest.raises(DataError):
        bootstrap(np.array(values))


@pytest.mark.parametrize("wrong", [{"statistic": "mode"}, {"draws": 1}, {"level": 1.0}])
def test_wrong_requests_are_refused(wrong: dict) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        bootstrap(dice(5), **wrong)


def signed_rank_by_enumeration(differences: np.ndarray) -> float:
    """Two-sided p over all signs of the non-zero differences; zeros take part in the ranking alone (Pratt)."""
    sizes = np.abs(differences)
    ranks = np.array([(sizes < size).sum() + ((sizes == size).sum() + 1) / 2 for size in sizes])[
        sizes > 0
    ]
    observed = ranks[differences[sizes > 0] > 0].sum()
    sums = np.array(
        [ranks[list(signs)].sum() for signs in itertools.product([False, True], repeat=len(ranks))]
    )
    return min(1.0, 2 * min((sums <= observed + 1e-9).mean(), (sums >= observed - 1e-9).mean()))


@settings(max_examples=60, deadline=None)
@given(arrays(np.int8, st.integers(2, 9), elements=st.integers(-6, 6)))
def test_wilcoxon_equals_enumeration_with_ties_and_zeros(steps: np.ndarray) -> None:
    differences = steps / 8  # exact in binary: ties stay ties
    expected = signed_rank_by_enumeration(differences) if differences.any() else 1.0
    assert compare_paired(differences, np.zeros(len(steps)), draws=10).p == pytest.approx(expected)


@pytest.mark.parametrize(("patients", "same"), [(22, 0), (61, 0), (61, 5), (110, 0), (110, 20)])
def test_wilcoxon_equals_scipys(patients: int, same: int) -> None:
    from scipy.stats import wilcoxon

    ours, baseline = dice(patients, 1), dice(patients, 2)
    ours[:same] = baseline[:same]
    assert (
        compare_paired(ours, baseline, draws=10).p
        == wilcoxon(ours, baseline, zero_method="pratt").pvalue
    )


def test_pratts_zeros_by_hand() -> None:
    """|d| = 0 0 1 2 3 4 has ranks 1.5 1.5 3 4 5 6; all signs alike happen in 2 of 2^4 ways. Zeros left out give the same."""
    assert compare_paired(
        np.array([0, 0, 0.1, 0.2, 0.3, 0.4]), np.zeros(6), draws=10
    ).p == pytest.approx(2 / 16)


def test_a_paired_comparison_by_hand() -> None:
    ours, baseline = np.array([0.5, 0.75, 1.0, 0.25]), np.array([0.25, 0.75, 0.5, 0.5])
    found = compare_paired(ours, baseline)
    assert (found.patients, found.wins, found.ties, found.losses, found.mean) == (4, 2, 1, 1, 0.125)
    assert (found.low, found.high) == bootstrap(ours - baseline)


def test_without_any_difference_p_is_one() -> None:
    assert compare_paired(dice(20), dice(20)) == PairedComparison(20, 0.0, 0.0, 0.0, 1.0, 0, 20, 0)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(DICE, DICE),
        min_size=2,
        max_size=25,
        unique_by=lambda pair: abs(pair[0] - pair[1]),
    ),
    st.randoms(),
)
def test_swapping_the_sides_negates_and_the_order_of_patients_plays_no_part(
    pairs: list[tuple[float, float]], random
) -> None:
    ours, baseline = np.array(pairs).T
    one, other = (
        compare_paired(ours, baseline, draws=100),
        compare_paired(baseline, ours, draws=100),
    )
    assert (other.mean, -other.high, -other.low) == pytest.approx(
        (-one.mean, one.low, one.high), abs=1e-12
    )
    assert (other.wins, other.ties, other.losses) == (one.losses, one.ties, one.wins)
    assert other.p == pytest.approx(one.p) and 0 < one.p <= 1
    order = random.sample(range(len(pairs)), len(pairs))
    shuffled = compare_paired(ours[order], baseline[order], draws=100)
    assert (shuffled.low, shuffled.high, shuffled.wins) == (one.low, one.high, one.wins)
    assert (shuffled.mean, shuffled.p) == pytest.approx((one.mean, one.p))


@pytest.mark.parametrize(
    ("ours", "baseline"), [([0.5, 0.6], [0.5]), ([0.5], [0.6]), ([0.5, math.nan], [0.5, 0.6])]
)
def test_pairs_that_are_none_are_refused(ours: list[float], baseline: list[float]) -> None:
    with pytest.raises(DataError):
        compare_paired(np.array(ours), np.array(baseline))


def test_holm_by_hand() -> None:
    """Sorted 0.005 0.01 0.03 0.04: times 4 3 2 1 gives 0.02 0.03 0.06 0.04, and the last must not fall below 0.06."""
    assert adjust_p_values([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_p_values([0.6, 0.7]) == [1.0, 1.0]
    assert (adjust_p_values([]), adjust_p_values([0.03])) == ([], [0.03])


@given(P_VALUES, st.randoms())
def test_holm_equals_its_step_down_procedure_and_keeps_its_order(p: list[float], random) -> None:
    """Holm rejects, from the smallest on, while p <= level / (number not yet rejected); adjusted p-values say the same at any level."""
    adjusted = adjust_p_values(p)
    order = random.sample(range(len(p)), len(p))
    assert adjust_p_values([p[i] for i in order]) == [adjusted[i] for i in order]
    assert all(raw <= one <= 1 for raw, one in zip(p, adjusted, strict=True))
    assert all(adjusted[i] <= adjusted[j] for i in order for j in order if p[i] <= p[j])
    level = random.random()
    rejected = list(
        itertools.takewhile(lambda rank: sorted(p)[rank] * (len(p) - rank) <= level, range(len(p)))
    )
    assert sum(one <= level for one in adjusted) == len(rejected)


@pytest.mark.parametrize("p", [[0.5, 1.5], [-0.1], [0.5, math.nan]])
def test_what_is_no_p_value_is_refused(p: list[float]) -> None:
    with pytest.raises(DataError):
        adjust_p_values(p)


def test_spread_is_the_standard_deviation_not_the_error() -> None:
    assert standard_deviation(np.array([0.5, 0.75, 1.0])) == pytest.approx(0.25)
    assert standard_deviation(np.tile([0.5, 1.0], 500)) == pytest.approx(
        0.25, rel=1e-2
    )  # does not shrink with the number of seeds
    assert math.isnan(standard_deviation(np.array([0.5])))
