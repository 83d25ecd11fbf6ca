"""Real commands in warm processes, forked from one that has imported everything.

The imports take 9 of the 12 seconds of a tiny training. A fault lands in the work, not in the imports.
"""

import importlib
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from brainseg.tracking.client import NO_TELEMETRY

# What the commands import on their way, besides themselves; measured: 20 seconds, once, instead of 9 in each training.
IMPORTED = (
    "brainseg.train",
    "brainseg.prepare",
    "brainseg.evaluate",
    "brainseg.compare",
    "brainseg.search",
    "brainseg.sync",
    "hydra._internal.hydra",
    "torch._dynamo",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "h5py",
    "tifffile",
    "pandas",
    "scipy.ndimage",
    "scipy.sparse",
    "scipy.spatial",
    "scipy.special",
    "scipy.stats",
    "matplotlib.pyplot",
    "matplotlib.dates",
    "matplotlib.projections",
    "matplotlib.backends.backend_agg",
    "PIL.PngImagePlugin",
    "monai.networks.nets",
    "monai.losses",
    "optuna",
    "hypothesis",
    "pytest",
)
os.environ.update(NO_TELEMETRY)
WARM: Any = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(list(IMPORTED))

TINY = (
    "data.phantom.patients=8",
    "data.phantom.slices=4",
    "data.phantom.size=32",
    "model.depth=2",
    "model.width=4",
    "augment=none",
    "device=cpu",
    "scheduler=none",
)


LOCK = (
    threading.Lock()
)  # multiprocessing loses the exit code of a process that two threads ask for at once


def fork(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A warm process that runs `target(*arguments)`, both of which must be picklable; it ends with this one."""
    process = WARM.Process(target=target, args=arguments, daemon=True)
    with LOCK:
        process.start()
    return process


def exit_code(process: BaseProcess, seconds: float = 0) -> int | None:
    """Its exit code, the negative number of the signal that ended it, or None if it runs on for so many seconds."""
    end = time.monotonic() + seconds
    while True:
        with LOCK:
            code = process.exitcode
        if code is not None or time.monotonic() >= end:
            return code
        time.sleep(0.01)


class Command(NamedTuple):
    """A command under way; `said` is the file with its standard output and error."""

    process: BaseProcess
    said: Path
    before: Callable[[], None] | None  # its barriers and events live as long as this

    @property
    def pid(self) -> int:
        assert self.process.pid
        return self.process.pid

    def finish(self, *codes: int, seconds: float = 600) -> str:
        """Wait for its end and return what it said; fails if the exit code is none of `codes` (0 by default)."""
        code = exit_code(self.process, seconds)
        said = self.said.read_text() if self.said.exists() else ""
        assert code in (codes or (0,)), f"exit {code} after {seconds} s at most\n{said}"
        return said


def start(
    folder: Path, name: str, *arguments: str, before: Callable[[], None] | None = None
) -> Command:
    """`python -m brainseg.NAME arguments` in `folder`, begun in a warm process after `before()` (which must be picklable)."""
    folder.mkdir(parents=True, exist_ok=True)
    # Not in the folder, of which a test may look at all files.
    said = Path(_outputs().name) / f"{time.monotonic_ns()}.txt"
    return Command(fork(_run, folder, said, name, arguments, before), said, before)


@cache
def _outputs() -> tempfile.TemporaryDirectory:
    """Return the folder for what commands print, which is removed when the tests have ended."""
    return tempfile.TemporaryDirectory(prefix="said-")


def call(folder: Path, name: str, *arguments: str, code: int = 0) -> str:
    """Run a command to its end and return what it said."""
    return start(folder, name, *arguments).finish(code)


def wait_until(condition: Callable[[], Any], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still not after {seconds} s"
        time.sleep(0.01)


def _run(
    folder: Path,
    said: Path,
    name: str,
    arguments: tuple[str, ...],
    before: Callable[[], None] | None,
) -> None:
    os.chdir(folder)
    descriptor = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = [f"brainseg.{name}", *arguments]
    if before is not None:
        before()
    importlib.import_module(f"brainseg.{name}").main()
