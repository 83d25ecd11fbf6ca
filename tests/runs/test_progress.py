"""What a run shows of itself while it trains: notes, pictures, and measurements of the machine."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from brainseg.config import TrainConfig
from brainseg.core.errors import RequestError
from brainseg.device import choose_device
from brainseg.reports import figures
from brainseg.runs import __main__ as command
from brainseg.runs import live_pictures, system_metrics
from brainseg.runs.identity import compute_identity
from brainseg.runs.live_pictures import LivePictures
from brainseg.runs.repeat import find_changed_files, write_hashes
from brainseg.runs.run_folder import RunFolder
from brainseg.runs.sweep_record import sweep_id
from brainseg.runs.system_metrics import SystemMonitor

# Notes and tags


def run_with(folder: Path, **facts: Any) -> RunFolder:
    folder.mkdir(parents=True)
    facts = {"uid": "u", "overrides": [], "created": 1, "tracking": None} | facts
    (folder / "run.json").write_text(json.dumps(facts))
    return RunFolder(folder)


def test_a_note_is_no_part_of_the_identity() -> None:
    from brainseg.data.split import Split

    split = Split("holdout", ("a",), ("b",), ("c",))
    plain, noted = TrainConfig(), TrainConfig(note="why", tags=["pilot"])
    noted.pictures.every_minutes = None
    assert compute_identity(plain, "f", split, "") == compute_identity(noted, "f", split, "")
    jobs = [["seed=0"], ["seed=1"]]
    noted_jobs = [[*job, "note=why", "tags=[a]", "pictures.every_minutes=null"] for job in jobs]
    assert sweep_id(jobs, ["seed"]) == sweep_id(noted_jobs, ["seed"])


@pytest.mark.parametrize("tags", [["a,b"], [" "]])
def test_a_tag_is_a_text_without_a_comma(tags: list[str]) -> None:
    with pytest.raises(RequestError, match="must be a text without a comma"):
        TrainConfig(tags=tags)


def test_a_note_can_be_added_changed_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = run_with(Path("runs/a"))
    # A run of an earlier version has neither note nor tags.
    assert command.run([]) == 0 and "note" not in capsys.readouterr().out
    assert command.run(["run=runs/a", "note=too slow, see b", "tags=[pilot, paper]"]) == 0
    assert folder.facts["note"] == "too slow, see b" and folder.facts["tags"] == ["pilot", "paper"]
    assert "tags:   pilot, paper\nnote:   too slow, see b\n" in capsys.readouterr().out
    assert command.run(["tag=paper"]) == 0 and "too slow, see b" in capsys.readouterr().out
    assert command.run(["tag=none"]) == 0
    assert capsys.readouterr().out == "0 of 1 runs are tagged none\n"
    assert command.run(["run=runs/a", "note=", "tags=[]"]) == 0
    assert (folder.facts["note"], folder.facts["tags"]) == ("", [])
    write_hashes(folder.path)
    assert command.run(["run=runs/a", "note=last"]) == 0
    assert find_changed_files(folder.path) == [], "a note is no damage"
    folder.annotate("again")
    folder.annotate(None, ["x"])
    assert (folder.facts["note"], folder.facts["tags"]) == ("again", ["x"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["note=x"], "belongs to note and tags"),
        (["run=runs/a"], "belongs to note and tags"),
        (["run=runs/b", "note=x"], "holds no run"),
        (["run=runs/a", "tags=[a,,b]"], "must be a text without a comma"),
    ],
)
def test_a_wrong_note_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = run_with(Path("runs/a"))
    before = folder.facts
    assert command.run(arguments) == 2 and message in capsys.readouterr().err
    assert folder.facts == before


# Measurements of the machine


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds, CPU seconds and the peak memory of the process, set by the test."""
    values = {"now": 100.0, "cpu": 10.0, "peak": 5e9}
    monkeypatch.setattr(system_metrics.time, "monotonic", lambda: values["now"])
    monkeypatch.setattr(system_metrics.time, "process_time", lambda: values["cpu"])
    monkeypatch.setattr(system_metrics, "peak_resident_memory", lambda: values["peak"])
    return values


def test_cpu_and_memory_of_an_epoch(clock: dict[str, float]) -> None:
    monitor = SystemMonitor(choose_device(TrainConfig().device))
    clock |= {"now": 110.0, "cpu": 25.0}
    monitor.sample()
    # An earlier job of the process needed 5 GB, so that the memory of this run is unknown.
    assert monitor.finish_epoch() == {"system/cpu_cores": 1.5}
    clock |= {"now": 114.0, "cpu": 27.0, "peak": 6e9}
    assert monitor.finish_epoch() == {"system/cpu_cores": 0.5, "system/memory_gb": 6.0}


def test_the_jobs_own_gpu_is_sampled_once_a_second(
    clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins for torch's functions, since no GPU is here."""
    asked: list[torch.device] = []

    def utilization(device: torch.device) -> int:
        asked.append(device)
        return 40 * len(asked)

    nvml = types.ModuleType("pynvml")
    nvml.NVMLError = type("NVMLError", (Exception,), {})
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(system_metrics.importlib.util, "find_spec", lambda name: name == "pynvml")
    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda device: 250_000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3e9)
    gpu = torch.device("cuda:1")
    device = types.SimpleNamespace(torch=gpu)
    monitor = SystemMonitor(device)
    for now in (100.0, 100.5, 101.2):
        clock["now"] = now
        monitor.sample()
    assert asked == [gpu, gpu]
    assert monitor.finish_epoch() == {
        "system/cpu_cores": 0.0,
        "system/gpu_memory_gb": 3.0,
        "system/gpu_utilization_percent": 60.0,
        "system/gpu_power_watts": 250.0,
    }

    def refuse(device: torch.device) -> int:
        asked.append(device)
        raise nvml.NVMLError

    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    for now in (200.0, 210.0):
        clock["now"] = now
        monitor.sample()
    assert len(asked) == 3, "a driver that refuses is not asked again"
    assert "system/gpu_power_watts" not in monitor.finish_epoch()


# Pictures


def test_pictures_are_drawn_when_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(live_pictures.time, "monotonic", lambda: now[0])
    store = types.SimpleNamespace(
        volumes=["a", "b"],
        tumour_pixels=np.array([1, 0, 4, 4]),
        rows_of=lambda name: (0, 2) if name == "a" else (2, 4),
        images=lambda start, stop: np.ones((stop - start, 1, 16, 16), np.uint8),
        channels=("FLAIR",),
        classes=("background", "tumour"),
    )
    validation = types.SimpleNamespace(store=store, volumes=[0, 1])
    pictures = LivePictures(tmp_path, validation, 2.0)
    assert pictures.patient == "b", "the one with the most tumour"
    row = {"epoch": 0, "metrics": {"train/loss": 1.0, "val/loss": 1.0, "val/dice": 0.5}}
    state = types.SimpleNamespace(history=[row], epoch=1)
    mask = np.zeros((2, 16, 16), np.uint8)
    for name in ("a", "b"):
        score = types.SimpleNamespace(patient=name, dice=0.5)
        pictures.add(types.SimpleNamespace(score=score, truth=mask, prediction=mask))
    now[0] = 119.0
    assert not pictures.draw(state) and not list(tmp_path.iterdir())
    now[0] = 120.0
    assert pictures.draw(state)
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "validation.png"}
    # An epoch without validation draws the curves alone.
    (tmp_path / "validation.png").unlink()
    now[0] = 240.0
    assert pictures.draw(state) and not (tmp_path / "validation.png").exists()
    assert not LivePictures(tmp_path, validation, None).draw(state)


def test_pictures_take_a_hundredth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def draw_slowly(rows: object, path: Path) -> None:
        now[0] += 4.0

    monkeypatch.setattr(live_pictures.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(figures, "draw_curves", draw_slowly)
    pictures = LivePictures(tmp_path, types.SimpleNamespace(store=None, volumes=[]), 1.0)
    state = types.SimpleNamespace(history=[], epoch=1)
    drawn = []
    for now[0] in (59.0, 60.0, 459.0, 460.0):
        drawn.append(pictures.draw(state))
    assert drawn == [False, True, False, True]


def test_a_run_without_validation_patients_draws_its_curves(tmp_path: Path) -> None:
    validation = types.SimpleNamespace(store=None, volumes=[])
    state = types.SimpleNamespace(history=[{"epoch": 0, "metrics": {"train/loss": 1.0}}], epoch=1)
    assert LivePictures(tmp_path, validation, 0.0).draw(state)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
