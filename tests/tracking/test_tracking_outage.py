"""A store that is away or slow is never a reason for training to stop or to wait, and is caught up with once it is back."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

# The first import takes a second or two, which would count as the cost of an update.
import mlflow.store.tracking.rest_store  # noqa: F401
import pytest
from tracked_runs import START, client, closed_port, points, the_run, write_run
from waiting import wait_for

from brainseg.tracking import mirror as tracking
from brainseg.tracking.client import short_timeouts
from brainseg.tracking.mirror import Mirror
from brainseg.tracking.upload import RunUpload, upload_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hanging() -> Iterator[str]:
    """A server that accepts a connection and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def answering_500() -> Iterator[str]:
    class Broken(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        do_POST = do_PUT = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", ["closed", "hanging", "answering_500"])
def test_a_dead_server_costs_a_second_now_and_then_and_one_warning(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    uri = closed_port() if kind == "closed" else request.getfixturevalue(kind)
    mirror = Mirror(write_run(tmp_path / "run", uri))
    started = time.monotonic()
    mirror.update()
    cost = time.monotonic() - started
    assert cost < 1.9, "one request of at most one second, not repeated"
    assert mirror.not_before - time.monotonic() > 0.9 * tracking.PATIENCE * cost - 1
    started = time.monotonic()
    for _ in range(1000):
        mirror.update()
    assert kind == "closed" or time.monotonic() - started < 0.5, "no attempt before its time"
    mirror.update(final=True)
    assert len([record for record in caplog.records if "tracking failed" in record.message]) == 2, (
        "the first and the final one"
    )
    assert "brainseg.sync" in caplog.records[-1].message and "brainseg.sync" in mirror.describe()


def test_a_store_that_comes_back_is_caught_up_with(
    template: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "share"
    place.write_text(
        "a file where the store's folder should be: as a network folder that is not mounted"
    )
    store = f"sqlite:///{place / 'mlflow.db'}"
    mirror = Mirror(write_run(tmp_path / "run", store, epochs=1))
    mirror.update()
    assert mirror.failing
    place.unlink()
    place.mkdir()
    shutil.copy(template, place / "mlflow.db")
    write_run(tmp_path / "run", store, epochs=4)
    mirror.not_before = 0.0
    mirror.update()
    assert not mirror.failing and "MLflow run:" in mirror.describe()
    assert [step for step, _, _ in points(store, "val/dice")] == [1, 2, 3, 4]
    assert len(caplog.records) == 1


def test_a_slow_store_is_asked_less_often(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time inside tracking stays under a hundredth of the whole; the first success does not count."""
    clock, updates = [0.0], [0]
    monkeypatch.setattr(tracking.time, "monotonic", lambda: clock[0])

    def slow(tracker: RunUpload) -> None:
        updates[0] += 1
        clock[0] += 0.5
        tracker.run_id = "known"

    monkeypatch.setattr(RunUpload, "update", slow)
    mirror = Mirror(tmp_path)
    mirror.update()
    assert updates[0] == 1 and mirror.not_before == 0.0
    while clock[0] < 1000:
        clock[0] += 1
        mirror.update()
    assert 10 < updates[0] <= 2 + 1000 / (100 * 0.5)


@pytest.mark.slow
def test_a_real_server_killed_and_started_again(template: Path, tmp_path: Path) -> None:
    """Over HTTP, served by `brainseg ui`: complete, caught up after the server was away, and Ctrl-C leaves no process."""
    shutil.copy(template, tmp_path / "mlflow.db")
    with serving(tmp_path) as uri:
        mirror = Mirror(write_run(tmp_path / "run", uri, epochs=1))
        wait_for(lambda: mirror.update() or not mirror.failing, 30)
    write_run(tmp_path / "run", uri, epochs=2)
    mirror.not_before = 0.0
    mirror.update()
    assert mirror.failing
    with serving(tmp_path, port=int(uri.rsplit(":", 1)[1])) as again:
        assert again == uri
        write_run(tmp_path / "run", uri, epochs=4, state="finished")
        mirror.update(final=True)
        assert not mirror.failing, mirror.describe()
        upload_run(tmp_path / "run")
        with short_timeouts(10):
            run = the_run(uri)
            assert (run.info.status, len(run.outputs.model_outputs)) == ("FINISHED", 1)
            assert [step for step, _, _ in points(uri, "val/dice")] == [1, 2, 3, 4]
            assert "pictures" in {
                artifact.path for artifact in client(uri).list_artifacts(run.info.run_id)
            }


class serving:
    """`python -m brainseg.ui` in `folder`, ended by Ctrl-C; enters with the server's address."""

    def __init__(self, folder: Path, port: int = 5600) -> None:
        self.folder, self.port = folder, port
        # The exit code, and what is printed at the end.
        self.ending = (0, "\nstopped the MLflow page\n")

    def __enter__(self) -> str:
        environment = {
            name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"
        } | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "brainseg.ui", f"port={self.port}", "browser=false"]
        self.process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            # A test run in the background of a shell ignores Ctrl-C, and its processes would, too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert self.process.stdout
        said = "".join(iter(self.process.stdout.readline, "Ctrl-C ends it.\n"))
        assert said.startswith("starting the MLflow page of sqlite:///")
        return re.search(r"http://127.0.0.1:\d+", said)[0]

    def interrupt_twice(self, pause: float, codes: tuple[int, ...]) -> None:
        """Press Ctrl-C again after `pause` seconds, and expect one of the exit codes."""
        for _ in range(2):
            self.process.send_signal(signal.SIGINT)
            time.sleep(pause)
        assert self.process.wait(20) in codes
        if self.process.returncode == 130:
            self.ending = (130, "")

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(20)
        assert self.process.stdout
        with self.process.stdout as printed:
            assert (code, printed.read()) == self.ending


@pytest.mark.parametrize(
    ("pause", "codes"),
    [
        # The first is noticed after up to 0.2 s, and until then the second has no effect.
        pytest.param(0.05, (0, 130), id="before the server is told"),
        pytest.param(0.3, (130,), id="while the server ends"),
    ],
)
def test_a_second_ctrl_c_leaves_no_server(
    tmp_path: Path, pause: float, codes: tuple[int, ...]
) -> None:
    upload_run(write_run(tmp_path / "run", f"sqlite:///{tmp_path / 'mlflow.db'}"))
    page = serving(tmp_path, 5700)
    with page as address:
        page.interrupt_twice(pause, codes)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 1)


@pytest.mark.parametrize(
    ("state", "minutes", "seconds"),
    [
        ("finished", 1, 1),
        ("finished", 20, 6),
        ("failed", 20, 6),
        ("finished", 900, 10),
        ("killed", 900, 1),
        ("running", 900, 1),
    ],
)
def test_a_slow_server_is_waited_for_once_the_run_has_ended(
    tmp_path: Path, state: str, minutes: int, seconds: int
) -> None:
    """Half a percent of the run's time, so that a server a second away still gets the run; who killed a run does not wait so long."""
    tracker = RunUpload(write_run(tmp_path / "run", f"sqlite:///{tmp_path}/m.db", state=state))
    tracker.status = {
        "state": state,
        "started": START,
        "ended": None if state == "running" else START + minutes * 60_000,
    }
    assert tracker._request_timeout() == seconds
