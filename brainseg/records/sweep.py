"""A sweep: what identifies it, and the record of its jobs from start to start.

The id is that of the question asked: the settings swept and those held fixed, not the values tried. So the same command
again, and one widened by a value, are the same sweep; the record tells which folder each of its jobs ran in, also when
that folder had been made by another sweep.

    runs/sweeps/ID.json     {"id", "command", "jobs": [{"overrides", "folder", "state", "reason"}]}
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brainseg.errors import check
from brainseg.files import write_json

ASIDE = ("resume", "rerun", "force", "dry_run", "output", "tracking", "device.on_missing", "hydra")  # change no job's numbers


def sweep_id(jobs: Sequence[Sequence[str]], swept: Sequence[str]) -> str:
    """As depth-width-3fa2b1: the last part of each setting swept, and a hash of what is held fixed."""
    shared = set.intersection(*(set(job) for job in jobs)) if jobs else set()
    fixed = sorted(one for one in shared if not _is_aside(one) and _key(one) not in swept)
    names = [name.rsplit(".", 1)[-1] for name in swept] or ["repeat"]
    digest = hashlib.sha256(json.dumps([sorted(swept), fixed]).encode()).hexdigest()[:6]
    return "-".join([*(name.replace("/", "-").replace("@", "-") for name in names), digest])[-60:]


def write_record(root: Path, name: str, command: Sequence[str], jobs: Sequence[dict[str, Any]]) -> None:
    """Bring the sweep's record up to date: `jobs` replace earlier ones with the same overrides, the others stay."""
    path = _path(root, name)
    before = json.loads(path.read_text())["jobs"] if path.is_file() else []
    now = {json.dumps(job["overrides"]) for job in jobs}
    kept = [job for job in before if json.dumps(job["overrides"]) not in now]
    write_json(path, {"id": name, "command": list(command), "jobs": [*kept, *jobs]})


def read_record(root: Path, name: str) -> dict[str, Any]:
    """The record of a sweep, by id or `last`. Raises RequestError naming the sweeps there are."""
    known = sorted((root / "sweeps").glob("*.json"), key=lambda path: path.stat().st_mtime)
    if name == "last" and known:
        return json.loads(known[-1].read_text())
    path = _path(root, name)
    listed = ", ".join(one.stem for one in known[-5:]) or "none"
    check(path.is_file(), "sweep", name, f"no such sweep below {root}", f"known: {listed}; root=DIR is where the sweep's output was")
    return json.loads(path.read_text())


def jobs_of(name: str, root: Path) -> list[Path]:
    """The run folders of a sweep, in the order of its jobs; jobs that left none are not among them."""
    folders = [Path(job["folder"]) for job in read_record(root, name)["jobs"] if job["folder"]]
    found = [folder for folder in folders if (folder / "run.json").is_file()]
    check(bool(found), "sweep", name, "none of its jobs has a run folder here", "run it again")
    return found


def _path(root: Path, name: str) -> Path:
    check(Path(name).name == name, "sweep", name, "is no sweep's id", "it is printed at the end of a sweep")
    return root / "sweeps" / f"{name}.json"


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


def _is_aside(override: str) -> bool:
    return any(_key(override) == name or _key(override).startswith((f"{name}.", f"{name}/")) for name in ASIDE)
