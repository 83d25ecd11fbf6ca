"""A full disk: the run stops with the file's name, the checkpoint before still loads, and nothing half written has a final name."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import pytest
from harness import Child, Ended, Fault, Result, command, sizes, survives

from brainseg.config import PhantomConfig
from brainseg.core.errors import DataError
from brainseg.data.conversion import convert
from brainseg.data.phantom.cohort import write_cohort
from brainseg.runs import checkpoint

PAGE = 4096  # bytes that a tmpfs gives out
FULL = {os.strerror(number) for number in (errno.EFBIG, errno.ENOSPC)}
OVERRIDES = [
    "model.depth=2",
    "model.width=4",
    "model.dropout=0.1",
    "epochs=3",
    "batch_size=14",
    "optimizer.lr=0.03",
    "checkpoint.keep=all",
    "checkpoint.every_minutes=null",
    "checkpoint.every_steps=3",
    "device=cpu",
    "device.threads=1",
    "tracking=none",
    "output=run",
]


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes in memory; skips where mounting is not allowed."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def mountable(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips, in the main thread, where no tmpfs can be mounted."""
    if shutil.which("mount") is None:
        pytest.skip("cannot mount a tmpfs: there is no mount")
    with small_disk(tmp_path_factory.mktemp("mount") / "disk", PAGE):
        pass


# training


@dataclass(frozen=True)
class Halfway:
    """A run killed in its second epoch, and what it would have come to."""

    folder: Path  # holds run/
    arguments: tuple[str, ...]
    result: Result
    largest: int  # bytes of its last checkpoint
    locked: int  # the event with which a run begins to write


@pytest.fixture(scope="module")
def halfway(phantom_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Halfway:
    arguments = ("train", *OVERRIDES, f"data.path={phantom_file}", "resume=auto")
    whole, half = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("half")
    ended = Child(command, *arguments, cwd=whole, fault=Fault(str(whole / "run"))).end()
    assert ended.code == 0, ended.said
    histories = [at for at, event in enumerate(ended.events) if event.startswith("open .metrics")]
    killed = Child(
        command,
        *arguments,
        cwd=half,
        fault=Fault(str(half / "run"), at=histories[len(histories) // 2]),
    ).end()
    assert killed.code == 137, killed.said
    assert {path.name for path in (half / "run").glob("checkpoints/*.pt")} == {
        "best.pt",
        "last.pt",
        "previous.pt",
    }
    largest = (half / "run" / "checkpoints" / "last.pt").stat().st_size
    return Halfway(
        half, arguments, Result.of(whole / "run"), largest, ended.events.index("open .lock")
    )


def wrong_failure(ended: Ended, run: Path) -> str | None:
    """What is wrong with a run that has met a full disk."""
    if ended.code in (0, *range(128, 256)):
        return f"exit {ended.code}"
    if not any(
        f"{run.name}/" in line and any(reason in line for reason in FULL)
        for line in ended.output.splitlines()
    ):
        return "no line names file and reason"
    if left := [path.name for path in run.rglob(".*.partial*")]:
        return f"{left} left"
    for path in run.rglob("*.*"):
        if not is_whole(path):
            return f"{path.name} is incomplete"
    return None if any(run.glob("checkpoints/*.pt")) else "no checkpoint is left"


def is_whole(path: Path) -> bool:
    """Whether a file under its final name has its end; the log is written line by line and may lack one."""
    try:
        match path.suffix:
            case ".pt":
                checkpoint.load(path)
            case ".json":
                json.loads(path.read_text())
            case ".jsonl":
                [json.loads(line) for line in path.read_text().splitlines()]
            case ".png":
                return path.read_bytes()[-8:-4] == b"IEND"
            case ".h5":
                with h5py.File(path) as file:
                    return len(file["masks"][:]) == file["first_slice"][-1]
            case ".csv":
                return path.read_text().endswith("\n")
    except (DataError, OSError, ValueError):
        return False
    return True


def training_survives(halfway: Halfway, root: Path, complete: bool, limit: int) -> str | None:
    """Resume while no file can become larger than `limit` bytes and, if `complete`, once more when it can; says what is wrong."""
    folder = root / f"limit{limit}"
    shutil.copytree(halfway.folder / "run", folder / "run")
    ended = Child(
        command,
        *halfway.arguments,
        cwd=folder,
        fault=Fault(str(folder / "run"), at=halfway.locked, limit=limit),
    ).end()
    if wrong := wrong_failure(ended, folder / "run"):
        return f"limit {limit}: {wrong}\n{ended.said}"
    return completed_wrongly(halfway, folder) if complete else None


def completed_wrongly(halfway: Halfway, folder: Path) -> str | None:
    """There is room again: the run must go on to the bits of one that had it all the time."""
    again = Child(command, *halfway.arguments, cwd=folder).end()
    if again.code != 0:
        return f"{folder.name}: exit {again.code} of the resume\n{again.said}"
    differing = Result.of(folder / "run").differs(halfway.result)
    return f"{folder.name}: differs in {len(differing)}: {differing[:5]}" if differing else None


@sizes(2, 50)
def test_training_when_no_file_can_grow_further(
    halfway: Halfway, tmp_path: Path, cases: int
) -> None:
    offsets = [
        round(halfway.largest * (i / cases) ** 3) for i in range(cases)
    ]  # most of the files are small
    survives(partial(training_survives, halfway, tmp_path, True), offsets[::10])
    survives(
        partial(training_survives, halfway, tmp_path, False),
        [offset for i, offset in enumerate(offsets) if i % 10],
    )


def training_survives_on_small_disk(halfway: Halfway, root: Path, free: int) -> str | None:
    """Resume on a disk with so many bytes free, then without the file that fills it."""
    with small_disk(root / f"free{free}", 128 * PAGE) as disk:
        shutil.copytree(halfway.folder / "run", disk / "run")
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(disk).free - free))
        ended = Child(command, *halfway.arguments, cwd=disk).end()
        if wrong := wrong_failure(ended, disk / "run"):
            return f"{free} bytes free: {wrong}\n{ended.said}"
        ballast.unlink()
        return completed_wrongly(halfway, disk)


@sizes(1, 8)
def test_training_on_a_small_disk(
    mountable: None, halfway: Halfway, tmp_path: Path, cases: int
) -> None:
    """The rename of last.pt frees the one before previous.pt, so that checkpoints fit longer than the pictures at the end."""
    survives(
        partial(training_survives_on_small_disk, halfway, tmp_path),
        [PAGE * i for i in range(cases)],
    )


# prepare


@dataclass(frozen=True)
class Cohort:
    """A folder of slices, a prepared file of other slices, and the bytes that preparing the folder comes to."""

    source: Path
    old: bytes
    size: int


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("cohort")
    old, new = (
        write_cohort(PhantomConfig(patients=n, slices=6, size=32), folder / f"cohort{n}")
        for n in (3, 8)
    )
    for source, name in ((old, "old.h5"), (new, "new.h5")):
        convert(source, folder / name, workers=1)
    return Cohort(new, (folder / "old.h5").read_bytes(), (folder / "new.h5").stat().st_size)


def prepare_fails_well(cohort: Cohort, output: Path, limit: int | None = None) -> str | None:
    """The command, over an old file, on a full disk; a real process, since HDF5 may crash at the end of one."""
    output.write_bytes(cohort.old)
    before = sorted(os.listdir(output.parent))
    arguments = [f"source={cohort.source}", f"output={output}", "workers=1"]
    limited = (
        partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        if limit is not None
        else None
    )
    done = subprocess.run(
        [sys.executable, "-m", "brainseg.prepare", *arguments],
        capture_output=True,
        text=True,
        preexec_fn=limited,
    )
    if done.returncode == 0 and limit is None:  # there was room
        return (
            None
            if output.stat().st_size == cohort.size
            else f"{output}: {output.stat().st_size} bytes instead of {cohort.size}"
        )
    if done.returncode != 1:
        return f"{output}, {limit}: exit {done.returncode}\n{done.stderr}"
    if (
        str(output) not in done.stderr
        or not any(reason in done.stderr for reason in FULL)
        or done.stderr.count("\n") != 1
        or done.stdout
    ):
        return f"{output}, {limit}: says\n{done.stdout}{done.stderr}"
    if output.read_bytes() != cohort.old or sorted(os.listdir(output.parent)) != before:
        return f"{output}, {limit}: left {os.listdir(output.parent)}"
    return None


@sizes(2, 50)
def test_prepare_when_no_file_can_grow_further(cohort: Cohort, tmp_path: Path, cases: int) -> None:
    def attempt(limit: int) -> str | None:
        (tmp_path / str(limit)).mkdir()
        return prepare_fails_well(cohort, tmp_path / str(limit) / "lgg.h5", limit)

    survives(attempt, [i * cohort.size // cases for i in range(cases)])


@sizes(1, 25)
def test_prepare_on_a_small_disk(
    mountable: None, cohort: Cohort, tmp_path: Path, cases: int
) -> None:
    """Around the room that it needs: refused at once, found while writing, or enough."""

    def attempt(pages: int) -> str | None:
        with small_disk(tmp_path / str(pages), len(cohort.old) + pages * PAGE) as disk:
            return prepare_fails_well(cohort, disk / "lgg.h5")

    need = cohort.size // PAGE
    survives(attempt, [need - cases + 2 * i for i in range(cases)])
