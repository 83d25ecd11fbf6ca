"""A sweep: what identifies it, and the record of its jobs from start to start.

The id is that of the question asked: the settings swept and those held fixed, not the values tried. So the same command
again, and one widened by a value, are the same sweep; the record tells which folder each of its jobs ran in, also when
that folder had been made by another sweep.

    runs/sweeps/ID.json     {"id", "jobs": [{"overrides", "folder", "state", "reason"}]}
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brainseg.config.overrides import setting_of
from brainseg.core.errors import check
from brainseg.core.files import write_json

ASIDE = (
    "resume",
    "rerun",
    "force",
    "dry_run",
    "output",
    "tracking",
    "device.on_missing",
    "hydra",
)  # change no job's numbers


def sweep_id(jobs: Sequence[Sequence[str]], swept: Sequence[str]) -> str:
    """As depth-width-3fa2b1: the last part of each setting swept, and a hash of what is held fixed."""
    shared = set.intersection(*(set(job) for job in jobs)) if jobs else set()
    fixed = sorted(one for one in shared if not _is_aside(one) and setting_of(one) not in swept)
    names = [name.rsplit(".", 1)[-1] for name in swept] or ["repeat"]
    digest = hashlib.sha256(json.dumps([sorted(swept), fixed]).encode()).hexdigest()[:6]
    return "-".join([*(name.replace("/", "-").replace("@", "-") for name in names), digest])[-60:]


def write_record(root: Path, name: str, jobs: Sequence[dict[str, Any]]) -> None:
    """Bring the sweep's record up to date: `jobs` replace earlier ones with the same overrides, the others stay.

    A folder below `root` is stored relative to it, so that the record stays true where `root` is moved or copied.
    """
    path = _path(root, name)
    before = json.loads(path.read_text())["jobs"] if path.is_file() else []
    jobs = [
        {**job, "folder": _stored(Path(job["folder"]), root) if job["folder"] else ""}
        for job in jobs
    ]
    now = {_question(job) for job in jobs}
    write_json(
        path, {"id": name, "jobs": [*(job for job in before if _question(job) not in now), *jobs]}
    )


def jobs_of(name: str, root: Path) -> list[Path]:
    """The run folders of a sweep, in the order of its jobs; with those that its record does not know yet.

    Raises RequestError naming the sweeps there are.
    """
    path = _path(root, name)
    jobs = json.loads(path.read_text())["jobs"] if path.is_file() else []
    recorded = [_today(job["folder"], root) for job in jobs if job["folder"]]
    made = [
        file.parent
        for file in root.glob("*/run.json")
        if json.loads(file.read_text()).get("sweep") == name
    ]
    made.sort(key=lambda folder: json.loads((folder / "run.json").read_text())["created"])
    found = {
        folder.resolve(): folder for folder in [*recorded, *made] if (folder / "run.json").is_file()
    }
    check(
        bool(found),
        "sweep",
        name,
        f"no such sweep below {root}",
        f"known: {_listed(root)}; root=DIR is where the sweep's output was",
    )
    return list(found.values())


def _stored(folder: Path, root: Path) -> str:
    folder = folder.absolute()
    return str(
        folder.relative_to(root.absolute()) if folder.is_relative_to(root.absolute()) else folder
    )


def _today(stored: str, root: Path) -> Path:
    """Return where a recorded folder lies today: below `root` by its path or its name, else at its own path."""
    # An absolute path would replace the root.
    below = [] if Path(stored).is_absolute() else [root / stored]
    places = [*below, root / Path(stored).name, Path(stored)]
    return next((place for place in places if (place / "run.json").is_file()), places[0])


def last_sweep(root: Path) -> str:
    """The id of the sweep that ended last below `root`. Raises RequestError if there is none."""
    known = _known(root)
    check(
        bool(known),
        "sweep",
        "last",
        f"no sweep below {root}",
        "root=DIR is where the sweep's output was",
    )
    return known[-1]


def _known(root: Path) -> list[str]:
    return [
        path.stem
        for path in sorted((root / "sweeps").glob("*.json"), key=lambda path: path.stat().st_mtime)
    ]


def _listed(root: Path) -> str:
    return ", ".join(_known(root)[-5:]) or "none"


def _question(job: dict[str, Any]) -> str:
    """What makes two jobs of a sweep the same one: their overrides, but for those that change no number."""
    return json.dumps(sorted(one for one in job["overrides"] if not _is_aside(one)))


def _path(root: Path, name: str) -> Path:
    check(
        Path(name).name == name,
        "sweep",
        name,
        "is no sweep's id",
        "it is printed at the end of a sweep",
    )
    return root / "sweeps" / f"{name}.json"


def _is_aside(override: str) -> bool:
    return any(
        setting_of(override) == name or setting_of(override).startswith((f"{name}.", f"{name}/"))
        for name in ASIDE
    )
