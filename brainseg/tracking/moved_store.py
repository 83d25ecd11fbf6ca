"""Correction of the paths stored in an MLflow database that was moved or copied.

MLflow stores the place of each experiment, run and model as an absolute path, and has no way to
change it (https://github.com/mlflow/mlflow/issues/3144). The database of a moved project would send
its artifacts to the old folder, which would be created again. The database of a copied project
would send them to the folder of the original. Therefore each database stores the folder in which it
lies, and its paths are rewritten once when the folder has changed.
"""

import logging
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from brainseg.core.places import is_same_folder

# Tag of an experiment: the folder of the database.
HOME = "brainseg.home"
ARTIFACTS = "mlartifacts"
FILE = "file://"
# The tables and columns in which MLflow stores the place of a file, as a URI.
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
log = logging.getLogger("brainseg")


def update_places(database: Path) -> None:
    """Rewrite the paths of a database that was moved or copied.

    Logs a warning if the database contains runs. Raises sqlite3.Error.
    """
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True)) as connection:
        if _is_at_home(connection, database):
            return
        with FileLock(f"{database}.lock", timeout=60), connection:
            home = _home(connection)
            # Another process may have rewritten the paths while this one waited for the lock.
            if home is None or _is_at_home(connection, database):
                return
            # In a single transaction, a kill leaves the old paths, and the next process starts
            # again.
            connection.execute("BEGIN IMMEDIATE")
            is_copy = (home / database.name).is_file()
            _rewrite(connection, home.as_uri(), database.parent.as_uri())
            _rewrite_tags(connection, home, database.parent)
            for place in _places_outside(connection, database.parent):
                _move_inside(connection, place, database.parent / ARTIFACTS, is_copy)
            (runs,) = connection.execute("SELECT count(*) FROM runs").fetchone()
    if not runs:
        return
    verb = "copied" if is_copy else "moved"
    log.warning(
        "%s was %s from %s: its artifacts are now those in its new folder", database, verb, home
    )


def _is_at_home(connection: sqlite3.Connection, database: Path) -> bool:
    home = _home(connection)
    return home is None or is_same_folder(home, database.parent)


def _home(connection: sqlite3.Connection) -> Path | None:
    """Return the folder in which the database lay when it was last used, or None if unknown."""
    tables = {
        name
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    }
    if not {"experiments", "experiment_tags"} <= tables:
        return None
    tag = connection.execute("SELECT value FROM experiment_tags WHERE key = ?", (HOME,)).fetchone()
    if tag is not None:
        return Path(tag[0])
    # Older databases have no such tag. In a database that brainseg created, the place of MLflow's
    # default experiment shows the folder.
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
            replacement = f"? || substr({column}, ?)"
            condition = f"{column} = ? OR substr({column}, 1, ?) = ?"
            values = (new, len(old) + 1, old, len(old) + 1, f"{old}/")
            connection.execute(
                f"UPDATE {table} SET {column} = {replacement} WHERE {condition}", values
            )


def _rewrite_tags(connection: sqlite3.Connection, old: Path, new: Path) -> None:
    """Replace `old` by `new` in the folders of runs below it, and set the home of experiments."""
    values = (str(new), len(str(old)) + 1, len(str(old)) + 1, f"{old}/")
    condition = "key = 'folder' AND substr(value, 1, ?) = ?"
    connection.execute(f"UPDATE tags SET value = ? || substr(value, ?) WHERE {condition}", values)
    connection.execute("UPDATE experiment_tags SET value = ? WHERE key = ?", (str(new), HOME))


def _places_outside(connection: sqlite3.Connection, folder: Path) -> list[Path]:
    """Return the places of experiments that do not lie in the database's folder."""
    stored = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    paths = [_path(place) for (place,) in stored if place and place.startswith(FILE)]
    return [path for path in paths if not path.is_relative_to(folder)]


def _move_inside(connection: sqlite3.Connection, place: Path, folder: Path, is_copy: bool) -> None:
    """Give an experiment with artifacts outside the database's folder the place `folder` instead.

    After a move, nothing is changed if `place` still exists. After a move to another machine,
    `place` is gone. After a copy, `place` belongs to the original, so that its files are copied.
    """
    if place.exists() and not is_copy:
        return
    if place.exists():
        shutil.copytree(place, folder, dirs_exist_ok=True)
    _rewrite(connection, place.as_uri(), folder.as_uri())


def _path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))
