"""Splits: disjoint, complete, balanced, and a function of (names, split.seed) alone."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hydra import initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from brainseg.config import (
    FileSplitConfig,
    HoldoutConfig,
    KFoldConfig,
    SplitConfig,
    TrainConfig,
    register_schema,
)
from brainseg.config.compose import CONFIGS, compose_job
from brainseg.core.errors import RequestError
from brainseg.data.split import PARTS, Split, make_split

EXAMPLES = [50, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
SHARES = [(0.70, 0.15, 0.15), (0.6, 0.2, 0.2), (0.8, 0.1, 0.1), (0.34, 0.33, 0.33), (0.8, 0.2, 0.0)]


@st.composite
def cohorts(draw, least: int = 10) -> list[str]:
    """Names in any order, at least `least` of them: institutions from one patient to most of the cohort, some names without any."""
    kinds = draw(
        st.lists(
            st.sampled_from(["TCGA_CS", "TCGA_DU", "TCGA_HT", "TCGA_a b", "SITE_9", "lone"]),
            min_size=least,
            max_size=150,
        )
    )
    numbers = draw(st.permutations(range(len(kinds))))
    return [
        f"{kind}_{number:04}" if kind != "lone" else f"lone{number}"
        for kind, number in zip(kinds, numbers, strict=True)
    ]


def institutions(names: tuple[str, ...] | list[str]) -> Counter[str]:
    return Counter(name.split("_")[1] if "_" in name else "" for name in names)


def drawn_again(config: SplitConfig, names: list[str], random) -> Split:
    """The same draw after everything that must not matter: another `seed`, another listing order, second volumes, used-up generators."""
    np.random.seed(random.randrange(2**32))
    listed = names + random.sample(names, 3)
    random.shuffle(listed)
    return make_split(TrainConfig(seed=random.randrange(2**31), split=config).split, listed)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_holdout_is_disjoint_complete_balanced_and_independent_of_order_and_seed(
    examples: int,
) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(
        cohorts(),
        st.integers(0, 2**32 - 1),
        st.sampled_from(SHARES),
        st.randoms(use_true_random=False),
    )
    def holds(names: list[str], seed: int, shares: tuple[float, float, float], random) -> None:
        config = HoldoutConfig(seed=seed, train=shares[0], validation=shares[1], test=shares[2])
        split = make_split(config, names)
        assert sorted([*split.train, *split.validation, *split.test]) == sorted(names)
        for part, share in zip(PARTS, shares, strict=True):
            members = getattr(split, part)
            assert abs(len(members) - share * len(names)) < 1
            assert bool(members) == (share > 0)
            for institution, count in institutions(names).items():
                assert abs(institutions(members)[institution] - share * count) < 1
        assert drawn_again(config, names, random) == split

    holds()


@pytest.mark.parametrize("examples", EXAMPLES)
def test_kfold_tests_everyone_once_in_balanced_folds_independent_of_order_and_seed(
    examples: int,
) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(
        cohorts(), st.integers(3, 10), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False)
    )
    def holds(names: list[str], folds: int, seed: int, random) -> None:
        configs = [KFoldConfig(folds=folds, fold=fold, seed=seed) for fold in range(folds)]
        splits = [make_split(config, names) for config in configs]
        assert sorted(name for split in splits for name in split.test) == sorted(names)
        sizes = [len(split.test) for split in splits]
        assert max(sizes) - min(sizes) <= 1
        counts = [institutions(split.test) for split in splits]
        for institution in institutions(names):
            of_fold = [count[institution] for count in counts]
            assert max(of_fold) - min(of_fold) <= 1
        for fold, split in enumerate(splits):
            assert split.validation == splits[(fold + 1) % folds].test
            assert sorted([*split.train, *split.validation, *split.test]) == sorted(names)
        assert drawn_again(configs[-1], names, random) == splits[-1]

    holds()


def test_the_training_seed_reaches_no_draw() -> None:
    names = [f"TCGA_A_{number}" for number in range(40)]
    register_schema()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for kind in ("holdout", "kfold"):
            one, other, redrawn = (
                make_split(compose_job("train", [f"split={kind}", setting]).split, names)
                for setting in ("seed=0", "seed=1", "split.seed=1")
            )
            assert one == other != redrawn


def test_another_seed_is_another_draw() -> None:
    names = [f"TCGA_A_{number}" for number in range(40)]
    assert make_split(HoldoutConfig(seed=0), names) != make_split(HoldoutConfig(seed=1), names)


@pytest.mark.parametrize(
    ("config", "least"),
    [
        (HoldoutConfig(), 7),
        (HoldoutConfig(train=0.6, validation=0.2, test=0.2), 5),
        (HoldoutConfig(train=0.9, validation=0.1, test=0.0), 10),
        (KFoldConfig(), 5),
        (KFoldConfig(folds=22, fold=21), 22),
        (SplitConfig(name="reference"), 5),
    ],
)
def test_too_small_a_cohort_names_the_least_number(config: SplitConfig, least: int) -> None:
    """The number it names is the one from which it draws, whatever the institutions."""
    for count in range(least + 2):
        for institutions_there in (1, 2, count + 1):
            names = [f"TCGA_{i % institutions_there}_{i}" for i in range(count)]
            if count < least:
                with pytest.raises(
                    RequestError,
                    match=rf"split.*{count} patients.*at least {least} are needed.*; \w+",
                ):
                    make_split(config, names)
            else:
                split = make_split(config, names)
                assert (
                    split.train
                    and split.validation
                    and (split.test or getattr(config, "test", 0) == 0)
                )


def test_a_split_that_cannot_train_is_refused() -> None:
    with pytest.raises(RequestError, match=r"split\.train=0.*training needs patients"):
        make_split(
            HoldoutConfig(train=0.0, validation=0.5, test=0.5),
            [f"TCGA_A_{number}" for number in range(40)],
        )


def test_a_split_without_validation_trains_on_everybody_else() -> None:
    names = [f"TCGA_{number % 3}_{number}" for number in range(40)]
    for fold in range(5):
        usual, without = (
            make_split(KFoldConfig(folds=5, fold=fold, validation=validation), names)
            for validation in ("next", "none")
        )
        assert without.test == usual.test and without.validation == ()
        assert sorted(without.train) == sorted(usual.train + usual.validation)
    assert make_split(KFoldConfig(folds=2, fold=1, validation="none"), names).train
    with pytest.raises(RequestError, match=r"split\.folds=2: must be at least 3"):
        KFoldConfig(folds=2)
    with pytest.raises(RequestError, match=r"split\.validation=x: must be one of next, none"):
        KFoldConfig(validation="x")
    holdout = make_split(HoldoutConfig(train=0.8, validation=0.0, test=0.2), names)
    assert holdout.validation == () and (len(holdout.train), len(holdout.test)) == (32, 8)
    alone = make_split(HoldoutConfig(train=1.0, validation=0.0, test=0.0), names)
    assert alone.train == tuple(sorted(names)) and alone.test == ()


@given(cohorts(least=5), st.randoms(use_true_random=False))
def test_the_reference_draw_is_marked_whatever_it_shares(names: list[str], random) -> None:
    split = make_split(SplitConfig(name="reference"), names)
    assert split.leaky and split.test == ()
    assert (len(split.train), len(split.validation)) == (
        int(0.8 * len(names)),
        int(0.2 * len(names)),
    )
    assert set(split.train) | set(split.validation) <= set(names)
    assert drawn_again(SplitConfig(name="reference"), names, random) == split


def test_the_reference_draw_is_reproduced_and_leaky(reference: Path) -> None:
    volumes = (reference / "patients.txt").read_text().split()
    split = make_split(SplitConfig(name="reference"), [name.rsplit("_", 1)[0] for name in volumes])
    stored = json.loads((reference / "split.json").read_text())
    assert split.leaky
    assert list(split.train) == sorted(stored["train"])
    assert list(split.validation) == sorted(stored["validation"])
    assert (
        len(split.train),
        len(split.validation),
        len(set(split.train) & set(split.validation)),
    ) == (88, 22, 15)
    assert split.test == ()


def test_a_file_split_must_be_disjoint_and_complete(tmp_path: Path) -> None:
    names = ["A", "B", "C", "D"]
    path = tmp_path / "split.json"

    def drawn(**parts: list[str]) -> Split:
        path.write_text(json.dumps(parts))
        return make_split(FileSplitConfig(path=str(path)), names)

    assert drawn(train=["B", "A"], validation=["C"], test=["D"]).train == ("A", "B")
    with pytest.raises(RequestError, match="A: patients in more than one part"):
        drawn(train=["A", "B"], validation=["C", "A"], test=["D"])
    with pytest.raises(RequestError, match="D: patients of the data are in no part"):
        drawn(train=["A", "B"], validation=["C"], test=[])
    config = FileSplitConfig(path=str(path), unlisted="leave_out")
    split = make_split(config, names)
    assert (split.train, split.validation, split.test) == (("A", "B"), ("C",), ())
    assert split.role("D") == "unknown", "a patient in no list is not used"
    with pytest.raises(
        RequestError, match=r"split\.unlisted=drop: must be one of error, leave_out"
    ):
        FileSplitConfig(path=str(path), unlisted="drop")
    with pytest.raises(RequestError, match="E: patients are not in the data"):
        drawn(train=["A", "B"], validation=["C"], test=["D", "E"])
    path.write_text("[]")
    with pytest.raises(RequestError, match="must be a JSON object"):
        make_split(FileSplitConfig(path=str(path)), names)


def test_stored_splits_are_checked_by_their_hash() -> None:
    split = make_split(HoldoutConfig(), [f"TCGA_A_{number}" for number in range(20)])
    assert Split.from_dict(split.as_dict()) == split
    edited = split.as_dict()
    edited["train"] = edited["train"][1:]
    with pytest.raises(RequestError, match="was edited"):
        Split.from_dict(edited)
    with pytest.raises(
        RequestError, match="may be leaky"
    ):  # else parts that share patients would pass as its own
        Split.from_dict({**split.as_dict(), "leaky": True})
