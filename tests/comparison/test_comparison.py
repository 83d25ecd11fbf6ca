"""Comparison: what is pooled, averaged, paired, refused and left out; the page and the MLflow run that it leaves."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scored_runs import scored_run

from brainseg import compare as command
from brainseg.compare import check_request as check_request
from brainseg.compare import publish, write_comparison
from brainseg.comparison import report
from brainseg.comparison.compare import Comparison, compare_runs
from brainseg.comparison.figures import FIGURES, pareto_front
from brainseg.comparison.names import varying_settings
from brainseg.comparison.report import format_comparison, headline, reader_notes
from brainseg.comparison.runs import ScoredRun
from brainseg.comparison.selection import load_runs
from brainseg.config import CompareConfig, CompareTrackingConfig
from brainseg.core.errors import RequestError
from brainseg.evaluation.statistics import bootstrap, compare_paired

NAMES = [f"TCGA_{'AB'[number % 2]}_{number:02d}_20000101" for number in range(12)]
OFF = CompareConfig(tracking=CompareTrackingConfig(name="none"))


def dice(seed: int, names: list[str] = NAMES) -> dict[str, float]:
    return dict(
        zip(
            names,
            np.random.default_rng(seed).uniform(0.3, 0.9, len(names)).round(6).tolist(),
            strict=True,
        )
    )


def two_widths(root: Path) -> Comparison:
    return compare_runs(
        [scored_run(root / "a", dice(0), width=8), scored_run(root / "b", dice(1), width=16)]
    )


def test_folds_of_several_machines_are_one_configuration(tmp_path: Path) -> None:
    scores = dice(0)
    folds = [{name: scores[name] for name in NAMES[fold::2]} for fold in range(2)]
    for fold, threads in enumerate((1, 4)):
        got = {"device": {"got": f"machine {fold}"}}
        scored_run(
            tmp_path / str(fold),
            folds[fold],
            fold=fold,
            threads=threads,
            overrides=[f"device.threads={threads}"],
            **got,
        )
    comparison = compare_runs(load_runs(None, None, None, tmp_path, None), strict=False)
    (row,) = comparison.table.itertuples()
    assert (row.runs, row.patients, comparison.left_out) == (2, 12, [])
    assert "so their times cannot be compared" in " ".join(comparison.warnings)

    # The same fold on a second device is a comparison of devices, and nothing is pooled.
    scored_run(tmp_path / "2", folds[0], fold=0, threads=4, overrides=["device.threads=4"])
    comparison = compare_runs(load_runs(None, None, None, tmp_path, None), strict=False)
    assert len(comparison.configurations) == 1 and comparison.table.runs.tolist() == [2]
    assert comparison.configurations[0].label == "threads=4"
    assert [label.split()[0] for label, _ in comparison.left_out] == ["threads=1"]


def test_a_failed_fold_that_was_redone_on_another_machine_is_pooled(tmp_path: Path) -> None:
    halves = [NAMES[fold::2] for fold in range(2)]
    scored_run(tmp_path / "0", dice(0, halves[0]), threads=1)
    scored_run(tmp_path / "1", {}, fold=1, threads=1, state="failed")
    scored_run(tmp_path / "2", dice(0, halves[1]), fold=1, threads=4)
    # Another configuration ran on several machines in the same fold, which is its own matter.
    for threads in (1, 7):
        scored_run(tmp_path / f"w{threads}", dice(3), width=16, threads=threads)
    comparison = compare_runs(load_runs(None, None, None, tmp_path, None), strict=False)
    table = comparison.table.set_index("configuration")
    assert set(table.index) == {"width=8", "threads=1 width=16", "threads=7 width=16"}
    assert (table.runs["width=8"], set(table.patients)) == (2, {12})
    assert comparison.left_out == []


def test_devices_of_which_one_alone_finished_are_told_apart(tmp_path: Path) -> None:
    """A comparison of devices whose other jobs failed or still run says so."""
    for threads, state in ((1, "finished"), (4, "failed"), (7, "running")):
        scored_run(
            tmp_path / f"t{threads}",
            dice(0) if state == "finished" else {},
            threads=threads,
            state=state,
        )
    comparison = compare_runs(load_runs(None, None, None, tmp_path, None), strict=False)
    assert [item.label for item in comparison.configurations] == ["threads=1"]
    assert [(label.split()[0], reason) for label, reason in comparison.left_out] == [
        ("threads=4", "failed: it broke"),
        ("threads=7", "running"),
    ]


def test_sessions_of_a_patient_count_as_one_patient(tmp_path: Path) -> None:
    """Scores are means over volumes; intervals and tests are over the patients."""
    volumes = [f"{name}_{session}" for name in NAMES for session in "ab"]
    subjects = {volume: volume[:-2] for volume in volumes}
    runs, singles = [], []
    for width in (8, 16):
        scores = dice(width)
        doubled = {volume: scores[subjects[volume]] for volume in volumes}
        runs.append(scored_run(tmp_path / f"two-{width}", doubled, width=width, subjects=subjects))
        singles.append(scored_run(tmp_path / f"one-{width}", scores, width=width))
    two, one = compare_runs(runs), compare_runs(singles)
    assert (two.volumes, two.patients, one.volumes, one.patients) == (24, 12, 12, 12)
    for column in ("patients", "dice", "dice_low", "dice_high", "p", "wins", "losses"):
        assert two.table[column].tolist() == pytest.approx(one.table[column].tolist(), nan_ok=True)
    assert "of 24 test volumes missed" in headline(two)
    assert "of 12 test patients missed" in headline(one)
    assert any("12 patients (24 volumes)" in note for note in reader_notes(two))
    assert set(two.table.volumes) == {24} and set(one.table.volumes) == {12}

    # A run of an older version does not name the patients of its volumes.
    scores = {volume: dice(8)[subjects[volume]] for volume in volumes}
    older = scored_run(tmp_path / "older", scores, width=8)
    for first, second in ((older, runs[1]), (runs[1], older)):
        mixed = compare_runs([first, second])
        assert (mixed.volumes, mixed.patients) == (24, 12)
        for column in ("patients", "dice_low", "dice_high", "p_holm"):
            expected, values = set(two.table[column].dropna()), set(mixed.table[column].dropna())
            assert sorted(values) == pytest.approx(sorted(expected))


def test_what_was_left_out_puts_no_warning_on_the_others(tmp_path: Path) -> None:
    runs = [scored_run(tmp_path / str(width), dice(width), width=width) for width in (8, 16)]
    few = dice(0, NAMES[:3])
    leaky = scored_run(
        tmp_path / "l", few, width=4, max_minutes=9.0, code={"sha256": "d"}, split={"leaky": True}
    )
    comparison = compare_runs([*runs, leaky], strict=False)
    assert comparison.warnings == [] and len(comparison.left_out) == 1
    assert comparison.budget == compare_runs(runs).budget


@pytest.mark.parametrize("names", [{"root": ".."}, {"root": "."}, {"runs": [".."]}])
def test_a_comparison_is_written_below_comparisons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: dict
) -> None:
    scored_run(tmp_path / "runs" / "a", dice(0))
    scored_run(tmp_path / "runs" / "deeper" / "b", dice(1))
    monkeypatch.chdir(tmp_path / "runs" / "deeper")
    Path("viewer.html").write_text("mine")
    assert command.run(CompareConfig(**names, tracking=OFF.tracking)) == 0
    assert sorted(path.name for path in Path().iterdir()) == ["b", "comparisons", "viewer.html"]
    (folder,) = Path("comparisons").iterdir()
    assert (folder / "report.html").is_file()


def test_a_run_of_a_pooled_configuration_can_be_the_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for fold in range(2):
        for width in (8, 16):
            scored_run(
                tmp_path / f"{width}-{fold}",
                dice(width, NAMES[fold::2]),
                fold=fold,
                width=width,
                threads=1 + fold,
            )
    scored_run(tmp_path / "again", dice(16, NAMES[1::2]), fold=1, width=16, threads=2)
    config = CompareConfig(
        root=str(tmp_path),
        # An earlier repeat of a run that is compared.
        baseline=str(tmp_path / "16-1"),
        output=str(tmp_path / "out"),
        tracking=OFF.tracking,
    )
    assert command.run(config) == 0
    report_text = capsys.readouterr().out
    assert "width=8" in report_text and "threads" not in report_text


def test_folds_are_pooled_into_one_score_a_patient(tmp_path: Path) -> None:
    scores = dice(0)
    runs = [
        scored_run(tmp_path / str(fold), {name: scores[name] for name in NAMES[fold::3]}, fold=fold)
        for fold in range(3)
    ]
    comparison = compare_runs(runs)
    (row,) = comparison.table.itertuples()
    values = np.array(list(scores.values()))
    assert (row.runs, row.patients, comparison.role) == (3, 12, "test")
    assert row.dice == pytest.approx(values.mean()) and row.dice_median == pytest.approx(
        np.median(values)
    )
    assert (row.dice_low, row.dice_high) == pytest.approx(tuple(bootstrap(values)))
    assert row.spread_over_folds == pytest.approx(
        np.std([values[fold::3].mean() for fold in range(3)], ddof=1)
    )
    assert np.isnan(row.spread_over_seeds) and np.isnan(row.p)


def test_seeds_are_averaged_by_patient_before_anything_is_compared(tmp_path: Path) -> None:
    ours = [scored_run(tmp_path / f"a{seed}", dice(seed), seed=seed) for seed in range(3)]
    other = scored_run(tmp_path / "b", dice(9), width=16)
    comparison = compare_runs([*ours, other], baseline=other)
    mean = np.mean([list(dice(seed).values()) for seed in range(3)], axis=0)
    row = comparison.table.set_index("configuration").loc["width=8"]
    expected = compare_paired(mean, np.array(list(dice(9).values())))
    assert (row.difference, row.p, row.wins) == pytest.approx(
        (expected.mean, expected.p, expected.wins)
    )
    assert row.spread_over_seeds == pytest.approx(
        np.std([np.mean(list(dice(seed).values())) for seed in range(3)], ddof=1)
    )
    assert row.runs == 3 and row.patients == 12, "three repeats are no 36 patients"


def test_a_missed_patient_counts_by_the_share_of_seeds_that_missed_it(tmp_path: Path) -> None:
    scores = [dice(0) | {NAMES[0]: 0.01}, dice(0)]
    comparison = compare_runs(
        [scored_run(tmp_path / str(seed), each, seed=seed) for seed, each in enumerate(scores)]
    )
    assert comparison.table.missed.tolist() == [0.5]


def test_p_values_are_corrected_for_all_configurations_of_the_call(tmp_path: Path) -> None:
    base = dice(0)
    better = {
        name: value + 0.05 + 0.001 * place for place, (name, value) in enumerate(base.items())
    }
    runs = [
        scored_run(tmp_path / "a", base),
        scored_run(tmp_path / "b", better, width=16),
        scored_run(tmp_path / "c", dice(5), width=32),
    ]
    table = compare_runs(runs, baseline=runs[0]).table.set_index("configuration")
    assert table.loc["width=16"].p == pytest.approx(2 / 2**12)
    assert table.loc["width=16"].p_holm == pytest.approx(2 * table.loc["width=16"].p), (
        "two comparisons, this the smaller p"
    )
    assert (table.loc["width=16"].wins, table.loc["width=16"].losses) == (12, 0)
    assert np.isnan(table.loc["width=8"].p), "the baseline"


def test_folds_of_different_seeds_are_pooled_without_a_spread_of_seeds(tmp_path: Path) -> None:
    scores = dice(0)
    for fold, seed in enumerate((1, 0)):
        part = {name: scores[name] for name in NAMES[fold::2]}
        scored_run(tmp_path / str(fold), part, fold=fold, seed=seed)
    comparison = compare_runs(load_runs([str(tmp_path)], None, None, tmp_path, None))
    (configuration,) = comparison.configurations
    assert configuration.first_rows.patient.nunique() == len(configuration.first_rows) == 12
    assert {run.config.seed for run in configuration.first_runs.values()} == {0, 1}
    assert np.isnan(comparison.table.iloc[0].spread_over_seeds), "the seeds have other patients"
    publish(comparison, tmp_path / "out", OFF)
    worst = pd.read_csv(tmp_path / "out" / "worst.csv")
    assert worst.dice.min() == pytest.approx(min(scores.values()), abs=1e-6)


def test_only_a_baseline_that_was_not_named_is_said_to_be_picked(tmp_path: Path) -> None:
    runs = [
        scored_run(tmp_path / "a", dice(0)),
        scored_run(tmp_path / "b", dict.fromkeys(NAMES, 0.95), width=16),
    ]
    assert any("picked by these same scores" in note for note in reader_notes(compare_runs(runs)))
    named = compare_runs(runs, baseline=runs[1])
    assert named.baseline is named.configurations[0] and not any(
        "picked" in note for note in reader_notes(named)
    )


def test_the_patients_compared_are_the_baselines(tmp_path: Path) -> None:
    """Beside a configuration on more patients, as a cross-validation in the same experiment."""
    wide = scored_run(tmp_path / "wide", dice(0), width=16)
    few, fewer = (
        scored_run(tmp_path / str(width), dice(width, NAMES[:7]), width=width) for width in (8, 32)
    )
    assert compare_runs([wide, few, fewer], strict=False).patients == 12
    comparison = compare_runs([wide, few, fewer], baseline=few, strict=False)
    assert (
        comparison.patients == 7
        and comparison.baseline.label == "width=8"
        and len(comparison.configurations) == 2
    )
    assert (
        comparison.left_out == [("width=16", comparison.left_out[0][1])]
        and "has also" in comparison.left_out[0][1]
    )
    with pytest.raises(RequestError, match="is not among the runs compared"):
        compare_runs([wide, few], baseline=fewer, strict=False)


def test_other_patients_are_refused_by_name(tmp_path: Path) -> None:
    runs = [
        scored_run(tmp_path / "a", dice(0)),
        scored_run(tmp_path / "b", dice(0, NAMES[:11]), width=16),
    ]
    with pytest.raises(RequestError, match=NAMES[11]):
        compare_runs(runs)
    comparison = compare_runs(runs, strict=False)
    assert [one.label for one in comparison.configurations] == ["width=8"]
    assert NAMES[11] in comparison.left_out[0][1]


def test_a_seed_without_all_its_folds_is_refused(tmp_path: Path) -> None:
    halves = NAMES[:6], NAMES[6:]
    cells = [(seed, fold) for seed in range(2) for fold in range(2)]
    runs = [
        scored_run(tmp_path / f"{seed}{fold}", dice(0, halves[fold]), seed=seed, fold=fold)
        for seed, fold in cells
    ]
    assert compare_runs(runs).table.runs.tolist() == [4]
    for strict in (True, False):
        with pytest.raises(RequestError, match="not every seed has every fold"):
            compare_runs(runs[:3], strict=strict)


@pytest.mark.parametrize("state", ["failed", "killed", "interrupted", "running"])
def test_unfinished_runs_are_named_with_their_reason(tmp_path: Path, state: str) -> None:
    stored = "running" if state == "interrupted" else state
    runs = [
        scored_run(tmp_path / "a", dice(0)),
        scored_run(tmp_path / "b", {}, width=16, state=stored),
    ]
    if state == "interrupted":  # its process, on this host, is gone
        import socket

        status = json.loads((tmp_path / "b" / "status.json").read_text()) | {
            "host": socket.gethostname(),
            "pid": 2**22 + 1,
        }
        (tmp_path / "b" / "status.json").write_text(json.dumps(status))
    comparison = compare_runs(runs, strict=False)
    ((name, why),) = comparison.left_out
    assert "width=16" in name and state in why
    assert any(state in note for note in reader_notes(comparison))
    with pytest.raises(RequestError, match=state):
        compare_runs(runs)


def test_other_data_are_refused(tmp_path: Path) -> None:
    other = scored_run(
        tmp_path / "b", dice(0), width=16, data={"path": "x", "fingerprint": "e" * 64}
    )
    with pytest.raises(RequestError, match="different data"):
        compare_runs([scored_run(tmp_path / "a", dice(0)), other])


def test_without_test_patients_it_is_exploratory(tmp_path: Path) -> None:
    runs = [
        scored_run(tmp_path / "a", {}, dice(0)),
        scored_run(tmp_path / "b", dice(3), dice(1), width=16),
    ]
    comparison = compare_runs(runs)
    assert comparison.role == "validation" and comparison.exploratory
    assert comparison.table.dice.max() == pytest.approx(
        max(np.mean(list(dice(seed).values())) for seed in (0, 1))
    )
    assert any(note.startswith("Exploratory") for note in reader_notes(comparison))


def test_a_leaky_split_and_other_code_are_warned_of(tmp_path: Path) -> None:
    other = scored_run(tmp_path / "b", dice(1), width=16, code={"sha256": "d" * 64})
    runs = [scored_run(tmp_path / "a", dice(0), split={"leaky": True}), other]
    warnings = " ".join(compare_runs(runs).warnings)
    assert "LEAKY" in warnings and "different versions of the code" in warnings


def device_run(folder: Path, device: str, precision: str, speed: float) -> ScoredRun:
    """A scored run with `device=...` typed, so many images per second, and a slow first epoch."""
    run = scored_run(folder, dice(0), device={"got": device}, overrides=[f"device={device}"])
    config = OmegaConf.load(run.path / "config.yaml")
    config.device.precision = precision
    OmegaConf.save(config, run.path / "config.yaml")
    rows = [
        {
            "val/dice": 0.5,
            "speed/epoch_seconds": 9.0 if epoch == 0 else 200 / speed,
            "speed/images_per_second": 1.0 if epoch == 0 else speed,
        }
        for epoch in range(3)
    ]
    lines = [json.dumps({"epoch": epoch, "metrics": row}) for epoch, row in enumerate(rows)]
    (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return run


def test_devices_are_compared_by_their_speed(tmp_path: Path) -> None:
    """Images per second and seconds per epoch stand beside Dice, and only where devices are compared."""
    comparison = compare_runs(
        [
            device_run(tmp_path / "a", "cpu", "float32", 100.0),
            device_run(tmp_path / "b", "cpu_bf16", "bfloat16", 250.0),
        ]
    )
    assert comparison.warnings == []
    head, *rows = format_comparison(comparison).split("\n\n")[1].splitlines()
    assert re.search(r" seconds  images/s  s/epoch  ", head)
    assert {row.split()[0]: re.search(r" (\d+) +(\d\.\d) ", row).groups() for row in rows} == {
        "device=cpu": ("100", "2.0"),
        "device=cpu_bf16": ("250", "0.8"),
    }
    elsewhere = compare_runs(
        [
            scored_run(tmp_path / name, dice(0), width=width, device={"got": name})
            for width, name in ((8, "cuda"), (16, "cpu"))
        ]
    )
    assert "their times cannot be compared" in " ".join(elsewhere.warnings)
    assert "images/s" not in format_comparison(elsewhere)


def test_equal_chances_are_named(tmp_path: Path) -> None:
    pairs = {"passes": [None, None], "time": [2.0, 2.0], "neither": [2.0, 3.0]}
    found = {}
    for name, minutes in pairs.items():
        given = zip((8, 16), minutes, strict=True)
        runs = [
            scored_run(tmp_path / f"{name}{width}", dice(width), width=width, max_minutes=each)
            for width, each in given
        ]
        found[name] = compare_runs(runs).budget
    assert (
        "same passes: 30 epochs" in found["passes"]
        and "same time: 2.0 minutes" in found["time"]
        and "neither" in found["neither"]
    )


@given(st.lists(st.tuples(st.floats(1, 100), st.floats(0, 1)), min_size=1, max_size=20))
@settings(max_examples=50)
def test_nothing_beats_the_pareto_front(points: list[tuple[float, float]]) -> None:
    cost, value = (np.array(part) for part in zip(*points, strict=True))
    front = pareto_front(cost, value)
    for index in range(len(points)):
        beaten = any(
            (cost[other] <= cost[index]) and (value[other] >= value[index]) for other in front
        )
        assert beaten, "every point is on the front or no better than one of it"
    for one in front:
        assert not ((cost <= cost[one]) & (value > value[one])).any()


def test_gather_takes_folders_folders_of_them_and_each_once(tmp_path: Path) -> None:
    runs = [scored_run(tmp_path / name, dice(0)) for name in "ba"]
    assert load_runs([str(tmp_path), str(runs[0].path)], None, None, "none", None) == runs, (
        "the oldest first"
    )
    with pytest.raises(RequestError, match="no run is below it"):
        load_runs(None, None, None, tmp_path / "empty", None)
    with pytest.raises(RequestError, match="no run"):
        load_runs([str(tmp_path / "nothing")], None, None, tmp_path, None)


def test_every_figure_is_drawn_or_has_nothing_to_draw(tmp_path: Path) -> None:
    runs = [scored_run(tmp_path / str(width), dice(width), width=width) for width in (8, 16, 32)]
    of_one, of_three = compare_runs(runs[:1]), compare_runs(runs)
    assert {name for name, draw in FIGURES.items() if draw(of_one) is None} == {
        "differences",
        "main_effects",
        "cost",
    }
    assert all(draw(of_three) is not None for draw in FIGURES.values())
    assert varying_settings([one.runs[0].settings for one in of_three.configurations]) == [
        "model.width"
    ]


def test_the_page_holds_all_it_shows(tmp_path: Path) -> None:
    comparison = two_widths(tmp_path / "runs")
    publish(comparison, tmp_path / "out", OFF)
    page = (tmp_path / "out" / "report.html").read_text()
    assert headline(comparison) in page
    assert (
        page.count("data:image/png;base64,")
        == len(list((tmp_path / "out" / "pictures").glob("*.png")))
        >= 4
    )
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page), "nothing is fetched"
    written = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert written.dice.tolist() == pytest.approx(comparison.table.dice.tolist(), abs=1e-6)
    every = pd.read_csv(tmp_path / "out" / "patients.csv")
    assert every.groupby("configuration").dice.mean().to_dict() == pytest.approx(
        dict(zip(comparison.table.configuration, comparison.table.dice, strict=True)), abs=1e-6
    )
    assert {"failures.csv", "worst.csv"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "width=16" in format_comparison(comparison)


def test_the_table_is_written_for_a_paper(tmp_path: Path) -> None:
    publish(two_widths(tmp_path / "runs"), tmp_path / "out", OFF)
    heading, rule, *rows = (tmp_path / "out" / "comparison.md").read_text().splitlines()[:4]
    assert heading.startswith("|  | runs | dice | 95 % interval | median | missed |")
    assert rule == "|" + " --- |" * (heading.count("|") - 1)
    assert [row.split(" | ")[0] for row in rows] == ["| width=16", "| width=8"]
    tex = (tmp_path / "out" / "comparison.tex").read_text()
    assert tex.startswith("\\begin{tabular}{l") and tex.count("\\\\") == 3
    assert r"95 \% interval" in tex and "width=16 & " in tex


def test_runs_without_the_newer_columns_are_compared_with_runs_that_have_them(
    tmp_path: Path,
) -> None:
    """Runs of older versions measured neither NSD nor anything in 3-D."""
    new, old = (scored_run(tmp_path / str(width), dice(width), width=width) for width in (8, 16))
    rows = pd.read_csv(new.path / "patients.csv").assign(
        nsd=0.75, hd95_3d=[4.0, 6.0] * 4 + [5.0] * (len(new.patients) - 8), volume_error_ml=-2.0
    )
    rows.to_csv(new.path / "patients.csv", index=False)
    runs = [ScoredRun(run.path) for run in (new, old)]
    publish(compare_runs(runs), tmp_path / "out", OFF)
    table = pd.read_csv(tmp_path / "out" / "comparison.csv").set_index("configuration")
    assert table.loc["width=8", ["nsd", "hd95_3d_median", "volume_error_ml"]].tolist() == [
        0.75,
        5,
        2,
    ]
    assert table.loc["width=16", ["nsd", "hd95_3d_median", "volume_error_ml"]].isna().all()
    # A fold without the columns leaves them out of its configuration.
    fold = scored_run(tmp_path / "fold", {"TCGA_Z_1_1": 0.5}, fold=1)
    pooled = compare_runs([runs[0], fold]).table
    assert "nsd" not in pooled and pooled.patients.item() == len(dice(8)) + 1


def test_names_are_escaped_in_the_page(tmp_path: Path) -> None:
    run = scored_run(
        tmp_path / "runs" / "a", {"TCGA_<script>alert(1)</script>_1_1": 0.5, "TCGA_B_2_1": 0.6}
    )
    publish(compare_runs([run]), tmp_path / "out", OFF)
    assert "<script>" not in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser here (chromium)")
def test_the_page_opens_in_a_browser_with_its_pictures(tmp_path: Path) -> None:
    publish(two_widths(tmp_path / "runs"), tmp_path / "out", OFF)
    page = tmp_path / "out" / "report.html"
    probe = "<script>onload=()=>{document.title='drawn '+[...document.images].filter(i=>i.naturalWidth>200).length}</script></body>"
    page.write_text(page.read_text().replace("</body>", probe))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    shown = subprocess.run(
        ["chromium", *options, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    count = len(list((tmp_path / "out" / "pictures").glob("*.png")))
    assert f"<title>drawn {count}</title>" in shown


def test_runs_that_repeat_one_another_are_refused_by_name(tmp_path: Path) -> None:
    """Their patients would count twice."""
    runs = [scored_run(tmp_path / name, dice(0)) for name in "ab"]
    with pytest.raises(
        RequestError, match=r"a,.*b: the same configuration, seed and fold; name one of them"
    ):
        compare_runs(runs)


def test_a_comparison_takes_the_place_of_no_runs_scores_and_leaves_no_picture_of_another(
    tmp_path: Path,
) -> None:
    runs = [scored_run(tmp_path / str(width), dice(width), width=width) for width in (8, 16)]
    config = CompareConfig(runs=[str(run.path) for run in runs], output=str(runs[0].path))
    with pytest.raises(RequestError, match="already contains a run, and its scores would be"):
        check_request(config)
    config = CompareConfig(tracking=CompareTrackingConfig(name="none"))
    publish(compare_runs(runs), tmp_path / "out", config)
    assert (tmp_path / "out" / "pictures" / "differences.png").is_file()
    (tmp_path / "out" / "viewer.html").write_text("of another comparison")
    publish(compare_runs(runs[:1]), tmp_path / "out", config)
    assert (
        not (tmp_path / "out" / "pictures" / "differences.png").exists()
        and not (tmp_path / "out" / "viewer.html").exists()
    )


def test_one_patient_gives_no_interval_no_test_and_one_baseline(
    tmp_path: Path, drawn: list
) -> None:
    runs = [
        scored_run(tmp_path / f"{width}", {NAMES[0]: dice}, width=width)
        for width, dice in ((8, 0.5), (16, 0.75))
    ]
    comparison = compare_runs(runs, baseline=runs[0])
    shown = report.format_comparison(comparison)
    assert (
        "(95 % interval none)" in shown
        and "One patient gives neither an interval nor a test" in shown
    )
    assert shown.count("baseline") == 1 and "+0.250" in shown
    _, tables = write_comparison(comparison, tmp_path / "compared", None)
    report.write_page(tmp_path / "page.html", comparison, {}, tables, "made by a test")
    texts = [label.get_text() for figure in drawn for axes in figure.axes for label in axes.texts]
    page = (tmp_path / "page.html").read_text()
    for said in (shown, page, *texts, (tmp_path / "compared" / "comparison.csv").read_text()):
        assert not re.search(r"\bnan\b", said, re.IGNORECASE), said[:300]


def test_memory_stands_beside_the_seconds_and_notes_below_the_table(tmp_path: Path) -> None:
    noted = scored_run(tmp_path / "a", dice(8), width=8, note="a test\nof notes", tags=["pilot"])
    measured = scored_run(tmp_path / "b", dice(16), width=16)
    rows = [json.loads(line) for line in (noted.path / "metrics.jsonl").read_text().splitlines()]
    for row, memory in zip(rows, (1.0, 2.5, 2.0), strict=True):
        row["metrics"]["system/memory_gb"] = memory
    (noted.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows[0]["metrics"]["system/gpu_memory_gb"] = 0.5
    (measured.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    unmeasured = scored_run(tmp_path / "c", dice(32), width=32)
    comparison = compare_runs([ScoredRun(run.path) for run in (noted, measured, unmeasured)])
    memory = comparison.table.set_index("configuration").memory_gb
    # On a GPU its memory counts, not that of the process.
    assert memory["width=8"] == 2.5 and memory["width=16"] == 0.5 and math.isnan(memory["width=32"])
    text = report.format_comparison(comparison)
    assert "seconds  memory (GB)" in text and "Note on a: a test of notes" in text
    for run in (measured, unmeasured):
        run.folder.annotate("a test of notes")
    comparison = compare_runs([ScoredRun(run.path) for run in (noted, measured, unmeasured)])
    assert "Note on all runs: a test of notes" in report.format_comparison(comparison)
