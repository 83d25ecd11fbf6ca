"""A real MLflow server that can be killed, and a port in front of one at which every fault of a network can be had."""

import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from waiting import free_port

from brainseg.tracking.client import NO_TELEMETRY, ui_command

QUIET = NO_TELEMETRY | {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "PYTHONWARNINGS": "ignore",
}
BROKEN = b"HTTP/1.1 500 Internal Server Error\r\nRetry-After: 60\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Server:
    """`mlflow server` over `mlflow.db` in `folder`; the address stays the same when it is killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self) -> None:
        """Begin; `wait` says when it answers."""
        command = ui_command(f"sqlite:///{self.folder / 'mlflow.db'}", self.port)
        assert command
        environment = {
            name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"
        } | QUIET
        self.process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while True:
            with (
                suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection,
            ):
                connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                if b"200" in connection.recv(64):
                    return
            assert time.monotonic() < end and self.process.poll() is None, (
                "the MLflow server does not answer"
            )
            time.sleep(0.2)

    def kill(self) -> None:
        """kill -9 of the server with all its workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Gate:
    """A port that does to every connection what its mode says, also to those that are open when the mode changes.

    open: passes everything on to the server. closed: nobody listens. hanging: accepts and never answers. broken: answers 500.
    cutting: passes the request on, and cuts the connection when the server has done it and answers.
    """

    def __init__(self, mode: str, server: str = "") -> None:
        self.server = (urlsplit(server).hostname, urlsplit(server).port)
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.listener: socket.socket | None = None
        self.connections: list[socket.socket] = []
        self.set(mode)

    def set(self, mode: str) -> None:
        self.mode = mode
        if mode == "closed" and self.listener is not None:
            _cut(self.listener)
            self.listener = None
        if mode != "closed" and self.listener is None:
            self.listener = socket.create_server(("127.0.0.1", self.port))
            threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()
        while self.connections:
            _cut(self.connections.pop())

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                connection, _ = listener.accept()
                self.connections.append(connection)
                if self.mode != "hanging":
                    threading.Thread(
                        target=self._serve, args=(connection, self.mode), daemon=True
                    ).start()

    def _serve(self, connection: socket.socket, mode: str) -> None:
        with suppress(OSError):  # either side is gone
            if mode == "broken":
                connection.recv(1 << 16)
                connection.sendall(BROKEN)
                return _cut(connection)
            with socket.create_connection(self.server) as upstream:
                self.connections.append(upstream)
                threading.Thread(target=_pass, args=(connection, upstream), daemon=True).start()
                if mode == "cutting":
                    upstream.recv(1)
                else:
                    _pass(upstream, connection)
        _cut(connection)


def _pass(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes from `source` until it ends."""
    with suppress(OSError):
        while content := source.recv(1 << 16):
            target.sendall(content)
    _cut(source)
    _cut(target)


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
