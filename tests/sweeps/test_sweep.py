"""Sweeps: what they vary, what a dry run foresees, skip and rerun and run anew, memory from job to job, the table at the end."""

import dataclasses
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from brainseg import train
from brainseg.cli.main import run_command
from brainseg.config import TrainConfig
from brainseg.data import memory_cache
from brainseg.data.dataset import MRIDataset
from brainseg.runs import code_version, dry_run, identity, run_folder
from brainseg.runs.dry_run import PlannedAction
from brainseg.runs.finished_run import extends_finished_run
from brainseg.runs.job import Job, Outcome
from brainseg.runs.run_folder import RunFolder
from brainseg.sweeps import job_status
from brainseg.sweeps import summary as sweep
from brainseg.sweeps.job_status import LOST, NOT_STARTED, JobStatusStore

TINY = (
    "model.depth=2",
    "model.width=2",
    "epochs=1",
    "device=cpu",
    "device.threads=1",
    "tracking=none",
    "augment=none",
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def start(phantom_file: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """A real sweep in this process: exit code as expected, returns what it printed on stdout."""

    def start(*argv: str, code: int = 0, run=train.run) -> str:
        with pytest.raises(SystemExit) as stop:
            run_command(
                "train", run, train.check_request, ["-m", *TINY, f"data.path={phantom_file}", *argv]
            )
        shown = capsys.readouterr()
        assert stop.value.code == code, shown.err
        return shown.out

    return start


def runs() -> list[Path]:
    return sorted(path.parent for path in Path("runs").glob("*/run.json"))


# What is printed


def test_what_is_swept_and_how_a_job_is_called() -> None:
    jobs = [
        ["model.depth=2", "seed=0", "++loss.options.a=1"],
        ["model.depth=2", "seed=0", "++loss.options.a=2"],
    ]
    assert sweep.find_swept_settings(jobs) == ("loss.options.a",)
    assert sweep.job_label(jobs[1], ("loss.options.a",)) == "loss.options.a=2"


def test_the_summary_lists_every_job_with_its_reason() -> None:
    outcomes = [
        Outcome("finished", "runs/a"),
        Outcome("skipped", "runs/b", "finished before"),
        Outcome("failed", reason="no memory"),
    ]
    assert sweep.format_summary(outcomes, ["seed=0", "seed=1", "seed=2"]).splitlines() == [
        "",
        "3 jobs: 1 finished, 1 skipped, 1 failed",
        "job  state     swept   folder, reason",
        "1    finished  seed=0  runs/a",
        "2    skipped   seed=1  runs/b finished before",
        "3    failed    seed=2  no memory",
    ]


def test_a_long_reason_is_printed_by_the_job_and_shortened_in_the_table() -> None:
    summary = sweep.format_summary([Outcome("failed", reason="x" * 500)], ["seed=0"])
    assert summary.count("x") == 57 and summary.endswith("xxx...")


def test_a_job_prints_its_start_and_its_end(start) -> None:
    """Two lines for each job, with its number, what is varied, its score, folder and the time left."""
    lines = start("seed=0,1,2").splitlines()
    jobs = lines[: next(at for at, line in enumerate(lines) if line.startswith("3 jobs: "))]
    assert [line for line in jobs if line and not line.startswith("note:")] == [
        line for line in jobs if line.startswith("job ")
    ]
    assert sum(line.startswith("note:") for line in jobs) == 1, "a warning of all jobs, once"
    folders = {RunFolder(path).facts["job"]: path for path in runs()}
    for number in range(3):
        begun, ended = (line for line in jobs if line.startswith(f"job {number + 1} of 3"))
        assert begun == f"job {number + 1} of 3: seed={number}"
        score = json.loads((folders[number] / "summary.json").read_text())["best"]["val/dice"]
        assert re.fullmatch(
            rf"job {number + 1} of 3 finished in 0:\d\d:\d\d: "
            rf"val/dice {score:.3f}, {folders[number]}(, about 0:\d\d:\d\d left for the sweep)?",
            ended,
        )
        assert ("left for the sweep" in ended) == (number < 2)
    skipped = start("seed=0")
    assert "job 1 of 1 skipped: finished before, val/dice" in skipped
    assert "left for the sweep" not in skipped


def test_minus_v_prints_every_epoch_of_a_job(start) -> None:
    shown = start("seed=0", "epochs=2", "-v")
    assert shown.count("epoch   ") == 2 and "training slices of" in shown and "hd95" in shown


def test_the_time_left_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jobs, a whole and a half one, took 150 s. Left: a running job, 30 s old, and two new ones."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(job_status, "time", SimpleNamespace(time=lambda: clock.now))
    status = JobStatusStore(tmp_path, "start")
    shares = [1.0, 0.5, 0.0, 1.0, 1.0, 0.0]
    assert status.estimate_seconds_left(shares, 1) is None, "nothing has finished yet"
    for number, seconds, state in ((0, 100, "finished"), (1, 50, "finished"), (2, 3, "skipped")):
        status.write_start(number, pid=1, host="here")
        clock.now += seconds
        status.write_outcome(number, Outcome(state))
    status.write_start(3, pid=1, host="here")
    clock.now += 30
    assert status.estimate_seconds_left(shares, 1) == pytest.approx(70 + 100 + 0)
    assert status.estimate_seconds_left(shares, 2) == pytest.approx(85)
    assert status.estimate_seconds_left(shares, 0) is None, "a queue decides"


def test_a_measured_plan_adds_up_what_is_left() -> None:
    facts = [dry_run.JobCheck(10, "7/2/1", "cpu")] * 4
    fates = [
        PlannedAction("run"),
        PlannedAction("resume at epoch 5", 0.5),
        PlannedAction("skip: finished before", 0),
        PlannedAction("run"),
    ]
    costs = iter([(100.0, 2 * 10**9), (3600.0, 10**9), "MemoryError: too large"])
    shown = sweep.format_plan(
        facts, fates, list("abcd"), [TrainConfig()] * 4, lambda config: next(costs)
    ).splitlines()
    assert shown[0].split() == [
        "job",
        "swept",
        "parameters",
        "patients",
        "device",
        "time",
        "memory",
        "would",
    ]
    assert [row.split()[5:7] for row in shown[1:4]] == [
        ["0:01:40", "2.0"],
        ["0:30:00", "1.0"],
        ["-", "-"],
    ]
    assert "MemoryError: too large" in shown[4]
    assert shown[5] == "0:31:40 in all, one job after the other"


# What each start of a sweep does


def test_finished_jobs_are_skipped_and_a_wider_sweep_runs_what_is_new(start) -> None:
    assert "2 jobs: 2 finished" in start("seed=0,1")
    assert "3 jobs: 1 finished, 2 skipped" in start("seed=0,1,2")
    assert len(runs()) == 3


@pytest.mark.slow
def test_rerun_repeats_each_job_once_a_start_in_a_sibling(start) -> None:
    start("seed=0,1")
    first = {path: (path / "metrics.jsonl").read_bytes() for path in runs()}
    assert "2 jobs: 2 finished" in start("seed=0,1", "rerun=true")
    assert "2 jobs: 2 finished" in start("seed=0,1", "rerun=true")
    assert [path.name.count("-") for path in runs()].count(2) == 4, "each in a numbered sibling"
    assert {path: (path / "metrics.jsonl").read_bytes() for path in first} == first, (
        "what was there stays"
    )
    assert "0 finished, 2 skipped" in start("seed=0,1")
    assert len({RunFolder(path).facts["uid"] for path in runs()}) == 6


def test_a_job_launched_again_within_one_start_finds_its_own_folder(start) -> None:
    again: list[Outcome] = []

    def twice(config: TrainConfig, job: Job) -> Outcome:
        outcome = train.run(config, job)
        again.append(train.run(config, job))
        return outcome

    start("seed=0", "rerun=true", run=twice)
    assert [(outcome.state, Path(outcome.folder)) for outcome in again] == [("skipped", runs()[0])]
    assert len(runs()) == 1


def test_a_failed_job_runs_anew_and_an_interrupted_one_goes_on(
    start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either way to the bits of a run that nothing happened to; the failed one's first epoch is trained again."""
    losses = {path.name: history(path) for path in (start("seed=0,1", "epochs=2") and runs())}
    trained: list[int] = []
    fit = train.fit

    def counted(state, task, hooks):
        trained.append(state.epoch)
        fit(state, task, hooks)

    for path in runs():
        for file in ("summary.json", "patients.csv"):
            (path / file).unlink()
    failed, interrupted = runs()
    keep_one_epoch(failed, "failed")
    keep_one_epoch(interrupted, "killed")
    shown = start("seed=0,1", "epochs=2", "dry_run=true")
    assert "failed before: run anew" in shown
    monkeypatch.setattr(train, "fit", counted)
    assert "2 jobs: 2 finished" in start("seed=0,1", "epochs=2")
    assert sorted(epoch > 0 for epoch in trained) == [False, True]
    assert {path.name: history(path) for path in runs()} == losses


def history(path: Path) -> list[dict]:
    rows = [
        json.loads(line)["metrics"] for line in (path / "metrics.jsonl").read_text().splitlines()
    ]
    return [
        {name: value for name, value in row.items() if not name.startswith(("speed/", "system/"))}
        for row in rows
    ]


def keep_one_epoch(path: Path, state: str) -> None:
    status = json.loads((path / "status.json").read_text())
    (path / "status.json").write_text(json.dumps(status | {"state": state}))
    shutil.copy(path / "checkpoints" / "best.pt", path / "checkpoints" / "last.pt")


def test_a_sweep_says_that_its_jobs_were_finished_under_other_code(
    start, monkeypatch: pytest.MonkeyPatch
) -> None:
    start("seed=0")
    other = code_version.Code("1", "c", False, "", "other sources")
    for module in (identity, dry_run, run_folder):
        monkeypatch.setattr(module, "code_version", lambda: other)
    shown = start("seed=0,1")
    assert "1 of the 2 jobs were finished under other code" in shown
    assert "2 jobs: 2 finished" in shown
    assert "other code" not in start("seed=0,1"), (
        "said once: from now on there are runs of this code"
    )


def test_a_dry_run_tells_what_would_become_of_each_job(start, here: Path) -> None:
    start("seed=0,1,2")
    for path, state in zip(runs(), ("running", "failed", "finished"), strict=True):
        status = json.loads((path / "status.json").read_text())
        (path / "status.json").write_text(json.dumps(status | {"state": state, "pid": os.getpid()}))
    before = sorted(here.rglob("*"))
    shown = start("seed=0,1,2,3", "dry_run=true").splitlines()
    assert sorted(row.split("threads)  ")[1].split(" by pid")[0] for row in shown[1:]) == [
        "failed before: run anew",
        "run",
        "skip: finished before",
        "skip: in use",
    ]
    assert sorted(here.rglob("*")) == before
    interrupted = runs()[0]
    keep_one_epoch(interrupted, "killed")
    assert "resume at epoch 1" in start("seed=0,1,2,3", "dry_run=true")


@pytest.mark.parametrize("text", ["false", "False", "no"])
def test_dry_run_takes_what_yaml_calls_false_or_refuses_it(start, text: str) -> None:
    start("seed=0", f"dry_run={text}", code=2 if text == "no" else 0)
    assert len(runs()) == (text != "no")


def test_dry_run_measures_seconds_and_memory(start) -> None:
    head, row, total = start("seed=0", "dry_run=measure").splitlines()
    assert head.split()[-3:] == ["time", "memory", "would"]
    seconds, gigabytes = row.split("threads)")[1].split()[:2]
    assert seconds.count(":") == 2
    assert 0.1 < float(gigabytes) < 20
    assert total.endswith("in all, one job after the other")
    assert not Path("runs").exists()


def test_what_a_launcher_lost_is_in_the_table_too(tmp_path: Path) -> None:
    ledger = JobStatusStore(tmp_path / "jobs", "now")
    ledger.write_outcome(0, Outcome("finished", "runs/a"))
    ledger.write(1, pid=1, host="h")
    JobStatusStore(tmp_path / "jobs", "before").write_outcome(2, Outcome("finished", "runs/c"))
    outcomes = ledger.outcomes(3, NOT_STARTED)
    assert [outcome.state for outcome in outcomes] == ["finished", "failed", "stopped"]
    assert [outcome.reason for outcome in outcomes] == ["", LOST.reason, "not started"]


def test_what_a_signal_stopped_has_not_failed() -> None:
    ended = [
        Outcome("finished", "runs/a"),
        Outcome("stopped", reason="stopped by SIGINT; the same command goes on with it"),
        NOT_STARTED,
        Outcome("failed", reason="not started: the launcher was lost"),
    ]
    said = sweep.format_summary(ended, ["seed=0", "seed=1", "seed=2", "seed=3"]).splitlines()
    assert said[1] == "4 jobs: 1 finished, 0 skipped, 1 failed, 2 stopped"
    assert [line.split()[1] for line in said[3:]] == ["finished", "stopped", "stopped", "failed"]
    assert "stopped" not in sweep.format_summary(ended[:1], ["seed=0"])


def test_two_sweeps_of_the_same_instant_have_a_folder_each(
    start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra's resolver `now` is stopped: both get the same time."""
    from hydra.core import utils

    class Stopped(utils.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 1)

    monkeypatch.setattr(utils, "datetime", Stopped)
    start("seed=0")
    start("seed=1")
    assert [path.name for path in sorted(Path("runs/hydra").iterdir())] == [
        "2026-01-01_00-00-00-000000",
        "2026-01-01_00-00-00-000000-2",
    ]
    assert len({RunFolder(path).facts["sweep"] for path in runs()}) == 2


def test_a_sweep_that_goes_on_keeps_its_name(start) -> None:
    for request in (["seed=0,1"], ["seed=2,1,0"], ["seed=0,1", "rerun=true"]):
        start(*request)
        assert len({RunFolder(path).facts["sweep"] for path in runs()}) == 1, request
    start("seed=0", "optimizer.lr=1e-2")
    assert len({RunFolder(path).facts["sweep"] for path in runs()}) == 2, "another question"


def test_a_kill_that_nobody_wrote_down_is_written_down_at_the_end(start) -> None:
    """As when joblib's child is killed: the folder says running, its process is gone, the outcome knows no folder."""

    def die(config: TrainConfig, job: Job) -> Outcome:
        folder = RunFolder(train.run(config, job).folder)
        status = json.loads((folder.path / "status.json").read_text())
        (folder.path / "status.json").write_text(
            json.dumps(status | {"state": "running", "pid": 2**22 + 1})
        )
        return Outcome("failed", reason="its process was killed by SIGKILL")

    shown = start("seed=0", code=1, run=die)
    (path,) = runs()
    assert shown.splitlines()[-1].split() == [
        "1",
        "failed",
        str(path),
        "its",
        "process",
        "was",
        "killed",
        "by",
        "SIGKILL",
    ]
    assert RunFolder(path).status["state"] == "killed"
    assert RunFolder(path).status["error"] == "its process was killed by SIGKILL"


# Data in memory from job to job


def test_the_jobs_of_a_sweep_read_their_data_once(start, monkeypatch: pytest.MonkeyPatch) -> None:
    memory_cache.clear_cache()
    reads: list[int] = []
    read = MRIDataset._read
    monkeypatch.setattr(
        MRIDataset,
        "_read",
        lambda self, rows, *some, **more: (
            reads.append(len(rows)) or read(self, rows, *some, **more)
        ),
    )
    start("seed=0", "test=no")
    once = len(reads)
    reads.clear()
    memory_cache.clear_cache()
    start("seed=1,2,3", "test=no")
    assert len(reads) == once


def test_other_data_let_go_of_the_ones_before(phantom_file: Path) -> None:
    memory_cache.clear_cache()
    cpu = torch.device("cpu")
    parts = [
        MRIDataset(phantom_file, channel=volume, indices=range(8)) for volume in ("FLAIR", None)
    ]
    memory_cache.cache_in_memory(parts[:1], cpu)
    memory = weakref.ref(parts[0].memory.image)
    again = MRIDataset(phantom_file, channel="FLAIR", indices=range(8))
    memory_cache.cache_in_memory([again], cpu)
    assert again.memory is parts[0].memory
    assert torch.equal(
        again.gather([3]).image, MRIDataset(phantom_file, channel="FLAIR").gather([3]).image
    )
    parts[0] = again = None  # type: ignore[call-overload]
    memory_cache.cache_in_memory(parts[1:], cpu)
    gc.collect()
    assert memory() is None
    memory_cache.cache_in_memory(parts[1:], cpu, "no")
    assert not memory_cache._cache


def test_a_file_that_was_replaced_is_read_again(phantom_file: Path, tmp_path: Path) -> None:
    from brainseg.config import PhantomConfig
    from brainseg.data.phantom.cohort import ensure_cohort

    other = ensure_cohort(
        PhantomConfig(patients=10, slices=8, size=32, seed=1, folder=str(tmp_path))
    )
    path = tmp_path / "data.h5"
    images = []
    for source in (phantom_file, other):
        path.unlink(missing_ok=True)
        path.write_bytes(source.read_bytes())
        part = MRIDataset(path)
        memory_cache.cache_in_memory([part], torch.device("cpu"))
        images.append(part.gather([0]).image)
    assert not torch.equal(*images)


# Start-up


def test_neither_matplotlib_nor_monai_nor_mlflow_is_loaded_by_the_first_step(
    phantom_file: Path,
) -> None:
    script = """
import os, sys
from brainseg.training import loop
def stop(*_):
    print("loaded:", *(name for name in ("matplotlib", "monai", "mlflow", "scipy", "pandas") if name in sys.modules), flush=True)
    os._exit(7)
loop.train_epoch = stop
from brainseg import train
train.main()
"""
    arguments = [
        sys.executable,
        "-c",
        script,
        "model.depth=2",
        "model.width=2",
        "device=cpu",
        f"data.path={phantom_file}",
    ]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (7, "loaded:"), done.stderr


def test_a_finished_run_is_extended_by_what_it_was_counted_in(tmp_path: Path) -> None:
    def asked(**settings) -> bool:
        return extends_finished_run(folder, dataclasses.replace(stored, resume="r", **settings))

    stored = TrainConfig(max_minutes=30, patience=10)
    folder = SimpleNamespace(config=stored, path=tmp_path, plan=tmp_path / "plan.json")
    folder.plan.write_text("[[0, 0.0, 100, 60]]")
    for last_step, stopped in ((99, True), (100, False)):
        row = {"epoch": 19, "step": last_step, "metrics": {}}
        (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        assert asked(patience=20) is asked(patience=None) is stopped, "of 100 steps"
    folder.plan.unlink()
    assert not asked(patience=20), "a run of an early version, without a plan"
    assert asked(max_minutes=60) and asked(max_minutes=None) and asked(max_minutes=None, epochs=200)
    assert (
        not asked()
        and not asked(epochs=200)
        and not asked(max_minutes=20)
        and not asked(patience=5)
    )
    assert not extends_finished_run(folder, dataclasses.replace(stored, max_minutes=60)), (
        "not named by resume"
    )
    for counted, stopped in (
        ({"epochs": 21}, True),
        ({"epochs": 20}, False),
        ({"max_steps": 101}, True),
        ({"max_steps": 100}, False),
    ):
        stored = folder.config = dataclasses.replace(
            TrainConfig(patience=10), max_minutes=None, **counted
        )
        assert asked(patience=20) is stopped, counted


def test_a_run_that_a_choosing_sweep_left_untested_is_said_to_be_that(start) -> None:
    start("model.width=2,4")
    shown = start("model.width=2", "seed=0,1")
    assert (
        "2 jobs: 1 finished, 1 skipped" in shown
        and "finished before, untested: python -m brainseg.evaluate" in shown
    )
    assert "untested" not in start("model.width=2,4"), "a sweep that chooses tests nobody"
