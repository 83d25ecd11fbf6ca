"""The parallel launchers, for real: joblib and submitit's local one, with jobs that fail and processes that are killed."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir

from brainseg import train
from brainseg.config import DeviceConfig, PhantomConfig, TrainConfig, launchers
from brainseg.config.compose import CONFIGS, compose_job, compose_multirun, expand_sweep
from brainseg.config.text import quote_text_values
from brainseg.core.errors import DeviceMissingError, RequestError
from brainseg.core.processes import is_alive
from brainseg.data.phantom.cohort import ensure_cohort
from brainseg.device import choose_device
from brainseg.runs.run_folder import RunFolder
from brainseg.sweeps import launch
from brainseg.sweeps.isolated_process import SubprocessFailed, call_in_subprocess

pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
pytest.importorskip("submitit")

SMALL = ("model.depth=2", "model.width=2", "device=cpu", "augment=none", "scheduler=none")
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_cohort(
        PhantomConfig(patients=7, slices=4, size=32, folder=str(tmp_path_factory.mktemp("cohort")))
    )


def begin(folder: Path, cohort: Path, *arguments: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "brainseg.train",
        "-m",
        *SMALL,
        f"data.path={cohort}",
        *arguments,
    ]
    return subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def end(process: subprocess.Popen, code: int, seconds: float = 900) -> str:
    said, _ = process.communicate(timeout=seconds)
    assert process.returncode == code, said
    return said


def runs(folder: Path) -> dict[int, Path]:
    """The run folders by job number."""
    return {
        json.loads(path.read_text())["job"]: path.parent for path in folder.glob("runs/*/run.json")
    }


def table(said: str) -> list[str]:
    """State and label of each job in the table at the end, above the comparison."""
    lines = said.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("job  state"))
    return [
        " ".join(line.split()[1:3])
        for line in itertools.takewhile(lambda line: line[:1].isdigit(), lines[head + 1 :])
    ]


def in_mlflow(folder: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return list(
        client.search_runs(
            [client.get_experiment_by_name("brainseg").experiment_id], "tags.kind = 'run'"
        )
    )


# A subprocess imports this module without tests/ on its path, so that it cannot use waiting.py.
def wait_for(condition: Any, seconds: float = 300) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "not in time"
        time.sleep(0.02)
    return found


# What is offered


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONFIGS), job_name="train", version_base="1.3"):
        return compose_multirun("train", list(overrides))


@pytest.mark.parametrize("name", launchers.LAUNCHERS)
def test_a_launcher_is_there_with_its_own_settings_alone(name: str) -> None:
    if name == "ray":
        pytest.importorskip("ray")
    settings = composed(f"hydra/launcher={name}").hydra.launcher
    assert launchers.launcher_name(settings._target_) == name
    assert set(settings) - {"_target_"} == set(launchers.offered_settings()[settings._target_])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["hydra/launcher=joblib", "hydra.launcher.pre_dispatch=exit"],
            "hydra.launcher.pre_dispatch",
        ),
        (
            ["hydra/launcher=joblib", "+hydra.launcher.pre_dispatch=exit"],
            "hydra.launcher.pre_dispatch",
        ),
        (["hydra/launcher=joblib", "hydra.launcher.batch_size=2"], "cannot be changed"),
        (
            ["hydra/launcher=submitit_slurm", "+hydra.launcher.setup=[reboot]"],
            "hydra.launcher.setup",
        ),
        (
            [
                "hydra/launcher=submitit_slurm",
                "+hydra.launcher.additional_parameters={wrap:reboot}",
            ],
            "additional_parameters",
        ),
        (
            ["hydra/launcher=submitit_slurm", "hydra.launcher.submitit_folder=/tmp"],
            "no such setting",
        ),
        (
            ["hydra/launcher=submitit_slurm", 'hydra.launcher.partition="a\nreboot"'],
            "cannot be printed",
        ),
        (
            [
                "hydra/sweeper={_target_:hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper}"
            ],
            "import nothing",
        ),
    ],
)
def test_launcher_settings_that_run_what_they_say_are_refused(
    overrides: list[str], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        composed(*overrides)


def test_cores_and_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import joblib
    import torch

    monkeypatch.setattr(joblib, "cpu_count", lambda: 8)
    monkeypatch.setattr(joblib, "effective_n_jobs", lambda n: 8 if n == -1 else n)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)

    def share(*overrides: str) -> tuple:
        return tuple(launch.share_machine(composed(*overrides)))

    joblib_jobs = ("hydra/launcher=joblib", "hydra.launcher.n_jobs={}".format)
    assert share(joblib_jobs[0], joblib_jobs[1](3)) == (2, 3, 1)
    assert share(joblib_jobs[0], joblib_jobs[1](4)) == (2, 3, 2)
    assert share(joblib_jobs[0]) == (1, 3, 3)
    assert share(joblib_jobs[0], joblib_jobs[1](20)) == (1, 3, 7)
    assert share("hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=5") == (5, 0, 1)
    assert share() == (None, 0, 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert share(joblib_jobs[0], joblib_jobs[1](4)) == (2, 0, 4)


def test_a_gpu_is_dealt_to_a_job_that_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "")
    monkeypatch.setattr(torch.cuda, "get_arch_list", list)
    dealt = [
        str(choose_device(DeviceConfig(name="cuda", precision="float32"), gpu=gpu).torch)
        for gpu in (None, 0, 1)
    ]
    assert dealt == ["cuda", "cuda:0", "cuda:1"]
    assert (
        str(choose_device(DeviceConfig(name="cuda:0", precision="float32"), gpu=1).torch)
        == "cuda:0"
    ), "what was asked for goes first"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceMissingError):
        choose_device(DeviceConfig(name="cuda"), gpu=0)


def test_a_cluster_may_have_devices_that_are_not_here() -> None:
    assert launch.runs_on_cluster(composed("hydra/launcher=submitit_slurm"))
    assert not launch.runs_on_cluster(composed("hydra/launcher=joblib"))


def test_a_launcher_that_is_not_installed_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("brainseg.config.compose.find_spec", lambda name: None)
    for name in ("ray", "submitit_local"):
        with pytest.raises(
            RequestError,
            match=rf"hydra/launcher={name}: is not installed; .*\.\[{name.partition('_')[0]}\]",
        ):
            composed(f"hydra/launcher={name}")


# A process of its own


def answer(config: TrainConfig, what: str) -> Any:
    """Called by name in the other process."""
    if what == "raise":
        raise MemoryError("no room\nat all")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        sys.exit(3)
    if what == "wait":
        time.sleep(600)
    print("said aloud", flush=True)
    return {"seed": config.seed, "pid": os.getpid()}


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(
        "PYTHONPATH",
        os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    )
    return "test_launchers:answer"


def test_work_apart_comes_back(importable: str, tmp_path: Path) -> None:
    pids: list[int] = []
    said = call_in_subprocess(
        importable,
        TrainConfig(seed=5),
        "",
        output=tmp_path / "deep" / "output.txt",
        on_start=pids.append,
    )
    assert said == {"seed": 5, "pid": pids[0]}
    assert pids[0] != os.getpid()
    assert (tmp_path / "deep" / "output.txt").read_text() == "said aloud\n"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("raise", "MemoryError: no room$"),
        ("kill", "killed by SIGKILL, perhaps out of memory"),
        ("exit", "ended with exit code 3"),
    ],
)
def test_what_becomes_of_the_process_is_said(importable: str, what: str, words: str) -> None:
    with pytest.raises(SubprocessFailed, match=words):
        call_in_subprocess(importable, TrainConfig(), what)


def test_it_ends_with_the_one_that_waits_for_it(importable: str, tmp_path: Path) -> None:
    script = f"""
from brainseg.config import TrainConfig
from brainseg.sweeps.isolated_process import call_in_subprocess
call_in_subprocess("{importable}", TrainConfig(), "wait", on_start=lambda pid: print(pid, flush=True))
"""
    waiting = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert waiting.stdout is not None
    pid = int(waiting.stdout.readline())
    time.sleep(1)
    assert is_alive(pid)
    waiting.kill()
    waiting.wait()
    wait_for(lambda: not is_alive(pid), 60)


# Sweeps


def test_two_jobs_side_by_side_one_fails_and_the_second_start_runs_that_one(
    tmp_path: Path, cohort: Path
) -> None:
    arguments = ("seed=0,1", "epochs=1", "tracking=none", *JOBLIB)
    spoiled = spoil(tmp_path, cohort, *arguments)
    said = end(begin(tmp_path, cohort, *arguments), 1)
    assert "2 jobs: 1 finished, 0 skipped, 1 failed" in said
    assert table(said) == ["finished seed=0", "failed seed=1"]
    assert "FileExistsError" in said and "Traceback" not in said
    assert "Traceback" in (spoiled.parent / "log.txt").read_text()
    spoiled.unlink()
    assert table(end(begin(tmp_path, cohort, *arguments), 0)) == [
        "skipped seed=0",
        "finished seed=1",
    ]
    facts = [RunFolder(path).facts for path in runs(tmp_path).values()]
    assert {fact["device"]["threads"] for fact in facts} == {max(1, _cores() // 2)}
    for path in runs(tmp_path).values():
        assert (path / "log.txt").read_text().count("run folder:") == 1 + (
            path == spoiled.parent
        ), "every log in its own folder"


def _cores() -> int:
    from joblib import cpu_count

    return int(cpu_count())


def spoil(folder: Path, cohort: Path, *arguments: str) -> Path:
    """Make the last job of the sweep fail at its end: a file lies where its pictures are to go. Returns that file."""
    with initialize_config_dir(str(CONFIGS), job_name="train", version_base="1.3"):
        overrides = quote_text_values("train", [*SMALL, f"data.path={cohort}", *arguments], True)
        _, jobs = expand_sweep("train", overrides)
        check = train.check_request(compose_job("train", jobs[-1]))
    path = folder / "runs" / check.name / "pictures"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "launcher", [JOBLIB, ("hydra/launcher=submitit_local",)], ids=["joblib", "submitit"]
)
def test_eight_jobs_on_a_fresh_store(
    tmp_path: Path, cohort: Path, launcher: tuple[str, ...]
) -> None:
    said = end(begin(tmp_path, cohort, "seed=range(8)", "epochs=2", *launcher), 0, 1800)
    assert "8 jobs: 8 finished, 0 skipped, 0 failed" in said
    assert sorted(runs(tmp_path)) == list(range(8))
    for number, path in runs(tmp_path).items():
        log = (path / "log.txt").read_text()
        assert (log.count("run folder:"), log.count("epoch   ")) == (1, 2), (
            "its own log and nobody else's"
        )
        assert (
            "RuntimeWarning"
            not in (launch_folder(tmp_path) / str(number) / "output.txt").read_text()
        )
    assert [run.info.status for run in in_mlflow(tmp_path)] == ["FINISHED"] * 8
    assert {run.data.tags["brainseg.uid"] for run in in_mlflow(tmp_path)} == {
        RunFolder(path).facts["uid"] for path in runs(tmp_path).values()
    }


def launch_folder(folder: Path) -> Path:
    return max(folder.glob("runs/hydra/*"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("victim", ["job", "worker"])
def test_twelve_jobs_with_a_failure_and_a_kill_are_completed_by_a_second_start(
    tmp_path: Path, cohort: Path, victim: str
) -> None:
    """`victim`: the process that trains, or joblib's own, with which its whole pool goes."""
    arguments = ("seed=range(6)", "model.width=2,3", "epochs=30", *JOBLIB)
    spoiled = spoil(tmp_path, cohort, *arguments)
    process = begin(tmp_path, cohort, *arguments)
    killed = wait_for(
        lambda: next((n for n, path in runs(tmp_path).items() if n > 1 and under_way(path)), None)
    )
    pid = RunFolder(runs(tmp_path)[killed]).status["pid"]
    os.kill(pid if victim == "job" else parent_of(pid), signal.SIGKILL)
    said = end(process, 1, 3600)
    states = [line.split()[0] for line in table(said)]
    assert len(states) == 12
    if victim == "job":
        assert [number for number, state in enumerate(states) if state == "failed"] == [killed, 11]
        assert "killed by SIGKILL" in said
    else:
        assert "the launcher failed (TerminatedWorkerError)" in said
        assert states == ["finished"] * 11 + ["failed"], (
            "the others were started once more, and went on"
        )
    finished = {
        path: (path / "metrics.jsonl").stat().st_mtime_ns
        for path in runs(tmp_path).values()
        if (path / "summary.json").exists()
    }
    spoiled.unlink()

    said = end(begin(tmp_path, cohort, *arguments), 0, 3600)
    assert [line.split()[0] for line in table(said)] == [
        "finished" if state == "failed" else "skipped" for state in states
    ]
    untouched = [
        path
        for path, written in finished.items()
        if (path / "metrics.jsonl").stat().st_mtime_ns == written
    ]
    assert len(untouched) == states.count("finished"), "just what was unfinished has run"
    recorded = in_mlflow(tmp_path)
    assert [run.info.status for run in recorded] == ["FINISHED"] * 12
    assert len({run.data.tags["brainseg.uid"] for run in recorded}) == 12
    assert len(runs(tmp_path)) == 12
    for run in recorded:
        assert run.data.metrics["best/epoch"] <= 29


def under_way(path: Path) -> bool:
    lines = (
        (path / "metrics.jsonl").read_text().count("\n") if (path / "metrics.jsonl").exists() else 0
    )
    return 1 <= lines < 25 and RunFolder(path).state == "running"


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sigterm_ends_a_parallel_sweep_saved(tmp_path: Path, cohort: Path) -> None:
    arguments = ("seed=range(3)", "epochs=200", "tracking=none", *JOBLIB)
    process = begin(tmp_path, cohort, *arguments)
    wait_for(lambda: len([path for path in runs(tmp_path).values() if under_way(path)]) == 2)
    process.send_signal(signal.SIGTERM)
    said = end(process, 143, 120)
    assert {RunFolder(path).state for path in runs(tmp_path).values()} == {"killed"}
    assert "3 jobs: 0 finished, 0 skipped, 0 failed, 3 stopped" in said
    assert "stopped by SIGTERM" in said and "stopped before it began" in said


@pytest.mark.parametrize(
    "times",
    [
        pytest.param(1, id="few", marks=pytest.mark.slow),
        pytest.param(20, id="many", marks=pytest.mark.faults),
    ],
)
@pytest.mark.timeout(7200)
def test_pairs_of_sweeps_in_the_same_instant_share_no_folder_and_lose_no_run(
    tmp_path: Path, cohort: Path, times: int
) -> None:
    """A pair of different sweeps that overlap in one job, and rerun it: on a fresh store, released by one file."""
    for number in range(times):
        folder = tmp_path / str(number)
        folder.mkdir()
        same = ("-m", *SMALL, f"data.path={cohort}", "epochs=1", "rerun=true")
        pair = [
            subprocess.Popen(
                [sys.executable, "-c", TOGETHER, name, *same, seeds],
                cwd=folder,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for name, seeds in (("a", "seed=0,1"), ("b", "seed=1,2"))
        ]
        wait_for(lambda folder=folder: (folder / "a").exists() and (folder / "b").exists())
        (folder / "go").touch()
        for process in pair:
            assert "2 jobs: 2 finished" in end(process, 0)
        folders = [RunFolder(path.parent) for path in folder.glob("runs/*/run.json")]
        assert len(folders) == 4
        assert len({one.facts["uid"] for one in folders}) == 4
        assert len(list(folder.glob("runs/hydra/*/jobs/job-?.json"))) == 4
        assert len(list(folder.glob("runs/hydra/*"))) == 2
        recorded = in_mlflow(folder)
        assert [run.info.status for run in recorded] == ["FINISHED"] * 4
        assert {run.data.tags["brainseg.uid"] for run in recorded} == {
            one.facts["uid"] for one in folders
        }


TOGETHER = """
import sys, time
from pathlib import Path
from brainseg import train
Path(sys.argv.pop(1)).touch()
while not Path("go").exists():
    time.sleep(0.001)
train.main()
"""


def test_no_job_at_a_time_is_refused() -> None:
    with pytest.raises(
        RequestError, match=r"hydra\.launcher\.n_jobs=0: at least 1 job must run at a time"
    ):
        launch.share_machine(composed("hydra/launcher=joblib", "hydra.launcher.n_jobs=0"))
