"""The id of a sweep, and the record of its jobs over all its starts.

The id depends on the question that the sweep asks: the settings swept and those held fixed, not
the values tried. The same command again, and one with more values, are the same sweep. The record
lists the folder of each job, also if another sweep made that folder.

The outcome of a job within one start of the sweep is in `sweeps/job_status.py`.

    runs/sweeps/ID.json     {"id", "jobs": [{"overrides", "folder", "state", "reason"}]}

A job in the queue of a cluster has a further entry, "submission". The same command finds the job by
this entry and does not submit it again.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brainseg.config.overrides import setting_of
from brainseg.core.errors import check
from brainseg.core.files import write_json

# Settings that change no result of a job.
IRRELEVANT = (
    "resume",
    "rerun",
    "wait",
    "force",
    "dry_run",
    "output",
    "tracking",
    "device.on_missing",
    "note",
    "tags",
    "pictures",
    "hydra",
)


def sweep_id(jobs: Sequence[Sequence[str]], swept: Sequence[str]) -> str:
    """Return an id such as depth-width-3fa2b1.

    The id contains the last part of each swept setting and a hash of the fixed settings.
    """
    shared = set.intersection(*(set(job) for job in jobs)) if jobs else set()
    fixed = sorted(
        override
        for override in shared
        if not _is_irrelevant(override) and setting_of(override) not in swept
    )
    names = [name.rsplit(".", 1)[-1] for name in swept] or ["repeat"]
    digest = hashlib.sha256(json.dumps([sorted(swept), fixed]).encode()).hexdigest()[:6]
    return "-".join([*(name.replace("/", "-").replace("@", "-") for name in names), digest])[-60:]


def write_record(root: Path, name: str, jobs: Sequence[dict[str, Any]]) -> None:
    """Update the sweep's record with `jobs`, which replace earlier jobs with the same overrides.

    All other jobs of the record remain.
    """
    path = _path(root, name)
    recorded = json.loads(path.read_text())["jobs"] if path.is_file() else []
    jobs = [
        {**job, "folder": _relative_path(Path(job["folder"]), root) if job["folder"] else ""}
        for job in jobs
    ]
    keys = {_job_key(job) for job in jobs}
    write_json(
        path, {"id": name, "jobs": [*(job for job in recorded if _job_key(job) not in keys), *jobs]}
    )


def recorded_submissions(
    root: Path, name: str, jobs: Sequence[Sequence[str]]
) -> dict[int, dict[str, Any]]:
    """Return the recorded submissions to a queue, by the index in `jobs`, a list of overrides."""
    path = _path(root, name)
    recorded = json.loads(path.read_text())["jobs"] if path.is_file() else []
    by_key = {_job_key(job): job["submission"] for job in recorded if "submission" in job}
    keys = [_job_key({"overrides": overrides}) for overrides in jobs]
    return {number: by_key[key] for number, key in enumerate(keys) if key in by_key}


def sweep_run_folders(name: str, root: Path) -> list[Path]:
    """Return the run folders of a sweep, in the order of its jobs.

    Runs of the sweep that are not in its record follow, because a killed sweep writes no record.
    Raises RequestError, which names the latest sweeps, if there is no run.
    """
    path = _path(root, name)
    jobs = json.loads(path.read_text())["jobs"] if path.is_file() else []
    recorded = [_resolve_folder(job["folder"], root) for job in jobs if job["folder"]]
    started = [
        file.parent
        for file in root.glob("*/run.json")
        if json.loads(file.read_text()).get("sweep") == name
    ]
    started.sort(key=lambda folder: json.loads((folder / "run.json").read_text())["created"])
    # The resolved paths as keys keep each folder only once.
    folders = {
        folder.resolve(): folder
        for folder in [*recorded, *started]
        if (folder / "run.json").is_file()
    }
    check(
        bool(folders) or not path.is_file(),
        "sweep",
        name,
        "none of its jobs has a run yet",
        "start the sweep again; its table names the reason for each job",
    )
    check(
        bool(folders),
        "sweep",
        name,
        f"no such sweep below {root}",
        f"known sweeps: {_list_latest(root)}; set root=DIR to the folder with the sweep's runs",
    )
    return list(folders.values())


def _relative_path(folder: Path, root: Path) -> str:
    """Return the path relative to `root` if the folder lies below it.

    The record then remains valid if `root` is moved or copied.
    """
    folder = folder.absolute()
    return str(
        folder.relative_to(root.absolute()) if folder.is_relative_to(root.absolute()) else folder
    )


def _resolve_folder(stored: str, root: Path) -> Path:
    """Return the current place of a recorded folder.

    The folder is searched below `root` by its path and by its name, then at its own path.
    """
    # An absolute path would replace the root.
    below = [] if Path(stored).is_absolute() else [root / stored]
    places = [*below, root / Path(stored).name, Path(stored)]
    return next((place for place in places if (place / "run.json").is_file()), places[0])


def last_sweep(root: Path) -> str:
    """Return the id of the sweep that ended last below `root`.

    Raises RequestError if there is none.
    """
    names = _sweeps_by_time(root)
    check(
        bool(names),
        "sweep",
        "last",
        f"no sweep below {root}",
        "set root=DIR to the folder with the sweep's runs",
    )
    return names[-1]


def _sweeps_by_time(root: Path) -> list[str]:
    """Return the ids of the sweeps below `root`, the latest at the end."""
    return [
        path.stem
        for path in sorted((root / "sweeps").glob("*.json"), key=lambda path: path.stat().st_mtime)
    ]


def _list_latest(root: Path) -> str:
    return ", ".join(_sweeps_by_time(root)[-5:]) or "none"


def _job_key(job: dict[str, Any]) -> str:
    """Return the text by which two jobs are the same: their overrides that can change a result."""
    return json.dumps(
        sorted(override for override in job["overrides"] if not _is_irrelevant(override))
    )


def _path(root: Path, name: str) -> Path:
    # A name with a slash could lead out of the folder.
    check(
        Path(name).name == name,
        "sweep",
        name,
        "is no sweep's id",
        "give the id that is printed at the end of a sweep",
    )
    return root / "sweeps" / f"{name}.json"


def _is_irrelevant(override: str) -> bool:
    return any(
        setting_of(override) == name or setting_of(override).startswith((f"{name}.", f"{name}/"))
        for name in IRRELEVANT
    )
