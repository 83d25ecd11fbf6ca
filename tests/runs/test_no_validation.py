"""Training on everybody but the test patients: the last epoch counts, and what needs validation is refused."""

import json
from pathlib import Path

import pytest

from brainseg import train
from brainseg.cli.main import run_command
from brainseg.comparison.compare import compare_runs
from brainseg.comparison.selection import load_runs
from brainseg.evaluation.history import best_row
from brainseg.runs import checkpoint

TINY = [
    *("data.phantom.patients=10", "data.phantom.slices=6", "data.phantom.size=32"),
    *("model.depth=2", "model.width=4", "epochs=3", "device=cpu", "tracking=none"),
]
NONE = ["split=kfold", "split.validation=none"]


def call(*overrides: str) -> int:
    with pytest.raises(SystemExit) as stop:
        run_command(
            "train",
            train.run,
            train.check_request,
            [*TINY, *overrides],
            finish=train.summarise_sweep,
        )
    return int(stop.value.code or 0)


def test_the_last_weights_are_kept_and_tested(empty_folder: Path, capsys) -> None:
    assert call(*NONE, "output=run", "optimizer.lr=0.01") == 0
    shown = capsys.readouterr().out
    assert "0 validation patients" in shown and "best" not in shown, shown
    assert "Scores of the last epoch" in shown
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["best"] == {"epoch": 2} and "test/dice" in summary["metrics"]
    assert not any(name.startswith("val/") for name in summary["metrics"])
    best, last = (checkpoint.load(Path(f"run/checkpoints/{name}.pt")) for name in ("best", "best"))
    assert best["step"] == last["step"] == best["total_steps"]
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert best_row(rows) == rows[-1]
    roles = Path("run/patients.csv").read_text()
    assert "test" in roles and "validation" not in roles


def test_a_network_for_others_is_trained_on_all_patients(empty_folder: Path, capsys) -> None:
    assert call("split.train=1", "split.validation=0", "split.test=0", "output=run") == 0
    assert "No patient was scored" in capsys.readouterr().out
    assert json.loads(Path("run/split.json").read_text())["test"] == []
    assert Path("run/checkpoints/best.pt").is_file()


@pytest.mark.parametrize(
    ("overrides", "setting"),
    [
        (["patience=2"], "patience=2: depends on val/dice"),
        (["scheduler=plateau"], "scheduler=plateau: depends on val/dice"),
        (["-m", "model.width=4,8"], "split=kfold: has no validation patients, by which a sweep"),
    ],
)
def test_what_needs_validation_is_refused_in_one_line(
    empty_folder: Path, capsys, overrides: list[str], setting: str
) -> None:
    assert call(*NONE, *overrides) == 2
    message = capsys.readouterr().err
    assert setting in message and message.count("\n") == 1, message
    assert not Path("runs").exists()


def test_a_cross_validation_needs_none(empty_folder: Path, capsys) -> None:
    """A sweep over folds repeats one configuration and chooses nothing. A run without scores is left out of a comparison."""
    assert call("split.train=1", "split.validation=0", "split.test=0", "epochs=1") == 0
    assert call(*NONE, "-m", "split.fold=0,1", "epochs=1") == 0
    shown = capsys.readouterr().out
    assert "2 jobs: 2 finished" in shown and "report.html" in shown
    comparison = compare_runs(load_runs(None, None, None, "runs", None), strict=False)
    assert comparison.role == "test" and comparison.patients == 4
    assert [reason for _, reason in comparison.left_out] == ["scored no patient"]
    (summary,) = Path("runs/sweeps").glob("*/comparison.csv")
    assert "test" in summary.with_name("report.html").read_text()
    assert not (summary.parent / "pictures" / "curves.png").exists()


def test_a_sweep_without_any_scores_says_so(empty_folder: Path, capsys) -> None:
    assert call(*NONE, "-m", "split.fold=0,1", "epochs=1", "test=no") == 0
    assert "no comparison: runs=2: none of these runs is finished" in capsys.readouterr().out
