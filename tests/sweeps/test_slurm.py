"""Sweeps in a real queue: a SLURM cluster of one node, which the tests start and stop.

Run by `make test-slurm`, as root and with Debian's slurm-wlm.
"""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import free_port, wait_for

from brainseg.config import PhantomConfig
from brainseg.data.phantom.cohort import ensure_cohort
from brainseg.runs.run_folder import RunFolder

pytest.importorskip("submitit")
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]
LAUNCHER = (
    "hydra/launcher=submitit_slurm",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.comment=for the tests",
)
SMALL = (
    "model.depth=2",
    "model.width=2",
    "device=cpu",
    "augment=none",
    "scheduler=none",
    "checkpoint.every_minutes=null",
)
# More epochs than a job trains before its test interrupts it.
LONG = "epochs=300"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_cohort(
        PhantomConfig(patients=7, slices=4, size=32, folder=str(tmp_path_factory.mktemp("cohort")))
    )


def processes_with(text: str) -> list[int]:
    """The processes whose environment or command line contains the text."""
    pids = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            content = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
        except OSError:
            continue
        if text.encode() in content and int(path.name) != os.getpid():
            pids.append(int(path.name))
    return pids


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of commands that use the cluster. At the end no process of it is left."""
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    text = (Path(__file__).parent / "slurm.conf").read_text()
    places = {"DIR": folder, "HOST": host, "CTLD": free_port(), "SLURMD": free_port()}
    text = re.sub("@([A-Z]+)@", lambda match: str(places[match[1]]), text)
    conf = folder / "slurm.conf"
    conf.write_text(text)
    environment = {**os.environ, "SLURM_CONF": str(conf), "OMP_NUM_THREADS": "1"}
    daemons = [
        subprocess.Popen(["slurmctld", "-D", "-f", conf], stderr=subprocess.DEVNULL),
        subprocess.Popen(["slurmd", "-D", "-f", conf, "-N", host], stderr=subprocess.DEVNULL),
    ]
    try:
        wait_for(lambda: "idle" in call(environment, "sinfo", "-h", "-o", "%T"), 60)
        yield environment
    finally:
        call(environment, "scancel", f"--user={os.getuid()}")
        wait_for(lambda: not call(environment, "squeue", "-h"), 120)
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(60)
    wait_for(lambda: not processes_with(str(conf)), 60)


def call(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


class Sweep:
    """A sweep in a folder of its own, started as often as a test calls it."""

    def __init__(
        self, folder: Path, cohort: Path, environment: dict[str, str], *settings: str
    ) -> None:
        self.folder, self.environment = folder, environment
        self.arguments = ["-m", *SMALL, f"data.path={cohort}", *LAUNCHER, *settings]

    def begin(self, *settings: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "brainseg.train", *self.arguments, *settings],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, code: int, *settings: str) -> list[str]:
        return self.end(self.begin(*settings), code)

    def end(self, process: subprocess.Popen, code: int) -> list[str]:
        """State and label of each job in the table at the end."""
        self.printed, _ = process.communicate(timeout=1500)
        assert process.returncode == code, self.printed
        lines = self.printed.splitlines()
        head = next(number for number, line in enumerate(lines) if line.startswith("job  state"))
        return [
            " ".join(line.split()[1:3])
            for line in itertools.takewhile(lambda line: line[:1].isdigit(), lines[head + 1 :])
        ]

    def queue(self) -> list[str]:
        """ID, state and comment of each job in the queue."""
        listed = call(self.environment, "squeue", "-h", "-r", "-o", "%i %T %k")
        return sorted(listed.splitlines())

    def runs(self) -> dict[int, RunFolder]:
        """The run folders by job number."""
        return {
            json.loads(path.read_text())["job"]: RunFolder(path.parent)
            for path in self.folder.glob("runs/*/run.json")
        }

    def wait_until_training(self, number: int, epochs: int = 2) -> RunFolder:
        """Wait until a job is under way, and return its run."""

        def under_way() -> RunFolder | None:
            run = self.runs().get(number)
            return run if run and run.state == "running" and count(run) >= epochs else None

        return wait_for(under_way, 600)

    def mlflow_states(self) -> list[str]:
        """The states of the runs in MLflow, by job."""
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("brainseg")
        runs = client.search_runs([experiment.experiment_id], "tags.kind = 'run'")
        assert len({run.data.tags["brainseg.uid"] for run in runs}) == len(runs)
        runs.sort(key=lambda run: RunFolder(Path(run.data.tags["folder"])).facts["job"])
        return [run.info.status for run in runs]


def count(run: RunFolder) -> int:
    """The number of epochs that a run has recorded."""
    path = run.path / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def resumed_at(run: RunFolder) -> list[int]:
    """The epochs at which a run was resumed, as its log has them."""
    log = (run.path / "log.txt").read_text()
    return [int(epoch) for epoch in re.findall(r"resumed: +at epoch (\d+)", log)]


def test_jobs_are_submitted_and_collected_by_the_same_command(
    tmp_path: Path, cohort: Path, cluster: dict[str, str]
) -> None:
    sweep = Sweep(tmp_path, cohort, cluster, "seed=0,1", "epochs=2")
    assert sweep.run(0, "wait=false") == ["queued seed=0", "queued seed=1"]
    assert "2 jobs: 0 finished, 0 skipped, 0 failed, 2 queued" in sweep.printed
    queued = sweep.queue()
    assert len(queued) == 2 and all("for the tests" in job for job in queued)
    first = json.loads(next(tmp_path.glob("runs/sweeps/*.json")).read_text())
    # A second start submits nothing, whether it waits or not.
    assert sweep.run(0) == ["finished seed=0", "finished seed=1"]
    assert "comparison" in sweep.printed or "report" in sweep.printed
    assert len(list(tmp_path.glob("runs/hydra/*/.submitit/[0-9]*_[0-9]*"))) == 2
    assert {job["submission"]["number"] for job in first["jobs"]} == {0, 1}
    assert sweep.mlflow_states() == ["FINISHED"] * 2
    assert sweep.run(0) == ["skipped seed=0", "skipped seed=1"]
    assert len(list(tmp_path.glob("runs/hydra/*/.submitit/[0-9]*_[0-9]*"))) == 2


def test_a_killed_and_a_cancelled_job_are_resumed_by_the_same_command(
    tmp_path: Path, cohort: Path, cluster: dict[str, str]
) -> None:
    """Jobs 0 and 1 run. 2 waits for them, and is cancelled before it begins."""
    sweep = Sweep(tmp_path, cohort, cluster, "seed=0,1,2", LONG, "hydra.launcher.timeout_min=60")
    process = sweep.begin()
    killed, cancelled = sweep.wait_until_training(0), sweep.wait_until_training(1)
    array = sweep.queue()[0].partition("_")[0]
    call(cluster, "scancel", f"{array}_2")
    call(cluster, "scancel", f"{array}_1")
    os.kill(killed.status["pid"], signal.SIGKILL)
    assert sweep.end(process, 1) == ["failed seed=0", "stopped seed=1", "stopped seed=2"]
    assert "killed by SIGKILL" in sweep.printed and "left the queue" in sweep.printed
    assert sweep.queue() == []
    assert cancelled.state == "killed" and cancelled.last.is_file()
    saved = count(cancelled)
    assert sweep.mlflow_states() == ["KILLED", "KILLED"]
    assert sweep.run(0) == ["finished seed=0", "finished seed=1", "finished seed=2"]
    assert count(cancelled) == 300 and resumed_at(cancelled) == [saved]
    assert sweep.mlflow_states() == ["FINISHED"] * 3


def test_a_job_that_runs_out_of_time_is_requeued_and_resumed(
    tmp_path: Path, cohort: Path, cluster: dict[str, str]
) -> None:
    """The time limit is set when the job trains, because the imports take long on a busy machine."""
    settings = ("hydra.launcher.timeout_min=60", "hydra.launcher.signal_delay_s=30")
    sweep = Sweep(tmp_path, cohort, cluster, "seed=0", "epochs=100000", "tracking=none", *settings)
    began, process = time.monotonic(), sweep.begin()
    run = sweep.wait_until_training(0)
    job = sweep.queue()[0].split()[0]
    minutes = int((time.monotonic() - began) / 60) + 2
    call(cluster, "scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    wait_for(lambda: run.state == "killed", 600)
    saved = count(run)
    call(cluster, "scontrol", "update", f"JobId={job}", "TimeLimit=60")
    wait_for(lambda: run.state == "running" and count(run) > saved, 600)
    call(cluster, "scancel", job)
    (row,) = sweep.end(process, 1)
    assert row.startswith("stopped ")
    assert resumed_at(run) == [saved], "nothing that was trained is lost"
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(len(rows)))
    assert run.state == "killed" and run.last.is_file() and sweep.queue() == []


def test_a_preempted_job_is_requeued_and_resumed(
    tmp_path: Path, cohort: Path, cluster: dict[str, str]
) -> None:
    sweep = Sweep(tmp_path, cohort, cluster, "seed=0", LONG, "hydra.launcher.timeout_min=60")
    process = sweep.begin()
    run = sweep.wait_until_training(0)
    urgent = ["sbatch", "--partition=urgent", "--ntasks=2", "--output=/dev/null", "--wrap=sleep 1"]
    subprocess.run(urgent, env=cluster, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    wait_for(lambda: run.state == "killed", 600)
    saved = count(run)
    (row,) = sweep.end(process, 0)
    assert row.startswith("finished ")
    assert count(run) == 300 and resumed_at(run) == [saved]
    assert sweep.mlflow_states() == ["FINISHED"]
