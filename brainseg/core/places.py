"""Relocation of paths stored in a run whose folder was moved or copied."""

import json
import os
from pathlib import Path
from typing import Any


def relocated_path(stored: str | Path, folder: Path, facts: dict[str, Any]) -> Path:
    """Return the present location of a path stored in a run's `run.json`.

    `facts["path"]` is the folder in which the run was started. If the run's folder has moved
    since, the file at the same place relative to the folder is returned: a project that was moved
    or copied as a whole uses its own files. The stored path is returned if no such file exists.
    """
    moved = _relocate(Path(stored), folder, facts)
    return moved if moved is not None and moved.exists() else Path(stored)


def relocated_database(stored: Path, folder: Path, facts: dict[str, Any]) -> Path:
    """Return the present or future location of a run's MLflow database.

    A missing folder is never created only to hold the database. In that case the database belongs
    beside the run's present folder. For a run without a stored start folder, the folders above
    the run's folder are searched.
    """
    present = relocated_path(stored, folder, facts)
    if present.exists() or stored.parent.exists():
        return present
    candidates = (parent / stored.name for parent in folder.absolute().parents)
    moved = _relocate(stored, folder, facts) or next(
        (path for path in candidates if path.is_file()), None
    )
    return moved if moved is not None and moved.parent.exists() else stored


def has_run(folder: Path, uid: str) -> bool:
    """Return True if the folder holds the run with this uid."""
    try:
        return json.loads((folder / "run.json").read_text())["uid"] == uid
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_same_folder(first: Path, second: Path) -> bool:
    """Return True if both paths lead to the same folder. Links are followed."""
    return first.absolute() == second.absolute() or (
        first.exists() and second.exists() and first.samefile(second)
    )


def _relocate(stored: Path, folder: Path, facts: dict[str, Any]) -> Path | None:
    """Return the path that lies relative to `folder` as `stored` lay relative to the start folder.

    Returns None if the run was not moved, or if its start folder is unknown.
    """
    start = facts.get("path")
    if not isinstance(start, str) or is_same_folder(Path(start), folder):
        return None
    return Path(os.path.normpath(folder.absolute() / os.path.relpath(stored, start)))
