"""Access to the MLflow store: its URI, clients with short timeouts, and links to its pages."""

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

from brainseg.core.errors import RequestError, check
from brainseg.core.files import remove_stale, writing
from brainseg.core.places import relocated_database
from brainseg.core.uris import contains_password, split_uri
from brainseg.tracking import chart_layout
from brainseg.tracking.moved_store import ARTIFACTS, HOME, update_places
from brainseg.tracking.names import experiment_name
from brainseg.tracking.refusals import RefusedError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

SQLITE = "sqlite:///"
# MLflow creates the folder of a URL of the first form without decoding it, for example with `%3F`
# in the name instead of `?`. A path with such characters therefore needs the second form, which
# MLflow and SQLAlchemy accept for the same database.
QUOTED_SQLITE = "sqlite+pysqlite:///"
LOCAL_UI = "http://127.0.0.1:5000"
# MLflow reads these when it is imported, and its threads read them at any later time. So they are
# set permanently, not only around our calls.
NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


def tracking_uri(configured: str | None) -> str:
    """Return the URI of the store, with an absolute path if it is a SQLite file.

    The URI is `configured`, else MLFLOW_TRACKING_URI, else `mlflow.db` in the current folder.
    MLflow's own default is not used: a leftover `mlruns/` folder turns that default into the file
    store, which 3.17 refuses. Raises RequestError for a folder (the file store), for a password,
    which would be copied into every run's records, and for other databases: MLflow would put the
    files of a run into a folder of each client.
    """
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    rule = "must be http://HOST:PORT or sqlite:///FILE"
    parts = split_uri("tracking.uri", uri, rule)
    remedy = "MLflow no longer supports folders as stores"
    check(parts.scheme not in ("", "file"), "tracking.uri", uri, rule, remedy)
    rule_of_passwords = "must not contain a password, because the URI is stored with each run"
    remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    hidden = f"{parts.scheme}://..."
    check(not contains_password(parts), "tracking.uri", hidden, rule_of_passwords, remedy)
    check(
        parts.scheme in ("http", "https") or is_sqlite(uri),
        "tracking.uri",
        uri,
        f"{rule}; a client that writes to another database loses the files of its runs",
        "start a server on the database, as docs/tracking_server.md describes, and name the server",
    )
    return sqlite_uri(_database(uri), uri.partition("?")[2]) if is_sqlite(uri) else uri.rstrip("/")


def sqlite_uri(database: Path, query: str = "") -> str:
    """Return the URL of a SQLite file, with an absolute path.

    Only the characters that have a meaning in an SQLAlchemy URL are quoted, so that the URL stays
    readable.
    """
    path = str(database.absolute())
    quoted = path.replace("%", "%25").replace("?", "%3F")
    return f"{SQLITE if quoted == path else QUOTED_SQLITE}{quoted}" + (f"?{query}" if query else "")


def is_sqlite(uri: str) -> bool:
    """Return True if the URL names a SQLite file, in either of the two forms."""
    return uri.startswith((SQLITE, QUOTED_SQLITE))


def import_mlflow() -> None:
    """Import MLflow, which takes seconds the first time, without its telemetry."""
    os.environ.update(NO_TELEMETRY)
    import mlflow  # noqa: F401


@contextmanager
def short_timeouts(seconds: int) -> Iterator[None]:
    """Limit MLflow's HTTP requests to `seconds` without retries, and silence MLflow's own output.

    The caller reports failures itself, in one line.
    """
    # The import also sets up the logger that is silenced below.
    import_mlflow()
    settings = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        # Measured: points that are logged asynchronously are lost when the process is killed.
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    }
    previous = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def connect(uri: str, make: bool = True) -> "MlflowClient":
    """Return a client of the store at `uri`.

    If `make` is True, a missing SQLite store is created first. The creation is atomic, and only one
    process does it. Raises OSError if a SQLite file is missing, cannot be opened or is no database,
    and MlflowException if its schema belongs to another version of MLflow.
    """
    from mlflow import MlflowClient

    if is_sqlite(uri):
        database = _database(uri)
        if not database.exists():
            if not make:
                raise OSError(f"{database}: no such file")
            _create(database)
        # MLflow itself would retry for 100 seconds before it reports a file that cannot be opened.
        try:
            with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True)) as connection:
                connection.execute("PRAGMA schema_version")
            update_places(database)
        except sqlite3.Error as error:
            raise OSError(f"{database}: {error}") from error
    return MlflowClient(tracking_uri=uri)


def experiment_id(client: "MlflowClient", uri: str, name: str, artifacts: str | None) -> str:
    """Return the id of the experiment `name`, and create the experiment if it is missing.

    Several processes may do this at once. In a SQLite store, the artifacts lie in the folder
    `artifacts`, relative to the database's folder. A server chooses its own place. Raises
    RefusedError if the experiment was deleted in MLflow.
    """
    from mlflow.exceptions import MlflowException

    tags = chart_layout.experiment_tags()
    if is_sqlite(uri):
        tags[HOME] = str(_database(uri).parent)
    name = experiment_name(name)
    if experiment := client.get_experiment_by_name(name):
        if experiment.lifecycle_stage == "deleted":
            restore = (
                f"MLFLOW_TRACKING_URI={shlex.quote(uri)}"
                f" mlflow experiments restore -x {experiment.experiment_id}"
            )
            raise RefusedError(
                f"tracking.experiment={name} was deleted in {uri}; "
                f"restore it with `{restore}`, or choose another experiment"
            )
        for key in tags.keys() - experiment.tags.keys():
            client.set_experiment_tag(experiment.experiment_id, key, tags[key])
        return experiment.experiment_id
    location = (
        (_database(uri).parent / (artifacts or ARTIFACTS)).as_uri() if is_sqlite(uri) else None
    )
    try:
        return client.create_experiment(name, location, tags)
    except MlflowException:
        # Another process may have created the experiment in the meantime.
        if experiment := client.get_experiment_by_name(name):
            return experiment.experiment_id
        raise


def add_layout(client: "MlflowClient", experiment: str, sweep: str | None) -> None:
    """Store the chart layout of a sweep, or of all runs, unless the experiment has one.

    The jobs of a sweep store a layout with a column for each varied setting, which is kept.
    """
    present = client.get_experiment(experiment).tags
    for key, value in chart_layout.experiment_tags(sweep).items():
        if key not in present:
            client.set_experiment_tag(experiment, key, value)


def store_of(facts: dict[str, Any], folder: Path, uri: str | None = None) -> str:
    """Return the URI of a run's store.

    The store is `uri` if it is not None, else the store that `run.json` names, at its current
    place. `facts` is the content of `run.json`, and `folder` is the run's folder. Raises
    RequestError like `tracking_uri`.
    """
    stored = tracking_uri(uri or (facts["tracking"] or {}).get("uri"))
    if uri is not None or not facts["tracking"] or not is_sqlite(stored):
        return stored
    return sqlite_uri(relocated_database(_database(stored), folder, facts))


def artifact_repository(location: str, uri: str) -> "ArtifactRepository":
    """Return the artifact repository of a run or model.

    `location` is the place of its files, as the store `uri` names it.
    MLflow's client caches such places by run id alone, for the whole process. A copy of a project
    has the same ids. A process that works on both projects would therefore send the files of the
    first project to the second, or the reverse.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(location, tracking_uri=uri)


def run_link(uri: str, experiment: str, run_id: str) -> str:
    """Return the URL of a run's page."""
    return f"{ui_url(uri)}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"


def chart_link(uri: str, experiment: str, sweep: str | None = None) -> str:
    """Return the URL of the page with the curves of an experiment's runs, or of a sweep's runs."""
    view = (
        "workflowType=machine_learning&compareRunsMode=CHART"
        f"&viewStateShareKey={chart_layout.layout_key(sweep)}"
    )
    return f"{ui_url(uri)}/#/experiments/{experiment}/runs?{view}"


def ui_command(uri: str, port: int = 5000) -> list[str] | None:
    """Return the command that serves a database's pages, reachable from this machine only.

    Returns None for a server, which serves its own pages.
    """
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
    """Return lines for the terminal: the link to a run's page, and the command that serves it."""
    return f"MLflow run:    {run_link(uri, experiment, run_id)}{_describe_server(uri)}"


def describe_charts(uri: str, experiment: str, sweep: str | None) -> str:
    """Return lines for the terminal: the link to the charts, and the command that serves them."""
    return f"MLflow charts: {chart_link(uri, experiment, sweep)}{_describe_server(uri)}"


def _describe_server(uri: str) -> str:
    """Return a line with the command that serves a database's pages, or "" for a server."""
    if ui_command(uri) is None:
        return ""
    setting = "" if _is_default(uri) else f" {shlex.quote(f'tracking.uri={uri}')}"
    return f"\n               (opened by: python -m brainseg.ui{setting})"


def _is_default(uri: str) -> bool:
    """Return True if commands without tracking.uri use this store."""
    try:
        return uri == tracking_uri(None)
    # MLFLOW_TRACKING_URI names a store that cannot be used, which does not concern this one.
    except RequestError:
        return False


def ui_url(uri: str) -> str:
    """Return the URL of the store's front page.

    For a database, that is the address at which `ui_command` serves it.
    """
    return uri if urlsplit(uri).scheme in ("http", "https") else LOCAL_UI


def _database(uri: str) -> Path:
    """Return the absolute path of the file that a SQLite URL names."""
    path, _, _ = uri.removeprefix(QUOTED_SQLITE).removeprefix(SQLITE).partition("?")
    return Path(unquote(path)).absolute()


def _create(database: Path) -> None:
    """Create the database under a temporary name, then rename the file.

    If MLflow is killed during its migrations, it leaves a file that can never be opened again.
    """
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=60):
        if database.exists():
            return
        remove_stale(database, seconds=0)
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        with writing(database) as temporary, _disable_sync():
            store: Any = SqlAlchemyStore(
                sqlite_uri(temporary), (database.parent / ARTIFACTS).as_uri()
            )
            store.engine.dispose()


@contextmanager
def _disable_sync() -> Iterator[None]:
    """Stop SQLite from waiting for the disk, which is safe for a file that has no name yet.

    Measured: 6.1 s of migrations become 1.4 s.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def relax(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", relax)
    try:
        yield
    finally:
        event.remove(Engine, "connect", relax)
