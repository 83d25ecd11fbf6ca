"""Processes to kill, and what is left of them.

They are forks of a fork server that has imported everything, so that a kill lands in the work and not in the imports. What is to
happen to one is a `Fault`; each file operation of the process is an event, counted from 0, at which that may be.
"""

import json
import logging
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, TypeVar

import h5py
import pytest
import torch
from warm_processes import LOCK, WARM

from brainseg.config import (
    AugmentConfig,
    CheckpointConfig,
    CosineConfig,
    DataConfig,
    DeviceConfig,
    HoldoutConfig,
    OptimizerConfig,
    TrackingConfig,
    TrainConfig,
    UNetConfig,
)
from brainseg.core.files import writing
from brainseg.runs import checkpoint

LANES = 2  # processes at a time
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
AUDITED = (
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.truncate",
)  # os.replace is an os.rename to the audit
CALLS = [  # what Python does not audit, because it lies in C libraries
    (os, "fsync"),
    (torch, "save"),
    (logging.FileHandler, "emit"),
    (h5py.AttributeManager, "__setitem__"),
    (h5py.Group, "create_dataset"),
    (h5py.Dataset, "__setitem__"),
    (h5py.File, "flush"),
    (h5py.File, "close"),
]
# Parts of a checkpoint that differ from run to run: names, and readings of a clock.
CHANGING = (
    "uid",
    "seconds",
    "elapsed",
    "validation_seconds",
    "time",
    "speed/",
    "system/",
    "config.output",
    "config.resume",
)

Case = TypeVar("Case")


@dataclass(frozen=True)
class Fault:
    """What happens to a process, counted in events below `folder`."""

    folder: str = "/"
    at: int | None = None  # SIGKILL before this event, unless:
    tear: int | None = (
        None  # from then on, the write that takes a file beyond so many bytes ends the process in its middle
    )
    limit: int | None = None  # from then on, such a write is an error, as on a full disk


class Ended(NamedTuple):
    code: int  # as a shell has it: 128 + signal
    output: str  # stdout and stderr
    seconds: float  # since the signal, or since it began

    @property
    def events(self) -> list[str]:
        return [
            line.removeprefix("event ")
            for line in self.output.splitlines()
            if line.startswith("event ")
        ]

    @property
    def said(self) -> str:
        """What it printed itself, the end of it."""
        return "\n".join(
            [line for line in self.output.splitlines() if not line.startswith("event ")][-20:]
        )


class Child:
    """A warm process that does `work(*args)`; it is ready to begin when the constructor returns."""

    def __init__(
        self,
        work: Callable[..., Any],
        *args: Any,
        fault: Fault | None = None,
        cwd: Path | None = None,
    ) -> None:
        output, theirs = WARM.Pipe(duplex=False)
        self.process = WARM.Process(
            target=_child, args=(theirs, fault, str(cwd or Path.cwd()), work, args)
        )
        with LOCK:
            self.process.start()
        theirs.close()
        self.pipe = os.fdopen(os.dup(output.fileno()), "rb")
        output.close()
        assert self.pipe.readline() == b"ready\n", self.pipe.read().decode()
        self.said = b""
        self.reader = Thread(
            target=self._read, daemon=True
        )  # a pipe holds 64 KB, and then its writer waits
        self.reader.start()
        self.since = time.monotonic()

    def send(self, number: int, delay: float = 0) -> "Child":
        """Send a signal `delay` seconds after the process began, if it has not ended before."""
        ended = self._code(max(0.0, self.since + delay - time.monotonic())) is not None
        self.since = time.monotonic()
        if not ended:
            with suppress(ProcessLookupError):  # it ends just now
                os.kill(self.process.pid, number)
        return self

    def end(self, timeout: float = 600) -> Ended:
        """Wait for the end; a process that takes longer is killed, and shows as that."""
        code = self._code(timeout)
        seconds = time.monotonic() - self.since
        if code is None:
            os.kill(self.process.pid, signal.SIGKILL)
            code = self._code(None)
        self.reader.join()
        return Ended(code if code >= 0 else 128 - code, self.said.decode(errors="replace"), seconds)

    def _read(self) -> None:
        """Until its last process has closed the pipe."""
        with self.pipe:
            self.said = self.pipe.read()

    def _code(self, timeout: float | None) -> int | None:
        """The exit code if it has ended by then. multiprocessing reads it once, and not for two threads at a time."""
        wait([self.process.sentinel], timeout)
        with LOCK:
            return self.process.exitcode


def _child(
    output: Any, fault: Fault | None, cwd: str, work: Callable[..., Any], args: tuple
) -> None:
    os.chdir(cwd)
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    torch.set_num_threads(1)
    if fault is not None:
        _arm(fault)
    os.write(1, b"ready\n")
    try:
        work(*args)
    except (
        KeyboardInterrupt
    ):  # multiprocessing would exit with 1; this is what the interpreter does
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def _arm(fault: Fault) -> None:
    """Count and print the events of this process from now on, and let the fault happen."""
    numbers = count()

    def event(what: str) -> None:
        os.write(1, f"event {what}\n".encode())
        if next(numbers) != fault.at:
            return
        if fault.tear is None and fault.limit is None:
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.tear is not None:
            signal.signal(
                signal.SIGXFSZ, signal.SIG_DFL
            )  # Python has it ignored, so that the write fails
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit = fault.limit if fault.tear is None else fault.tear
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def audit(name: str, args: tuple) -> None:
        changes = (
            name in AUDITED
            or (name == "open" and bool(args[2] & WRITES))
            or (name == "os.mkdir" and not os.path.exists(args[0]))
        )
        if (
            changes
            and not isinstance(args[0], int)
            and os.path.abspath(args[0]).startswith(fault.folder)
        ):
            event(f"{name} {Path(args[0]).name}")

    def announced(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def announce(*args: Any, **options: Any) -> Any:
            event(name)
            return call(*args, **options)

        return announce

    for owner, name in CALLS:
        setattr(owner, name, announced(getattr(owner, name), name))
    sys.addaudithook(audit)


def survives(attempt: Callable[[Case], str | None], cases: Sequence[Case]) -> None:
    """Try all cases, a few at a time; `attempt` returns what went wrong, if anything did."""
    with ThreadPoolExecutor(LANES) as lanes:
        wrong = [report for report in lanes.map(attempt, cases) if report]
    print(f"figure: {len(cases)} cases, {len(wrong)} wrong")
    assert not wrong, "\n\n".join([f"{len(wrong)} of {len(cases)} cases:", *wrong])


def sizes(few: int, all_: int | None) -> pytest.MarkDecorator:
    """The same test twice: a few cases in `make test`, all of them in `make test-faults`. None: as many as there are."""
    return pytest.mark.parametrize(
        "cases",
        [pytest.param(few, id="few"), pytest.param(all_, id="all", marks=pytest.mark.faults)],
    )


def spread(everything: list[Case], cases: int | None) -> list[Case]:
    """So many of a list, evenly; None: all."""
    return (
        everything
        if cases is None
        else [everything[(2 * i + 1) * len(everything) // (2 * cases)] for i in range(cases)]
    )


def settings(output: Path, data: Path, **changes: Any) -> TrainConfig:
    """A run of 3 epochs of 4 steps with much that a state can hold, saved in the middle of epochs; on 10 patients of 8 slices."""
    saved = CheckpointConfig(every_minutes=None, every_steps=3, keep="all")
    options = {
        "epochs": 3,
        "optimizer": OptimizerConfig("adamw", 0.03),
        "scheduler": CosineConfig(),
        "checkpoint": saved,
    } | changes
    return TrainConfig(
        output=str(output),
        batch_size=14,
        ema_decay=0.5,
        model=UNetConfig(depth=2, width=4, dropout=0.1),
        augment=AugmentConfig(flip=0.5, rotate=10, noise=0.05),
        split=HoldoutConfig(),
        data=DataConfig(path=str(data)),
        device=DeviceConfig("cpu", "float32", threads=1),
        tracking=TrackingConfig("none"),
        **options,
    )


def train(config: TrainConfig) -> None:
    """`train.run` as under Hydra's logging. The pictures, half of such a run's time, are drawn small."""
    from brainseg import train as module
    from brainseg.reports import figures

    assert callable(figures.save_figure)
    figures.save_figure = _save_small
    logging.getLogger("brainseg").setLevel(logging.DEBUG)
    module.run(config)


def _save_small(figure: Any, path: Path) -> None:
    figure.set_layout_engine("none")
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=10, format="png")


def command(name: str, *overrides: str) -> None:
    """`python -m brainseg.<name> overrides...`, the imports done."""
    from importlib import import_module

    sys.argv = [f"brainseg.{name}", *overrides]
    import_module(f"brainseg.{name}").main()


@dataclass
class Result:
    """What a run came to, to the bit: best.pt, last.pt if it is kept, the history, every patient's score."""

    values: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> "Result":
        files = {
            name: (folder / name).read_bytes()
            for name in ("patients.csv", "slices.csv", "predictions.h5", "split.json")
        }
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        state = {
            path.stem: checkpoint.load(path)
            for path in folder.glob("checkpoints/*.pt")
            if path.stem != "previous"
        }
        summary = json.loads((folder / "summary.json").read_text())
        return cls(files | flat({"history": rows, "summary": summary, **state}))

    def differs(self, other: "Result") -> list[str]:
        names = self.values.keys() | other.values.keys()
        return sorted(
            name
            for name in names
            if self.values.get(name, "none") != other.values.get(name, "none")
        )


def flat(content: Any, name: str = "") -> dict[str, Any]:
    """Nested containers as {dotted name: value}, tensors as their type and bytes, without what changes from run to run."""
    if isinstance(content, dict | list | tuple):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        parts = [flat(value, f"{name}.{key}") for key, value in items]
        return {key: value for part in parts for key, value in part.items()}
    if any(f".{one}" in name for one in CHANGING):
        return {}
    if isinstance(content, torch.Tensor):
        return {
            name: (str(content.dtype), tuple(content.shape), content.contiguous().numpy().tobytes())
        }
    return {name: content}
