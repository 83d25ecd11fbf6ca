"""Splits: disjoint, complete, balanced, and a function of (names, split.seed) alone."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainseg.config import FileSplitConfig, HoldoutConfig, KFoldConfig, SplitConfig
from brainseg.data.split import PARTS, Split, draw
from brainseg.errors import RequestError

COHORTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 10_000)), min_size=7, max_size=150, unique=True).map(
    lambda pairs: [f"TCGA_{chr(65 + institution)}_{number}" for institution, number in pairs]
)


def institutions(names: tuple[str, ...] | list[str]) -> Counter[str]:
    return Counter(name.split("_")[1] for name in names)


@given(COHORTS, st.integers(0, 5), st.randoms())
def test_holdout_is_disjoint_complete_balanced_and_independent_of_order(names: list[str], seed: int, random) -> None:
    split = draw(HoldoutConfig(seed=seed), names)
    assert sorted([*split.train, *split.validation, *split.test]) == sorted(names)
    for part, share in zip(PARTS, (0.70, 0.15, 0.15), strict=True):
        members = getattr(split, part)
        assert abs(len(members) - share * len(names)) < 1
        for institution, count in institutions(names).items():
            assert abs(institutions(members)[institution] - share * count) < 1
    shuffled = names + names[:3]  # a second volume of a patient changes nothing
    random.shuffle(shuffled)
    assert draw(HoldoutConfig(seed=seed), shuffled) == split


@given(COHORTS, st.integers(3, 7), st.integers(0, 3))
def test_kfold_tests_everyone_once_in_balanced_folds(names: list[str], folds: int, seed: int) -> None:
    splits = [draw(KFoldConfig(folds=folds, fold=fold, seed=seed), names) for fold in range(folds)]
    assert sorted(name for split in splits for name in split.test) == sorted(names)
    sizes = [len(split.test) for split in splits]
    assert max(sizes) - min(sizes) <= 1
    for institution in institutions(names):
        counts = [institutions(split.test)[institution] for split in splits]
        assert max(counts) - min(counts) <= 1
    for fold, split in enumerate(splits):
        assert split.validation == splits[(fold + 1) % folds].test


def test_another_seed_is_another_draw() -> None:
    names = [f"TCGA_A_{number}" for number in range(40)]
    assert draw(HoldoutConfig(seed=0), names) != draw(HoldoutConfig(seed=1), names)


def test_too_small_a_cohort_names_the_least_number() -> None:
    with pytest.raises(RequestError, match="at least 7 are needed"):
        draw(HoldoutConfig(), ["A_A_1", "A_A_2", "A_A_3"])
    with pytest.raises(RequestError, match=r"split\.folds=5.*at least 5"):
        draw(KFoldConfig(), ["A_A_1", "A_A_2", "A_A_3"])


def test_the_reference_draw_is_reproduced_and_leaky(reference: Path) -> None:
    volumes = (reference / "patients.txt").read_text().split()
    split = draw(SplitConfig(name="reference"), [name.rsplit("_", 1)[0] for name in volumes])
    stored = json.loads((reference / "split.json").read_text())
    assert split.leaky
    assert list(split.train) == sorted(stored["train"])
    assert list(split.validation) == sorted(stored["validation"])
    assert (len(split.train), len(split.validation), len(set(split.train) & set(split.validation))) == (88, 22, 15)
    assert split.test == ()


def test_a_file_split_must_be_disjoint_and_complete(tmp_path: Path) -> None:
    names = ["A", "B", "C", "D"]
    path = tmp_path / "split.json"

    def drawn(**parts: list[str]) -> Split:
        path.write_text(json.dumps(parts))
        return draw(FileSplitConfig(path=str(path)), names)

    assert drawn(train=["B", "A"], validation=["C"], test=["D"]).train == ("A", "B")
    with pytest.raises(RequestError, match="A: patients in more than one part"):
        drawn(train=["A", "B"], validation=["C", "A"], test=["D"])
    with pytest.raises(RequestError, match="D: patients of the data are in no part"):
        drawn(train=["A", "B"], validation=["C"], test=[])
    with pytest.raises(RequestError, match="E: patients are not in the data"):
        drawn(train=["A", "B"], validation=["C"], test=["D", "E"])
    path.write_text("[]")
    with pytest.raises(RequestError, match="must be a JSON object"):
        draw(FileSplitConfig(path=str(path)), names)


def test_stored_splits_are_checked_by_their_hash() -> None:
    split = draw(HoldoutConfig(), [f"TCGA_A_{number}" for number in range(20)])
    assert Split.from_dict(split.as_dict()) == split
    edited = split.as_dict()
    edited["train"] = edited["train"][1:]
    with pytest.raises(RequestError, match="was edited"):
        Split.from_dict(edited)
