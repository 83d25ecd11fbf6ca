"""Where MLflow's records are: which store, how to reach it without ever waiting long, and the links into its pages."""

import logging
import os
import shlex
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from brainseg.core.errors import check
from brainseg.core.files import remove_stale, writing
from brainseg.core.places import relocated_database
from brainseg.tracking import chart_layout
from brainseg.tracking.moved_store import ARTIFACTS, HOME, update_places
from brainseg.tracking.names import experiment_name
from brainseg.tracking.refusals import RefusedError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

SQLITE = "sqlite:///"
# MLflow makes the folder that stands in a URL of the first form as it stands there, `%3F` for `?` included, so a path that
# needs such signs is named in the second form, which MLflow and SQLAlchemy take for the same database.
QUOTED_SQLITE = "sqlite+pysqlite:///"
LOCAL_UI = "http://127.0.0.1:5000"
# Read when mlflow is imported and by its threads at any time after, so set for good and not only around our calls.
NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


def tracking_uri(configured: str | None) -> str:
    """The store to use: `configured`, else MLFLOW_TRACKING_URI, else `mlflow.db` in the current folder; SQLite paths absolute.

    MLflow's own default is not asked, because a leftover `mlruns/` folder turns it into the file store, which 3.17 refuses.
    Raises RequestError for a folder (that file store) and for a password, which would be copied into every run's records.
    """
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    parts = urlsplit(uri)
    kinds = "must be http://HOST:PORT, sqlite:///FILE or a database that MLflow knows"
    check(
        parts.scheme not in ("", "file"),
        "tracking.uri",
        uri,
        kinds,
        "MLflow's file store is closed",
    )
    remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or use the database's password file"
    check(
        not parts.password,
        "tracking.uri",
        f"{parts.scheme}://...",
        "must hold no password, it is stored with each run",
        remedy,
    )
    return sqlite_uri(_database(uri), uri.partition("?")[2]) if is_sqlite(uri) else uri.rstrip("/")


def sqlite_uri(database: Path, query: str = "") -> str:
    """Return the URL of a SQLite file, with the signs quoted that have a meaning in a URL of SQLAlchemy.

    Every other sign of the absolute path stays as it is, so that the URL can be read.
    """
    path = str(database.absolute())
    quoted = path.replace("%", "%25").replace("?", "%3F")
    return f"{SQLITE if quoted == path else QUOTED_SQLITE}{quoted}" + (f"?{query}" if query else "")


def is_sqlite(uri: str) -> bool:
    """Return True if the URL is that of a SQLite file, in either of the two forms."""
    return uri.startswith((SQLITE, QUOTED_SQLITE))


def import_mlflow() -> None:
    """Import MLflow, which takes seconds the first time, without its telemetry."""
    os.environ.update(NO_TELEMETRY)
    import mlflow  # noqa: F401


@contextmanager
def short_timeouts(seconds: int) -> Iterator[None]:
    """Inside, an HTTP request gives up after `seconds` and is not repeated, and MLflow prints nothing: we say it, in one line."""
    import_mlflow()  # which also sets up the logger that is quietened below
    settings = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",  # measured: asynchronous points are lost at a hard kill
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def connect(uri: str, make: bool = True) -> "MlflowClient":
    """A client of the store at `uri`; a SQLite store that is not there yet is made, by one process and at once, if `make` says so.

    Raises OSError when a SQLite file is not there, cannot be opened or is no database, MlflowException when its schema is another
    version's.
    """
    from mlflow import MlflowClient

    if is_sqlite(uri):
        database = _database(uri)
        if not database.exists():
            if not make:
                raise OSError(f"{database}: no such file")
            _create(database)
        try:  # MLflow itself would try for 100 seconds to open a file that cannot be opened
            with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True)) as connection:
                connection.execute("PRAGMA schema_version")
            update_places(database)
        except sqlite3.Error as error:
            raise OSError(f"{database}: {error}") from error
    return MlflowClient(tracking_uri=uri)


def experiment_id(client: "MlflowClient", uri: str, name: str, artifacts: str | None) -> str:
    """The id of experiment `name`, which is created if it is missing; several processes may do so at once.

    In a SQLite store its artifacts lie in the folder `artifacts`, taken from the database's folder; a server has its own place.
    Raises RefusedError if the experiment was deleted in MLflow.
    """
    from mlflow.exceptions import MlflowException

    tags = chart_layout.experiment_tags()
    if is_sqlite(uri):
        tags[HOME] = str(_database(uri).parent)
    name = experiment_name(name)
    if found := client.get_experiment_by_name(name):
        if found.lifecycle_stage == "deleted":
            restore = f"MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow experiments restore -x {found.experiment_id}"
            raise RefusedError(
                f"tracking.experiment={name} was deleted in {uri}; restore it with `{restore}`, or name another one"
            )
        for key in tags.keys() - found.tags.keys():
            client.set_experiment_tag(found.experiment_id, key, tags[key])
        return found.experiment_id
    location = (
        (_database(uri).parent / (artifacts or ARTIFACTS)).as_uri() if is_sqlite(uri) else None
    )
    try:
        return client.create_experiment(name, location, tags)
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another process was first
            return found.experiment_id
        raise


def store_of(facts: dict[str, Any], folder: Path, uri: str | None = None) -> str:
    """Return the store of a run: `uri` if it is given, else the one named in `run.json`, where it lies today.

    `facts` is the content of `run.json`, and `folder` the run's folder. Raises RequestError as `tracking_uri`.
    """
    stored = tracking_uri(uri or (facts["tracking"] or {}).get("uri"))
    if uri is not None or not facts["tracking"] or not is_sqlite(stored):
        return stored
    return sqlite_uri(relocated_database(_database(stored), folder, facts))


def files_at(location: str, uri: str) -> "ArtifactRepository":
    """Return the files of a run or model of the store `uri`, by the place that the store names for them.

    MLflow's client remembers such places by the run's id alone, for the whole process. A copy of a project has the
    same ids, so that a process that is at work on both would send the files of the one to the other.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(location, tracking_uri=uri)


def run_link(uri: str, experiment: str, run_id: str) -> str:
    """The page of a run."""
    return f"{ui_url(uri)}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"


def chart_link(uri: str, experiment: str, sweep: str | None = None) -> str:
    """The page that draws the curves of all runs of an experiment, or of one sweep's, without a further click."""
    view = f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={chart_layout.key(sweep)}"
    return f"{ui_url(uri)}/#/experiments/{experiment}/runs?{view}"


def ui_command(uri: str, port: int = 5000) -> list[str] | None:
    """The command that serves the pages of a database on this machine alone; None for a server, which serves its own."""
    if urlsplit(uri).scheme in ("http", "https"):
        return None
    address = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)]
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        *address,
        "--workers",
        "1",
        "--uvicorn-opts",
        "--log-level warning",
    ]


def describe_run(uri: str, experiment: str, run_id: str) -> str:
    """Two or three lines for the terminal: the run's page, the charts, and what to start first."""
    lines = [
        f"MLflow run:    {run_link(uri, experiment, run_id)}",
        f"MLflow charts: {chart_link(uri, experiment)}",
    ]
    if command := ui_command(uri):
        lines.append(f"they open by:  {shlex.join(command)}")
    return "\n".join(lines)


def ui_url(uri: str) -> str:
    """The front page of the store: the server itself, or where `ui_command` serves a database."""
    return uri if urlsplit(uri).scheme in ("http", "https") else LOCAL_UI


def _database(uri: str) -> Path:
    """Return the absolute path of the file that a SQLite URL names."""
    path, _, _ = uri.removeprefix(QUOTED_SQLITE).removeprefix(SQLITE).partition("?")
    return Path(unquote(path)).absolute()


def _create(database: Path) -> None:
    """Make the tables under another name and rename the file: killed inside its migrations, MLflow leaves one that never opens again."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=60):
        if database.exists():
            return
        remove_stale(database, seconds=0)
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        with writing(database) as temporary, _unsynchronised():
            store: Any = SqlAlchemyStore(
                sqlite_uri(temporary), (database.parent / ARTIFACTS).as_uri()
            )
            store.engine.dispose()


@contextmanager
def _unsynchronised() -> Iterator[None]:
    """Inside, SQLite waits for no disk: a file that has no name yet may be lost (measured: 6.1 s of migrations become 1.4 s)."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def relax(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", relax)
    try:
        yield
    finally:
        event.remove(Engine, "connect", relax)
