"""Places where a study is stored, and the locks by which processes share it.

    sqlite                       runs/search/STUDY.db, the default
    journal:FILE                 a file to which every process appends; made for network disks
    postgresql://USER@HOST/DB    a server

Other places are refused by `check_storage` in config/search.py.

A process holds a lock for its trial. The lock disappears with the process, both in a file system
and in a session of PostgreSQL. Other processes therefore detect a crash without heartbeats. Those
of Optuna need `study.optimize`, which does not make an exact number of trials over processes.
"""

import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from sqlalchemy.engine import URL, Connection

JOURNAL, POSTGRESQL = "journal:", "postgresql://"
# Seconds after which the server ends the session of a machine that no longer answers, and so
# releases its locks: 60 without traffic, then 6 unanswered probes.
KEEPALIVE = "-c tcp_keepalives_idle=60 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=6"
# Numbers of locks that belong to no trial.
STUDY_LOCK, TABLES_LOCK = -1, -2


class StudyLocks(Protocol):
    """Locks of a study. All locks of a process disappear when it ends."""

    def study(self) -> AbstractContextManager[Any]:
        """Hold the lock of the whole study within the block."""

    def acquire_trial(self, number: int) -> bool:
        """Acquire the lock of a trial, and return False if another process holds it."""

    def release_trial(self, number: int) -> None:
        """Release the lock of a trial, if this process holds it."""


class FileLocks:
    """Locks on files in the folder of a study."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._trials: dict[int, FileLock] = {}

    def study(self) -> FileLock:
        """Return the lock of the whole study."""
        return FileLock(self.folder / ".lock")

    def acquire_trial(self, number: int) -> bool:
        """Acquire the lock of a trial, and return False if another process holds it."""
        lock = FileLock(self.folder / f".trial-{number}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        self._trials[number] = lock
        return True

    def release_trial(self, number: int) -> None:
        """Release the lock of a trial, if this process holds it."""
        if lock := self._trials.pop(number, None):
            lock.release()


class ServerLocks:
    """Advisory locks of one session of PostgreSQL."""

    def __init__(self, url: "URL", study: str) -> None:
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        engine = create_engine(url, poolclass=NullPool, connect_args={"options": KEEPALIVE})
        self._connection: Connection = engine.connect().execution_options(
            isolation_level="AUTOCOMMIT"
        )
        # A lock has two numbers of 32 bits with a sign: the study, and the trial.
        self._study = zlib.crc32(study.encode()) - 2**31
        # A session would acquire its own lock a second time.
        self._trials: set[int] = set()

    @contextmanager
    def study(self) -> Iterator[None]:
        """Hold the lock of the whole study within the block."""
        self._call("pg_advisory_lock", STUDY_LOCK)
        try:
            yield
        finally:
            self._call("pg_advisory_unlock", STUDY_LOCK)

    @contextmanager
    def creating_tables(self) -> Iterator[None]:
        """Hold the lock of the database's tables, which all studies share."""
        self._call("pg_advisory_lock", TABLES_LOCK, 0)
        try:
            yield
        finally:
            self._call("pg_advisory_unlock", TABLES_LOCK, 0)

    def acquire_trial(self, number: int) -> bool:
        """Acquire the lock of a trial, and return False if another process holds it."""
        if number in self._trials or not self._call("pg_try_advisory_lock", number):
            return False
        self._trials.add(number)
        return True

    def release_trial(self, number: int) -> None:
        """Release the lock of a trial, if this process holds it."""
        if number in self._trials:
            self._trials.remove(number)
            self._call("pg_advisory_unlock", number)

    def _call(self, function: str, number: int, study: int | None = None) -> Any:
        from sqlalchemy import Integer, cast, func, select

        key = (cast(self._study if study is None else study, Integer), cast(number, Integer))
        return self._connection.execute(select(getattr(func, function)(*key))).scalar()


def open_storage(storage: str, database: Path) -> "tuple[BaseStorage, StudyLocks]":
    """Return Optuna's storage and the locks of a study.

    `database` is the SQLite file of the default storage. Its name is the name of the study, and its
    folder contains the locks of a storage in files.
    """
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend
    from sqlalchemy.engine import URL

    if storage.startswith(POSTGRESQL):
        url = server_url(storage)
        server_locks = ServerLocks(url, database.stem)
        # Two processes that create the tables at the same time would fail.
        with server_locks.creating_tables():
            engine = {"pool_pre_ping": True}
            address = url.render_as_string(hide_password=False)
            return RDBStorage(address, engine_kwargs=engine), server_locks
    locks = FileLocks(database.with_suffix(""))
    if storage.startswith(JOURNAL):
        path = Path(storage.removeprefix(JOURNAL))
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path))), locks
    # The name of a folder may contain characters such as "?", which an address must escape.
    address = URL.create("sqlite", database=str(database.resolve())).render_as_string()
    # The timeout is in seconds. It is the time to wait for another process to end its write.
    arguments = {"connect_args": {"timeout": 60}}
    with locks.study():
        return RDBStorage(address, engine_kwargs=arguments), locks


def exists_in_file(storage: str, database: Path) -> bool:
    """Return True if a file contains the study already. Nothing is created."""
    if storage.startswith(POSTGRESQL) or not Path(place_of(storage, database)).exists():
        return False
    if not storage.startswith(JOURNAL):
        return True
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.study import get_all_study_names

    journal = JournalStorage(JournalFileBackend(place_of(storage, database)))
    return database.stem in get_all_study_names(journal)


def server_url(storage: str) -> "URL":
    """Return the URL of a PostgreSQL server, with the driver that this project installs."""
    from sqlalchemy.engine import make_url

    return make_url(storage).set(drivername="postgresql+psycopg")


def place_of(storage: str, database: Path) -> str:
    """Return the place of a study in words: its file, or the address of its server."""
    if storage.startswith(JOURNAL):
        return storage.removeprefix(JOURNAL)
    return storage if storage.startswith(POSTGRESQL) else str(database)
