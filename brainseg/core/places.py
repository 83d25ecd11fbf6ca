"""Places of files that a run has stored, where its folder was moved or copied since."""

import json
import os
from pathlib import Path
from typing import Any


def relocated_path(stored: str | Path, folder: Path, facts: dict[str, Any]) -> Path:
    """Return where a path stored in a run's `run.json` lies today.

    `facts["path"]` is the folder in which the run was begun. Where the run's folder lies elsewhere today, the
    file at the same place relative to the folder counts: a project that was moved or copied as a whole uses
    its own files. The stored path is returned where there is no such file.
    """
    moved = _relative_to_today(Path(stored), folder, facts)
    return moved if moved is not None and moved.exists() else Path(stored)


def relocated_database(stored: Path, folder: Path, facts: dict[str, Any]) -> Path:
    """Return where the MLflow database of a run lies today, or where it is to be made.

    A folder that no longer exists is never made again only to hold the database: the database then belongs to
    the run's folder of today. A run that does not know where it was begun looks in the folders above it.
    """
    today = relocated_path(stored, folder, facts)
    if today.exists() or stored.parent.exists():
        return today
    above = (parent / stored.name for parent in folder.absolute().parents)
    beside = _relative_to_today(stored, folder, facts) or next(
        (path for path in above if path.is_file()), None
    )
    return beside if beside is not None and beside.parent.exists() else stored


def has_run(folder: Path, uid: str) -> bool:
    """Return True if the folder holds the run with this uid."""
    try:
        return json.loads((folder / "run.json").read_text())["uid"] == uid
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_same_folder(first: Path, second: Path) -> bool:
    """Return True if both paths lead to one folder, through whatever links."""
    return first.absolute() == second.absolute() or (
        first.exists() and second.exists() and first.samefile(second)
    )


def _relative_to_today(stored: Path, folder: Path, facts: dict[str, Any]) -> Path | None:
    """Return the place that is to the run's folder what `stored` was when the run began; None if it was not moved."""
    begun = facts.get("path")
    if not isinstance(begun, str) or is_same_folder(Path(begun), folder):
        return None
    return Path(os.path.normpath(folder.absolute() / os.path.relpath(stored, begun)))
