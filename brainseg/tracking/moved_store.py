"""Places stored in an MLflow database: brought back beside the database after it was moved or copied.

MLflow stores the place of each experiment, run and model as an absolute path, and has no way to change it
(https://github.com/mlflow/mlflow/issues/3144). A database of a moved project would send its artifacts to the
old folder, which would be made again, and one of a copied project to those of the original. So each database
remembers in which folder it lies, and its paths are rewritten once when the folder has changed.
"""

import logging
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from brainseg.core.places import is_same_folder

HOME = "brainseg.home"  # tag of an experiment: the folder of the database
ARTIFACTS = "mlartifacts"
FILE = "file://"
# Where MLflow keeps the place of a file, as a URI.
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
log = logging.getLogger("brainseg")


def update_places(database: Path) -> None:
    """Rewrite the paths of a database that was moved or copied, with a warning if it holds runs. Raises sqlite3.Error."""
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True)) as connection:
        if _is_at_home(connection, database):
            return
        with FileLock(f"{database}.lock", timeout=60), connection:
            home = _home(connection)
            if home is None or _is_at_home(connection, database):  # another process was first
                return
            # One transaction: a kill leaves the old paths, and the next process begins again.
            connection.execute("BEGIN IMMEDIATE")
            is_copy = (home / database.name).is_file()
            _rewrite(connection, home.as_uri(), database.parent.as_uri())
            _rewrite_tags(connection, home, database.parent)
            for place in _outside(connection, database.parent):
                _take_in(connection, place, database.parent / ARTIFACTS, is_copy)
            (runs,) = connection.execute("SELECT count(*) FROM runs").fetchone()
    if not runs:
        return
    verb = "copied" if is_copy else "moved"
    log.warning("%s was %s from %s: its artifacts are now those beside it", database, verb, home)


def _is_at_home(connection: sqlite3.Connection, database: Path) -> bool:
    home = _home(connection)
    return home is None or is_same_folder(home, database.parent)


def _home(connection: sqlite3.Connection) -> Path | None:
    """Return the folder in which the database lay when it was used last; None for a database that does not know."""
    tables = {
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    }
    if not {"experiments", "experiment_tags"} <= tables:
        return None
    tag = connection.execute("SELECT value FROM experiment_tags WHERE key = ?", (HOME,)).fetchone()
    if tag is not None:
        return Path(tag[0])
    # Before there was such a tag: the place that our own databases give to MLflow's default experiment.
    row = connection.execute(
        "SELECT artifact_location FROM experiments WHERE experiment_id = 0"
    ).fetchone()
    default = row[0] if row is not None else ""
    return (
        _path(default).parent.parent
        if default.startswith(FILE) and default.endswith(f"/{ARTIFACTS}/0")
        else None
    )


def _rewrite(connection: sqlite3.Connection, old: str, new: str) -> None:
    """Replace the beginning `old` of every stored place by `new`."""
    for table, column in COLUMNS:
        if column in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}:
            changed = f"? || substr({column}, ?)"
            begins = f"{column} = ? OR substr({column}, 1, ?) = ?"
            values = (new, len(old) + 1, old, len(old) + 1, f"{old}/")
            connection.execute(f"UPDATE {table} SET {column} = {changed} WHERE {begins}", values)


def _rewrite_tags(connection: sqlite3.Connection, old: Path, new: Path) -> None:
    """Let the runs' tags name the folders of today, and the database know its own."""
    begins = (str(new), len(str(old)) + 1, len(str(old)) + 1, f"{old}/")
    where = "key = 'folder' AND substr(value, 1, ?) = ?"
    connection.execute(f"UPDATE tags SET value = ? || substr(value, ?) WHERE {where}", begins)
    connection.execute("UPDATE experiment_tags SET value = ? WHERE key = ?", (str(new), HOME))


def _outside(connection: sqlite3.Connection, here: Path) -> list[Path]:
    """Return the places of experiments that do not lie beside the database."""
    stored = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    paths = [_path(place) for (place,) in stored if place and place.startswith(FILE)]
    return [path for path in paths if not path.is_relative_to(here)]


def _take_in(connection: sqlite3.Connection, place: Path, here: Path, is_copy: bool) -> None:
    """Give an experiment whose artifacts lie apart from the database a place beside it, if `place` is not its own.

    `place` is gone after a move to another machine, and after a copy it is the original's: its files are copied.
    """
    if place.exists() and not is_copy:
        return
    if place.exists():
        shutil.copytree(place, here, dirs_exist_ok=True)
    _rewrite(connection, place.as_uri(), here.as_uri())


def _path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))
