"""A run with a time budget names the settings that take as many steps anywhere; SHA256SUMS is what sha256sum reads."""

import json
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainseg import train
from brainseg.cli.main import run_command
from brainseg.core.errors import DataError
from brainseg.runs.repeat import HASHES, exact_steps, find_changed_files, write_hashes
from brainseg.training.progressive_resizing import ProgressiveResizing

TINY = [
    "data.phantom.patients=8",
    "data.phantom.slices=4",
    "data.phantom.size=32",
    "model.depth=2",
    "model.width=4",
    "device=cpu",
    "device.threads=1",
    "tracking=none",
]


def call(*argv: str) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command("train", train.run, train.check_request, list(argv))
    assert stop.value.code == 0


def steps_of(run: str) -> list[int]:
    """The steps after each epoch, and how many of them were at half size."""
    rows = [
        json.loads(line)["step"] for line in Path(run, "metrics.jsonl").read_text().splitlines()
    ]
    stored = train.checkpoint.load(Path(run, "checkpoints", "best.pt"))
    return [*rows, stored["half_steps"]]


def test_minutes_are_repeated_by_the_printed_steps_and_by_from(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    minutes = ["max_minutes=0.02", "half_resolution=0.5", "validate_every=100"]
    call(*TINY, *minutes, "split.validation=0", "split.test=0.3", "output=a")
    printed = capsys.readouterr().out.splitlines()[-1]
    command = shlex.split(json.loads(Path("a/summary.json").read_text())["repeat"])
    limits = [word for word in command if word.startswith(("max_", "half_"))]
    assert printed == f"repeat:        from=a, or on another machine {' '.join(limits)}"
    assert command[:3] == ["python", "-m", "brainseg.train"] and "output=a" not in command
    assert limits[:2] == ["max_minutes=null", f"max_steps={steps_of('a')[-2]}"]
    call(*command[3:], "output=b")
    assert steps_of("b") == steps_of("a")
    assert "repeat" not in json.loads(Path("b/summary.json").read_text()), "its steps are exact"
    call("from=a", "output=c")
    losses = [
        [
            json.loads(line)["metrics"]["train/loss"]
            for line in Path(run, "metrics.jsonl").read_text().splitlines()
        ]
        for run in "ac"
    ]
    assert losses[0] == losses[1]


@given(total=st.integers(1, 100_000), share=st.floats(0, 0.95))
def test_the_fraction_gives_back_the_steps_of_half_size(total: int, share: float) -> None:
    resizing = ProgressiveResizing.from_fraction(share, total)
    state: Any = SimpleNamespace(total_steps=total, resizing=resizing)
    settings = dict(word.split("=") for word in exact_steps(state))
    assert (settings["max_minutes"], settings["max_steps"]) == ("null", str(total))
    fraction = float(settings.get("half_resolution", 0))
    assert ProgressiveResizing.from_fraction(fraction, total) == resizing


def test_the_last_step_is_at_full_size_however_short_the_run() -> None:
    runs = [ProgressiveResizing.from_fraction(0.95, steps) for steps in (1, 2, 3, 100)]
    assert [resizing.half_steps for resizing in runs] == [0, 1, 2, 95]
    # A time budget may have more steps of half the size than the setting allows.
    state: Any = SimpleNamespace(total_steps=100, resizing=ProgressiveResizing(100, 99))
    assert exact_steps(state)[-1] == "half_resolution=0.95"


def test_the_hashes_are_those_of_sha256sum(tmp_path: Path) -> None:
    for name in ("run.json", "log.txt", "checkpoints/best.pt", "pictures/curves.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert find_changed_files(tmp_path) is None, "as in runs of earlier versions"
    write_hashes(tmp_path)
    checked = subprocess.run(
        ["sha256sum", "-c", HASHES], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert checked.stdout.splitlines() == [
        "checkpoints/best.pt: OK",
        "pictures/curves.png: OK",
        "run.json: OK",
    ]
    assert find_changed_files(tmp_path) == []
    (tmp_path / "log.txt").write_text("a line that came later")
    (tmp_path / "run.json").write_text("edited")
    (tmp_path / "pictures" / "curves.png").unlink()
    assert find_changed_files(tmp_path) == [
        "pictures/curves.png is missing",
        "run.json was changed",
    ]
    for line in ("no hash", f"{'0' * 64}  ../run.json", f"{'0' * 64}  /run.json"):
        (tmp_path / HASHES).write_text(line)
        with pytest.raises(DataError, match="SHA256SUMS: not what a run writes"):
            find_changed_files(tmp_path)
