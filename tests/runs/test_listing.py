"""The table of runs: the numbers of the folders, in the order and the form that were asked for."""

import csv
import io
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from brainseg.runs import __main__ as command
from brainseg.runs.sweep_record import write_record


def copy_run(project: Path, target: Path, created: int, *overrides: str, **status: object) -> Path:
    """A copy of a real run, with other typed settings and another state."""
    shutil.copytree(project / "run", target)
    facts = json.loads((target / "run.json").read_text())
    facts |= {"created": created, "overrides": [*facts["overrides"], *overrides]}
    (target / "run.json").write_text(json.dumps(facts))
    stored = json.loads((target / "status.json").read_text())
    (target / "status.json").write_text(json.dumps(stored | status))
    return target


@pytest.fixture
def runs(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs: a finished one, one that runs in this process, and one whose process is gone."""
    host = socket.gethostname()
    copy_run(project, tmp_path / "runs" / "b-finished", 1, "sweep=seeds", "seed=1")
    alive = {"state": "running", "host": host, "pid": os.getpid()}
    running = copy_run(project, tmp_path / "runs" / "a-running", 2, "seed=2", **alive)
    # Two of five epochs of ten seconds are done.
    rows = [json.loads(line) for line in (running / "metrics.jsonl").read_text().splitlines()][:2]
    for row, dice in zip(rows, (0.75, 0.5), strict=True):
        row["metrics"] |= {"speed/epoch_seconds": 60.0, "val/dice": dice}
    (running / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gone = {"state": "running", "host": host, "pid": 2**22 + 1}
    copy_run(project, tmp_path / "runs" / "deep" / "c-gone", 3, "seed=1", "output=x", **gone)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def show(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    """The printed table, cell by cell."""
    assert command.run(list(arguments)) == 0
    return [
        [cell.strip() for cell in line.split("  ") if cell.strip()]
        for line in capsys.readouterr().out.splitlines()
    ]


def test_a_row_has_the_numbers_of_its_run(
    runs: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((project / "run" / "summary.json").read_text())
    scores = [f"{summary['best']['val/dice']:.3f}", f"{summary['metrics']['test/dice']:.3f}"]
    header, *rows = show(capsys)
    assert header == ["run", "state", "epoch", "val/dice", "test/dice", "left", "settings"]
    assert rows == [
        ["runs/b-finished", "finished", "5", *scores, "seed=1 sweep=seeds"],
        ["runs/a-running", "running", "2", "0.750", "3 min", "seed=2"],
        ["runs/deep/c-gone", "interrupted", "5", scores[0], "seed=1"],
    ]


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("run", ["a-running", "b-finished", "c-gone"]),
        ("state", ["b-finished", "c-gone", "a-running"]),
        ("epoch", ["a-running", "b-finished", "c-gone"]),
        ("test/dice", ["a-running", "c-gone", "b-finished"]),
        ("left", ["b-finished", "c-gone", "a-running"]),
    ],
)
def test_the_order(
    runs: Path, capsys: pytest.CaptureFixture[str], sort: str, names: list[str]
) -> None:
    assert [Path(row[0]).name for row in show(capsys, f"sort={sort}")[1:]] == names


def test_one_state_one_sweep_and_csv(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [row[0] for row in show(capsys, "state=running")[1:]] == ["runs/a-running"]
    assert show(capsys, "state=failed") == [["0 of 3 runs are failed"]]
    job = {"overrides": ["seed=1"], "folder": "runs/b-finished", "state": "finished", "reason": ""}
    write_record(Path("runs"), "seed-123456", [job])
    for name in ("last", "seed-123456"):
        assert [row[0] for row in show(capsys, f"sweep={name}")[1:]] == ["runs/b-finished"]
    assert command.run(["format=csv", "sort=run"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["run"] for row in rows] == ["runs/a-running", "runs/b-finished", "runs/deep/c-gone"]
    assert rows[0]["state"] == "running" and rows[0]["test/dice"] == ""


def test_the_settings_of_two_runs_side_by_side(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = runs / "a-running" / "config.yaml"
    config.write_text(config.read_text().replace("depth: 2", "depth: 3"))
    assert show(capsys, "diff=[runs/b-finished,runs/a-running]") == [
        ["setting", "runs/b-finished", "runs/a-running"],
        ["model.depth", "2", "3"],
    ]
    assert show(capsys, "diff=runs/b-finished,runs/deep/c-gone") == [
        ["the two runs have the same settings"]
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs"], "error: runs=runs: is not a setting of runs; choose from root, sort"),
        (["state=done"], "error: state=done: must be one of running, finished"),
        (["sort=name"], "error: sort=name: must be one of created"),
        (["root=nowhere"], "error: root=nowhere: no run is below it"),
        (["diff=[runs/b-finished]"], "must name two runs; write diff=[runs/a,runs/b]"),
        (["diff=[runs/b-finished,runs/x]"], "error: diff=runs/x: holds no run"),
        (["sweep=x"], "error: sweep=x: no such sweep below runs"),
    ],
)
def test_a_wrong_request_is_one_line(
    runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert command.run(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_a_damaged_folder_is_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "a-running" / "run.json").write_text("{")
    assert command.run([]) == 1
    assert "a-running: not what a run writes" in capsys.readouterr().err


def test_both_ways_to_call_it_need_no_torch(runs: Path) -> None:
    code = "import sys; from brainseg.runs.__main__ import run; run([]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    outputs = [
        subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True, text=True)
        for words in (["brainseg.runs"], ["brainseg", "runs"])
    ]
    assert outputs[0].stdout == outputs[1].stdout and "b-finished" in outputs[0].stdout
