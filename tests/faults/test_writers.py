"""One writer: nobody but brainseg/core/files.py opens a file for writing, and nothing is written beside the data or into the package.

A whole command runs in a process of its own under Python's audit; h5py, torch.save and SQLite, which open files in C, report too.
"""

import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import pytest

TESTS = Path(__file__).resolve().parents[1]
PACKAGE = TESTS.parent / "brainseg"
TINY = ["model.depth=2", "model.width=4", "epochs=2", "device=cpu", "checkpoint.every_steps=2"]
PHANTOM = ["data.phantom.patients=8", "data.phantom.slices=4", "data.phantom.size=32"]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PARTIAL = re.compile(r"\.[^/]+\.[0-9]+\.partial(\.[a-z0-9]+)?")  # what files.writing yields
DEVICES = (os.devnull, "/dev/tty")
OTHERS = {  # who else may write, below the project's folder
    "*/log.txt": "the log",
    "*.lock": "file locks, with .lock and .tracking.lock of a run folder",
    "data/.kaggle_3m.*.partial/*": "the slices of a phantom, renamed as a whole folder",
    "data/*/.kaggle_3m.*.partial/*": "the slices of a phantom, renamed as a whole folder",
    "mlflow.db*": "MLflow's records",
    "mlartifacts/*": "MLflow's files",
    "tmp/*": "TMPDIR, MPLCONFIGDIR: what libraries put down for themselves",
}


class Event(NamedTuple):
    """What a process did to a file: the audit's name of it, the path, and the file of the code that asked."""

    what: str
    path: str
    by: str


def watch(log: str, command: str, argv: list[str]) -> None:
    """In a process of its own: run a command, and write what it did to files as lines of JSON."""
    events: list[Event] = []
    output = os.open(log, os.O_WRONLY | os.O_CREAT)

    def note(what: str, path: Any) -> None:
        if isinstance(path, int):  # a descriptor: its opening was noted
            return
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename in (
            __file__,
            "<frozen importlib._bootstrap_external>",
        ):
            frame = frame.f_back
        standard = os.path.dirname(os.__file__)
        while (
            frame is not None
            and frame.f_code.co_filename.startswith(standard)
            and "site-packages" not in frame.f_code.co_filename
        ):
            frame = frame.f_back  # tempfile, shutil and pathlib act for somebody
        events.append(
            Event(
                what,
                os.path.abspath(os.fsdecode(path)),
                frame.f_code.co_filename if frame is not None else "",
            )
        )

    def listen(event: str, arguments: tuple) -> None:
        if event == "os.mkdir" and os.path.isdir(arguments[0]):
            return
        if event == "open" and arguments[0] is not None and arguments[2] & WRITES:
            note("write", arguments[0])
        elif event in ("os.rename", "os.link", "os.symlink"):
            note("rename", arguments[1])
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.utime"):
            note(event, arguments[0])
        elif event == "sqlite3.connect":
            note("write", str(arguments[0]).removeprefix("file:").split("?")[0])
        elif event == "subprocess.Popen":
            note(f"process {' '.join(map(str, arguments[1]))}", "")

    sys.addaudithook(listen)
    import h5py
    import torch

    opened, saved = h5py.File.__init__, torch.save

    def open_hdf5(self: Any, name: Any, mode: str = "r", *arguments: Any, **options: Any) -> None:
        if mode != "r" and isinstance(name, str | os.PathLike):
            note("write", name)
        opened(self, name, mode, *arguments, **options)

    def save(content: Any, file: Any, *arguments: Any, **options: Any) -> None:
        if isinstance(file, str | os.PathLike):
            note("write", file)
        saved(content, file, *arguments, **options)

    h5py.File.__init__, torch.save = open_hdf5, save
    sys.argv = [f"brainseg.{command}", *argv]
    try:
        __import__(f"brainseg.{command}", fromlist=["main"]).main()
    finally:
        os.write(output, "".join(json.dumps(event) + "\n" for event in events).encode())


def run(folder: Path, command: str, *argv: str) -> list[Event]:
    """Run a command in `folder`, which must end well; what it did to files."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"TMPDIR": str(temporary), "MPLCONFIGDIR": str(temporary)}
    log = temporary / "events"
    log.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, __file__, str(log), command, *argv],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [Event(*json.loads(line)) for line in log.read_text().splitlines()]


def strangers(events: list[Event], folder: Path) -> list[Event]:
    """Those that changed something without being the writer or one of OTHERS."""
    found = []
    for event in events:
        place = os.path.relpath(event.path, folder)
        ours = (
            event.what in ("write", "os.truncate")
            and PARTIAL.fullmatch(os.path.basename(event.path)) is not None
        )
        package = event.by.startswith(f"{PACKAGE}{os.sep}") and not place.startswith("..")
        ours |= package and event.what in ("rename", "os.remove", "os.mkdir", "os.rmdir")
        other = (
            any(fnmatch(place, pattern) or pattern.startswith(f"{place}/") for pattern in OTHERS)
            or event.path in DEVICES
        )
        if not (ours or other or event.what.startswith("process ")):
            found.append(event)
    return found


def unexplained(events: list[Event], folder: Path) -> list[str]:
    """Files that are there without the one writer having renamed them to their name; this finds what C code wrote unheard."""
    renamed = {
        event.path
        for event in events
        if event.what == "rename" and event.by == str(PACKAGE / "core" / "files.py")
    }
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [
        str(path)
        for path in files
        if str(path) not in renamed
        and not any(fnmatch(path.relative_to(folder), p) for p in OTHERS)
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Event], Path]:
    """A run on a phantom, which is made first, without MLflow."""
    folder = tmp_path_factory.mktemp("trained")
    return run(
        folder, "train", *TINY, *PHANTOM, "scheduler=none", "output=first", "tracking=none"
    ), folder


def check(events: list[Event], folder: Path) -> None:
    assert sum(event.what == "write" for event in events) > 30, "the watch must see the run"
    assert strangers(events, folder) == []
    slices = folder.glob("data/*/kaggle_3m/*/*.tif")  # in the folder that was renamed as a whole
    assert sorted(set(unexplained(events, folder)) - set(map(str, slices))) == []


def test_nobody_else_opens_a_file_for_writing(trained: tuple[list[Event], Path]) -> None:
    check(*trained)


def test_git_does_not_write_into_the_checkout(trained: tuple[list[Event], Path]) -> None:
    """A plain `git diff` rewrites the index of the checkout that the package is in; git is the only program that we start."""
    started = [event.what.split()[1:] for event in trained[0] if event.what.startswith("process ")]
    by_others = {"uname", "ldconfig", "fc-list"}
    assert {Path(words[0]).name for words in started} <= {"git", *by_others}, (
        "Python's, that of PyTorch with CUDA, and matplotlib's"
    )
    assert all("diff.autoRefreshIndex=false" in words for words in started if "diff" in words), (
        started
    )


@pytest.mark.faults
def test_nobody_else_does_with_mlflow(tmp_path: Path) -> None:
    check(run(tmp_path, "train", *TINY, *PHANTOM, "output=first", "tracking=mlflow"), tmp_path)


@pytest.mark.faults
def test_resume_evaluate_and_sync_do_not_either(trained: tuple[list[Event], Path]) -> None:
    folder, events = trained[1], []
    for command, argv in {
        "train": ["resume=first", "epochs=3"],
        "evaluate": ["checkpoint=first", *PHANTOM, "device=cpu", "output=scores"],
        "sync": ["first"],
    }.items():
        events += run(folder, command, *argv)
    assert strangers(events, folder) == []


@pytest.mark.faults
def test_nothing_is_written_beside_the_data_or_into_the_package(tmp_path: Path) -> None:
    from tiffs import write_cohort

    source = write_cohort(tmp_path / "given" / "kaggle_3m", patients=8)
    project = tmp_path / "project"
    project.mkdir()
    events = run(
        project,
        "prepare",
        f"source={source}",
        f"output={tmp_path / 'store' / 'lgg.h5'}",
        "workers=1",
    )
    assert (
        strangers(
            [event for event in events if not event.path.startswith(str(tmp_path / "store"))],
            project,
        )
        == []
    )
    before = {
        path: path.stat().st_mtime_ns
        for part in ("given", "store")
        for path in (tmp_path / part).rglob("*")
    }
    data = f"data.path={tmp_path / 'store' / 'lgg.h5'}"
    events = run(project, "train", *TINY, data, "tracking=none", "output=first")
    events += run(project, "evaluate", "checkpoint=first", data, "device=cpu", "output=scores")
    outside = [
        event
        for event in events
        if not event.path.startswith(str(project)) and event.path not in DEVICES
    ]
    assert outside == []
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path for part in ("given", "store") for path in (tmp_path / part).rglob("*")} == set(
        before
    )


if __name__ == "__main__":
    watch(sys.argv[1], sys.argv[2], sys.argv[3:])
