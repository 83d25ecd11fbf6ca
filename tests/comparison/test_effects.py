"""The effect of a setting is the mean over the pairs of configurations that differ in it alone."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scored_runs import scored_run

from brainseg.compare import publish
from brainseg.comparison.compare import compare_runs
from brainseg.comparison.effects import group_by_value, setting_effects
from brainseg.comparison.names import independent_settings
from brainseg.comparison.report import format_comparison
from brainseg.config import CompareConfig, CompareTrackingConfig

NAMES = [f"TCGA_AB_{number:02d}_20000101" for number in range(12)]
OFF = CompareConfig(tracking=CompareTrackingConfig(name="none"), viewer=0)
SETTINGS = ["max_minutes", "model.width"]


def compare(root: Path, dice: Mapping[tuple[int, float], list[float]], folds: int = 1):
    """Compare runs with these Dice by width and minutes, whose patients are split into folds."""
    return compare_runs(
        [
            scored_run(
                root / f"{width}-{minutes}-{fold}",
                dict(zip(NAMES[fold::folds], values[fold::folds], strict=True)),
                width=width,
                max_minutes=minutes,
                fold=fold,
            )
            for (width, minutes), values in dice.items()
            for fold in range(folds)
        ]
    )


def combinations() -> dict[tuple[int, float], list[float]]:
    """All combinations of three widths and two times, with noise of each patient and each run."""
    generator = np.random.default_rng(2)
    patients = generator.uniform(0.4, 0.6, 12)
    gain = {(8, 10.0): 0.0, (16, 10.0): 0.1, (32, 10.0): 0.0}
    gain |= {(width, 30.0): each + 0.05 for (width, _), each in gain.items()}
    return {
        key: (patients + each + generator.normal(0, 0.01, 12)).round(6).tolist()
        for key, each in gain.items()
    }


@pytest.mark.parametrize("folds", [1, 3])
def test_each_value_is_compared_with_the_first_one_patient_by_patient(
    folds: int, tmp_path: Path
) -> None:
    dice = combinations()
    table = setting_effects(compare(tmp_path, dice, folds))
    assert table[["setting", "value", "instead_of", "pairs"]].to_numpy().tolist() == [
        ["max_minutes", "30.0", "10.0", 3],
        ["model.width", "16", "8", 2],
        ["model.width", "32", "8", 2],
    ]
    wide = np.mean([np.subtract(dice[16, each], dice[8, each]) for each in (10.0, 30.0)], axis=0)
    row = table.iloc[1]
    assert row.difference == pytest.approx(wide.mean())
    assert row.low < row.difference < row.high and row.low > 0.08
    assert (row.wins, row.losses, row.p) == (12, 0, pytest.approx(2 / 2**12))
    assert row.p_holm == pytest.approx(3 * row.p), "three rows, equal smallest p-values"
    no_effect = table.iloc[2]
    assert no_effect.low < 0 < no_effect.high and no_effect.p_holm > 0.05


def test_a_setting_counts_only_where_nothing_else_differs(tmp_path: Path) -> None:
    """Width is taken back, then the minutes: 16 is worth 0.1, though the mean of both runs at width 16 is no higher than 8's."""
    given = {(16, 30.0): [0.8] * 12, (8, 30.0): [0.7] * 12, (16, 10.0): [0.6] * 12}
    comparison = compare(tmp_path, given)
    table = setting_effects(comparison).set_index("setting")
    assert table.loc["model.width"].difference == pytest.approx(0.1)
    assert table.loc["max_minutes"].difference == pytest.approx(0.2)
    assert (table.pairs == 1).all()
    groups = group_by_value(comparison, "model.width", SETTINGS)
    assert [sorted(group) for group in groups.values()] == [[("30.0",)], [("10.0",), ("30.0",)]]


def test_a_missing_job_takes_away_only_its_own_pairs(tmp_path: Path) -> None:
    dice = combinations()
    del dice[32, 10.0]
    table = setting_effects(compare(tmp_path, dice))
    assert table[["setting", "value", "pairs"]].to_numpy().tolist() == [
        ["max_minutes", "30.0", 2],
        ["model.width", "16", 2],
        ["model.width", "32", 1],
    ]


def test_without_pairs_there_is_no_effect(tmp_path: Path) -> None:
    assert setting_effects(compare(tmp_path, {(8, 30.0): [0.7] * 12, (16, 10.0): [0.6] * 12})).empty


def test_one_setting_alone_has_no_table_of_its_own(tmp_path: Path) -> None:
    comparison = compare(tmp_path, {(8, 30.0): [0.7] * 12, (16, 30.0): [0.6] * 12})
    assert setting_effects(comparison).empty
    assert "averaged over the others" not in format_comparison(comparison)


def test_settings_that_follow_from_a_choice_are_no_settings_of_their_own() -> None:
    def runs(*typed: str) -> list[Any]:
        return [
            SimpleNamespace(
                settings={"optimizer.name": name, "optimizer.lr": rate, "epochs": epochs},
                facts={"overrides": [f"optimizer={name}", *typed]},
            )
            for name, rate in (("adam", 1e-3), ("sgd", 0.1))
            for epochs in (5, 10)
        ]

    assert independent_settings(runs()) == ["epochs", "optimizer.name"]
    typed = runs("optimizer.lr=0.1")
    assert independent_settings(typed) == ["epochs", "optimizer.lr", "optimizer.name"], (
        "the difference of the optimizers would be charged with that of the learning rates"
    )


def test_the_terminal_the_page_and_the_folder_have_the_table(tmp_path: Path) -> None:
    comparison = compare(tmp_path / "runs", combinations())
    text = publish(comparison, tmp_path / "out", OFF)
    lines = text[text.index("Each setting, averaged over the others:") :].splitlines()
    assert lines[1].split()[:3] == ["value", "instead", "of"]
    assert lines[3].split()[:4] == ["model.width", "16", "8", "2"] and "12:0" in lines[3]
    written = pd.read_csv(tmp_path / "out" / "effects.csv")
    assert written.difference.tolist() == pytest.approx(
        setting_effects(comparison).difference.tolist(), abs=1e-6
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h2>Each setting, averaged over the others</h2>" in page
    # Another comparison in the same folder, which has no such table.
    simple = compare(tmp_path / "two", {(8, 30.0): [0.7] * 12, (16, 30.0): [0.6] * 12})
    publish(simple, tmp_path / "out", OFF)
    assert not (tmp_path / "out" / "effects.csv").exists()
