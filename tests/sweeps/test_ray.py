"""Sweeps on a Ray cluster: two nodes on this machine, which the tests start, one of which is killed.

Run by `make test-ray`. The tests without a cluster belong to `make test`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from waiting import free_port, wait_for

from brainseg.config import PhantomConfig
from brainseg.data.phantom.cohort import ensure_cohort
from brainseg.runs.run_folder import RunFolder
from brainseg.sweeps.ray_jobs import stopping_with_sweep
from brainseg.sweeps.run_job import LaunchContext

SMALL = (
    *("model.depth=2", "model.width=2", "device=cpu", "augment=none", "scheduler=none"),
    *("checkpoint.every_minutes=null", "hydra/launcher=ray", "hydra.launcher.cpus_per_task=1"),
)


def test_a_job_on_another_machine_ends_with_its_sweep(tmp_path: Path) -> None:
    launch = LaunchContext("ray", str(tmp_path), "s", "start", (), False)
    for host, is_signalled in (("elsewhere", True), (socket.gethostname(), False)):
        process = subprocess.Popen(["sleep", "60"])
        launch.job_status.write_start(0, pid=process.pid, host=socket.gethostname())
        launch.job_status.stop()
        with stopping_with_sweep(launch, 0, host):
            if is_signalled:
                assert process.wait(10) == -signal.SIGTERM
            else:
                time.sleep(1.5)
                assert process.poll() is None, "the command has sent the signal by itself"
        process.kill()
        process.wait()


class Nodes:
    """Two nodes of a cluster on the loopback device, with one core each."""

    def __init__(self, folder: Path) -> None:
        self.folder, port = folder, free_port()
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        self.address = f"127.0.0.1:{port}"
        head = ("--head", "--port", str(port), "--include-dashboard=false")
        self.first = self.start(*head, "--temp-dir", str(folder))
        self.second = self.start("--address", self.address)

    def start(self, *arguments: str) -> psutil.Process:
        """Start a node and return its raylet, the process of Ray that starts the workers."""
        known = {process.pid for process in raylets()}
        ray = Path(sys.executable).with_name("ray")
        command = [ray, "start", *arguments, "--num-cpus", "1", "--node-ip-address", "127.0.0.1"]
        subprocess.run(command, env=self.environment, check=True, capture_output=True)
        return next(process for process in raylets() if process.pid not in known)


def raylets() -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["name"]) if process.name() == "raylet"]


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    pytest.importorskip("ray")
    # Ray makes sockets in this folder, whose paths must be short.
    folder = Path("/tmp") / f"ray-{os.getpid()}-{free_port()}"
    try:
        yield Nodes(folder)
    finally:
        subprocess.run([Path(sys.executable).with_name("ray"), "stop", "--force"], check=True)
    wait_for(lambda: not raylets(), 60)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = str(tmp_path_factory.mktemp("cohort"))
    return ensure_cohort(PhantomConfig(patients=7, slices=4, size=32, folder=folder))


def begin(nodes: Nodes, folder: Path, cohort: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "brainseg.train", "-m", *SMALL, f"data.path={cohort}"]
    return subprocess.Popen(
        [*command, f"hydra.launcher.address={nodes.address}", *arguments],
        **{"cwd": folder, "env": nodes.environment, "text": True},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
    )


def end(process: subprocess.Popen, code: int) -> str:
    said, _ = process.communicate(timeout=900)
    assert process.returncode == code, said
    return said


def runs(folder: Path) -> dict[int, RunFolder]:
    paths = folder.glob("runs/*/run.json")
    return {json.loads(path.read_text())["job"]: RunFolder(path.parent) for path in paths}


def is_under_way(run: RunFolder) -> bool:
    history = run.path / "metrics.jsonl"
    return run.state == "running" and history.exists() and history.read_text().count("\n") > 2


def states_in_mlflow(folder: Path) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("brainseg").experiment_id
    found = client.search_runs([experiment], "tags.kind = 'run'")
    assert len({run.data.tags["brainseg.uid"] for run in found}) == len(found)
    return [run.info.status for run in found]


@pytest.mark.ray
def test_jobs_of_a_killed_node_resume_on_the_other(
    nodes: Nodes, tmp_path: Path, cohort: Path
) -> None:
    process = begin(nodes, tmp_path, cohort, "seed=range(4)", "epochs=60")

    def job_on_second() -> RunFolder | None:
        for run in runs(tmp_path).values():
            if is_under_way(run):
                parents = psutil.Process(run.status["pid"]).parents()
                if nodes.second.pid in [parent.pid for parent in parents]:
                    return run
        return None

    lost = wait_for(job_on_second, 300)
    nodes.second.kill()
    said = end(process, 0)
    assert "4 jobs: 4 finished, 0 skipped, 0 failed" in said
    assert "resumed:" in (lost.path / "log.txt").read_text()
    for run in runs(tmp_path).values():
        epochs = [json.loads(line)["epoch"] for line in (run.path / "metrics.jsonl").open()]
        assert epochs == list(range(60)), "each epoch once"
    assert sorted(runs(tmp_path)) == [0, 1, 2, 3]
    assert states_in_mlflow(tmp_path) == ["FINISHED"] * 4


@pytest.mark.ray
def test_a_stopped_sweep_is_saved_and_goes_on(nodes: Nodes, tmp_path: Path, cohort: Path) -> None:
    arguments = ("seed=range(3)", "epochs=40", "tracking=none")
    process = begin(nodes, tmp_path, cohort, *arguments)
    wait_for(lambda: [is_under_way(run) for run in runs(tmp_path).values()].count(True) == 2, 300)
    process.send_signal(signal.SIGTERM)
    assert "0 finished, 0 skipped, 0 failed, 3 stopped" in end(process, 143)
    assert {run.state for run in runs(tmp_path).values()} == {"killed"}
    assert "3 jobs: 3 finished" in end(begin(nodes, tmp_path, cohort, *arguments), 0)
    # More cores than any machine has: Ray would wait without end.
    refused = end(begin(nodes, tmp_path, cohort, "seed=7,8", "hydra.launcher.cpus_per_task=9"), 2)
    assert (
        "hydra.launcher.cpus_per_task=9: no machine of the Ray cluster has more than 1" in refused
    )
    assert "wait=false" in end(begin(nodes, tmp_path, cohort, "seed=7,8", "wait=false"), 2)


@pytest.mark.ray
def test_without_a_cluster_the_address_is_named(tmp_path: Path, cohort: Path) -> None:
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "brainseg.train", "-m", *SMALL, f"data.path={cohort}"]
    done = subprocess.run(
        [*command, "seed=0,1", "hydra.launcher.address=127.0.0.1:1"],
        **{"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300},
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "hydra.launcher.address=127.0.0.1:1: no Ray cluster answers" in done.stderr
