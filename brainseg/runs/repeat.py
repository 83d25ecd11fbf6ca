"""What repeats or verifies a finished run: its command with exact steps, and its files' hashes.

SHA256SUMS has the format of `sha256sum`, so that `sha256sum -c SHA256SUMS` checks a run folder
without this package.
"""

import hashlib
import shlex
from pathlib import Path

from brainseg.config.overrides import without_settings
from brainseg.core.errors import DataError
from brainseg.core.files import write_text
from brainseg.runs.run_folder import NOT_REPEATED, RunFolder
from brainseg.training.state import State

HASHES = "SHA256SUMS"
# The files that no longer change when a run has ended. The log and the status are written later.
HASHED = (
    "run.json",
    "config.yaml",
    "split.json",
    "code.diff",
    "plan.json",
    "metrics.jsonl",
    "checkpoints/*.pt",
    "summary.json",
    "patients.csv",
    "slices.csv",
    "predictions.h5",
    "pictures/*.png",
)


def exact_steps(state: State) -> list[str]:
    """Return the overrides that replace a run's time budget by its number of steps.

    As many steps use images of half the size as in the run, at most 95 % of all steps.
    """
    half = state.resizing.fraction
    half_resolution = [f"half_resolution={half:.6g}"] if half else []
    return ["max_minutes=null", f"max_steps={state.total_steps}", *half_resolution]


def repeat_command(folder: RunFolder, state: State) -> str:
    """Return the command that takes the number of steps of a run with a time budget anywhere."""
    replaced = ("max_minutes", "max_steps", "steps_of", "half_resolution")
    overrides = without_settings(folder.facts["overrides"], (*NOT_REPEATED, *replaced))
    return shlex.join(["python", "-m", "brainseg.train", *overrides, *exact_steps(state)])


def write_hashes(folder: Path) -> None:
    """Write SHA256SUMS with a line for each file of a run that has ended."""
    files = sorted(path for pattern in HASHED for path in folder.glob(pattern))
    lines = (f"{_hash_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    write_text(folder / HASHES, "".join(lines))


def update_hash(folder: Path, name: str) -> None:
    """Replace the hash of the file `name` in SHA256SUMS, if there is one."""
    path = folder / HASHES
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        current = f"{_hash_file(folder / name)}  {name}\n"
        write_text(
            path, "".join(current if line.endswith(f"  {name}\n") else line for line in lines)
        )


def find_changed_files(folder: Path) -> list[str] | None:
    """Return the files that were changed or removed since the run ended, as text.

    Returns None if the run recorded no hashes, as runs of earlier versions. Raises DataError if
    SHA256SUMS cannot be read.
    """
    path = folder / HASHES
    if not path.is_file():
        return None
    changed = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        digest, separator, name = line.partition("  ")
        file = folder / name
        if not separator or Path(name).is_absolute() or ".." in file.parts:
            raise DataError(f"{path}: not what a run writes ({line[:80]}); restore the file")
        if not file.is_file():
            changed.append(f"{name} is missing")
        elif _hash_file(file) != digest:
            changed.append(f"{name} was changed")
    return changed


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
