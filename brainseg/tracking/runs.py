"""Lookup of the MLflow run that mirrors a run folder.

The folder may have been moved, copied, or copied to another machine.
"""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brainseg.core.places import has_run, is_same_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

HOST, INODE = "folder.host", "folder.inode"
# The maximum number of copies of one run in one experiment.
MAX_COPIES = 100


def place_tags(folder: Path) -> dict[str, str]:
    """Return the tags that identify a folder: its path, the host's name, and its inode number."""
    return {
        "folder": str(folder.absolute()),
        HOST: socket.gethostname(),
        INODE: str(folder.stat().st_ino),
    }


def runs_of_uid(client: "MlflowClient", experiment: str, uid: str) -> "list[Run]":
    """Return the MLflow runs of a uid. Each copy of the run's folder has its own run."""
    return list(
        client.search_runs([experiment], f"tags.`brainseg.uid` = '{uid}'", max_results=MAX_COPIES)
    )


def find_run(client: "MlflowClient", experiment: str, uid: str, folder: Path) -> "Run | None":
    """Return the MLflow run that mirrors the run folder with this uid.

    Returns None if MLflow has no such run, or only the run of another copy.
    """
    return mirror_among(
        runs_of_uid(client, experiment, uid), folder, lambda place: has_run(place, uid)
    )


def mirror_among(
    runs: "Sequence[Run]", folder: Path, is_there: Callable[[Path], bool]
) -> "Run | None":
    """Return the run that mirrors `folder`, else a run whose own folder no longer exists.

    In the second case, the folder was moved to `folder`. `is_there` returns True for a folder that
    still contains the contents that its MLflow run mirrors. A folder on another machine cannot be
    examined and counts as existing, because an additional run is better than an overwritten run.
    """
    mirroring = [run for run in runs if _mirrors(run.data.tags, folder)]
    left_behind = [run for run in runs if not _is_elsewhere(run.data.tags, is_there)]
    return next(iter([*mirroring, *left_behind]), None)


def _mirrors(tags: dict[str, str], folder: Path) -> bool:
    """Return True if the tags name this very folder."""
    place = tags.get("folder", "")
    if _is_of_this_host(tags):
        return bool(place) and is_same_folder(Path(place), folder)
    # On a disk that several machines share, a folder has the same path and inode number on each.
    return place_tags(folder)["folder"] == place and place_tags(folder)[INODE] == tags.get(INODE)


def _is_elsewhere(tags: dict[str, str], is_there: Callable[[Path], bool]) -> bool:
    """Return True if the folder that the tags name still exists, or if it is on another machine."""
    return "folder" in tags and (not _is_of_this_host(tags) or is_there(Path(tags["folder"])))


def _is_of_this_host(tags: dict[str, str]) -> bool:
    return tags.get(HOST, socket.gethostname()) == socket.gethostname()
