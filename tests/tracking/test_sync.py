"""`python -m brainseg.sync`: which run folders it brings over, and what it says."""

import subprocess
import sys
from pathlib import Path

import pytest
from tracked_runs import closed_port, the_run, write_run

from brainseg import sync

ROOT = Path(__file__).resolve().parents[2]


def test_sync_finds_runs_reports_each_and_counts_failures(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    good = [write_run(tmp_path / "runs" / "sweep" / name, store, uid=name) for name in ("a", "b")]
    assert sync.run([str(tmp_path / "runs"), str(good[0])]) == 0
    assert "2 of 2 runs are in MLflow" in capsys.readouterr().out
    write_run(tmp_path / "runs" / "c", closed_port(), uid="c")
    (tmp_path / "runs" / "c" / "status.json").unlink()
    assert sync.run([str(tmp_path / "runs")]) == 1
    said = capsys.readouterr()
    assert "2 of 3 runs are in MLflow, 1 failed" in said.out and "status.json" in said.err


def test_sync_takes_runs_to_another_store(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = write_run(tmp_path / "run", closed_port())
    assert sync.run([str(folder)]) == 1
    remedy = "for another store than that in its run.json, add tracking.uri=URI"
    assert remedy in capsys.readouterr().err
    assert sync.run([str(folder), f"tracking.uri={store}"]) == 0
    assert the_run(store).info.run_name == "depth=4"


@pytest.mark.parametrize(
    "arguments", [["nowhere"], ["tracking.url=x"], ["tracking.uri=mlruns"], []]
)
def test_sync_refuses_a_wrong_request_in_one_line(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sync.run(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_package_is_imported_without_mlflow() -> None:
    heavy = "{'mlflow', 'pandas', 'torch', 'matplotlib'}"
    code = f"import sys, brainseg.sync, brainseg.tracking.mirror; print(sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
