"""A PostgreSQL server of the tests, which they start and stop themselves."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


def programs() -> Path | None:
    """The folder of PostgreSQL's programs. Debian keeps it out of the search path."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if path := shutil.which("initdb"):
        folders.insert(0, Path(path).resolve().parent)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class PostgresServer:
    """A server on the loopback device, with a user and a database `brainseg`, without passwords."""

    def __init__(self, folder: Path, account: str | None) -> None:
        # PostgreSQL does not run as root.
        self.folder, self.account, self.bin = folder, account, programs()
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self._call("initdb", "-D", folder / "data", "-U", "brainseg", "--auth=trust", "--no-sync")
        self.start()
        address = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "brainseg")
        self._call("createdb", *address, "brainseg")

    @property
    def url(self) -> str:
        return f"postgresql://brainseg@127.0.0.1:{self.port}/brainseg"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder}"
        # The tests kill processes, and not the power.
        options += " -c fsync=off"
        log = self.folder / "server.log"
        self._call("pg_ctl", "-D", self.folder / "data", "-l", log, "-o", options, "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        self._call("pg_ctl", "-D", self.folder / "data", "-m", mode, "-w", "stop")

    def _call(self, program: str, *arguments: str | Path) -> None:
        assert self.bin is not None
        subprocess.run(
            [self.bin / program, *arguments],
            check=True,
            user=self.account,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Start a server, and stop it at the end. Skip the test where PostgreSQL is not installed."""
    pytest.importorskip("psycopg")
    if programs() is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    account = None
    if os.getuid() == 0:
        with suppress(KeyError):
            account = pwd.getpwnam("postgres").pw_name
        if account is None:
            pytest.skip("PostgreSQL does not run as root, and there is no account postgres")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if account is not None:
        shutil.chown(folder, account)
    server = None
    try:
        server = PostgresServer(folder, account)
        yield server
    finally:
        if server is not None:
            with suppress(subprocess.CalledProcessError):
                server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)
