"""MLflow for a lab: scripts/tracking_server.py on PostgreSQL, killed and started again while runs are recorded."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from postgres_server import PostgresServer, running_postgres
from tracking_servers import free_port
from warm_processes import TINY, start

ROOT = Path(__file__).resolve().parents[2]
ADMIN, USER = ("admin", "the password of admin"), ("ana", "the password of ana")


class LabServer:
    """The script's server. Its address stays the same when it is killed and started again."""

    def __init__(self, database: str, folder: Path) -> None:
        self.database, self.folder, self.port = database, folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, ROOT / "scripts/tracking_server.py", self.database]
        self.process = subprocess.Popen(
            [*command, "--folder", self.folder, "--port", str(self.port), "--workers", "1"],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
            },
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=(self.folder.parent / "server.log").open("ab"),
        )
        end = time.monotonic() + 600
        while self.process.poll() is None and time.monotonic() < end:
            with suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=5)
                return
            time.sleep(0.5)
        raise AssertionError((self.folder.parent / "server.log").read_text()[-3000:])

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def create_user(self) -> None:
        request = urllib.request.Request(
            f"{self.uri}/api/2.0/mlflow/users/create",
            json.dumps({"username": USER[0], "password": USER[1]}).encode(),
            {
                "Content-Type": "application/json",
                "Authorization": "Basic " + base64.b64encode(":".join(ADMIN).encode()).decode(),
            },
        )
        assert urllib.request.urlopen(request, timeout=60).status == 200


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    pytest.importorskip("flask_wtf", reason="mlflow[auth] is not installed")
    with running_postgres() as running:
        yield running


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_nothing_is_lost_when_server_and_database_are_killed(
    tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes record two runs each. In the middle, the server is killed and PostgreSQL crashes."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    server = LabServer(postgres.url, tmp_path / "server")
    try:
        server.create_user()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER[0])
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", USER[1])
        as_user = partial(
            set_environment,
            MLFLOW_TRACKING_URI=server.uri,
            MLFLOW_TRACKING_USERNAME=USER[0],
            MLFLOW_TRACKING_PASSWORD=USER[1],
        )
        command = ("-m", *TINY, "epochs=40")
        processes = [
            start(tmp_path, "train", *command, f"seed={seeds}", before=as_user)
            for seeds in ("0,1", "2,3")
        ]
        wait_for_epochs(tmp_path, 2)
        server.kill()
        postgres.stop("immediate")
        wait_for_epochs(tmp_path, 6)
        postgres.start()
        server.start()
        for process in processes:
            process.finish(0)
        # A server on a busy machine may not answer in time. The same command then goes on.
        for _ in range(6):
            printed = start(tmp_path, "sync", "runs", before=as_user).finish(0, 1)
            if "4 of 4 runs are in MLflow" in printed:
                break

        client = MlflowClient(server.uri)
        experiment = client.get_experiment_by_name("brainseg")
        runs = client.search_runs([experiment.experiment_id], "tags.kind = 'run'")
        assert [run.info.status for run in runs] == ["FINISHED"] * 4
        assert len({run.data.tags["brainseg.uid"] for run in runs}) == 4
        for run in runs:
            points = client.get_metric_history(run.info.run_id, "val/dice")
            rows = history(Path(run.data.tags["folder"]))
            assert sorted(point.step for point in points) == [row["epoch"] for row in rows]
            assert run.info.artifact_uri.startswith("mlflow-artifacts:")
            names = {file.path for file in client.list_artifacts(run.info.run_id)}
            assert names, "the files are on the server"
        stored = [path for path in (tmp_path / "server/artifacts").rglob("*") if path.is_file()]
        assert len(stored) >= 4 and not (tmp_path / "mlruns").exists()

        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another password")
        with pytest.raises(MlflowException):
            MlflowClient(server.uri).get_experiment_by_name("brainseg")
    finally:
        server.kill()


def set_environment(**values: str) -> None:
    """In the process of a command."""
    os.environ.update(values)


def history(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def wait_for_epochs(folder: Path, epochs: int) -> None:
    """Wait until two runs, one of each process, have so many epochs."""
    end = time.monotonic() + 1200
    while (
        sum(len(history(path.parent)) >= epochs for path in folder.glob("runs/*/metrics.jsonl")) < 2
    ):
        assert time.monotonic() < end, "not in time"
        time.sleep(0.1)
