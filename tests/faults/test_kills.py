"""kill -9 at every file operation and at random moments: no file is ever half there, and going on gives the same bits."""

import hashlib
import os
import random
import shutil
import signal
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness import Child, Ended, Fault, Result, settings, sizes, spread, survives, train

from brainseg.config import (
    CheckpointConfig,
    OptimizerConfig,
    PhantomConfig,
    SchedulerConfig,
    TrainConfig,
)
from brainseg.data.conversion import convert
from brainseg.data.phantom.cohort import write_cohort
from brainseg.data.readers.kaggle_3m import in_processes
from brainseg.runs.run_folder import RunFolder

TORN = 153  # by SIGXFSZ, in the middle of a write
KILLED = 137  # by SIGKILL


# prepare


@dataclass(frozen=True)
class Sources:
    """Two cohorts, and the SHA-256 of the file that each gives."""

    old: Path
    new: Path
    digests: tuple[str, str]
    size: int  # of the new file
    events: int  # of writing the new one into an empty folder
    seconds: float


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    old, new = (
        write_cohort(PhantomConfig(patients=n, slices=6, size=32), folder / f"cohort{n}")
        for n in (3, 8)
    )
    convert(old, folder / "out" / "old.h5", workers=1)
    ended = Child(
        convert, new, folder / "out" / "new.h5", "error", 1, fault=Fault(str(folder / "out"))
    ).end()
    assert ended.code == 0, ended.output
    written = folder / "out" / "new.h5"
    digests = (digest(folder / "out" / "old.h5"), digest(written))
    return Sources(old, new, digests, written.stat().st_size, len(ended.events), ended.seconds)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "none"


def prepare_survives(
    sources: Sources, root: Path, case: tuple[Fault | None, float, bool]
) -> str | None:
    """Write the new cohort, over an old file or over none, and be killed; then write it again."""
    fault, delay, over_old = case
    output = root / f"{random.getrandbits(64):x}" / "cohort.h5"
    output.parent.mkdir()
    if over_old:
        convert(sources.old, output, workers=1)
    before = digest(output)
    child = Child(
        convert,
        sources.new,
        output,
        "error",
        1,
        fault=replace(fault, folder=str(output.parent)) if fault else None,
    )
    ended = (child if fault else child.send(signal.SIGKILL, delay)).end()
    if ended.code not in (KILLED, TORN) and (fault or ended.code):
        return f"{case}: exit {ended.code}\n{ended.said}"
    if digest(output) not in (before, sources.digests[1]):
        return f"{case}: neither the old file nor the new one, after {ended.events[-1:]}"
    again = Child(convert, sources.new, output, "error", 1).end()
    return (
        None
        if digest(output) == sources.digests[1]
        else f"{case}: another hash after the rerun\n{again.said}"
    )


@sizes(6, None)
def test_prepare_killed_at_any_file_operation(
    sources: Sources, tmp_path: Path, cases: int | None
) -> None:
    every = [
        (Fault(at=at), 0.0, over_old) for at in range(sources.events) for over_old in (False, True)
    ]
    assert len(every) > 60
    survives(partial(prepare_survives, sources, tmp_path), spread(every, cases))


@sizes(2, 20)
def test_prepare_killed_in_the_middle_of_a_write(
    sources: Sources, tmp_path: Path, cases: int
) -> None:
    every = [(Fault(at=0, tear=i * sources.size // cases), 0.0, bool(i % 2)) for i in range(cases)]
    survives(partial(prepare_survives, sources, tmp_path), every)


@sizes(2, 20)
def test_prepare_killed_at_random_moments(sources: Sources, tmp_path: Path, cases: int) -> None:
    dice = random.Random(0)
    every = [(None, dice.uniform(0, sources.seconds), bool(i % 2)) for i in range(cases)]
    survives(partial(prepare_survives, sources, tmp_path), every)


def sleep_in_workers() -> None:
    list(in_processes(time.sleep, [0.2] * 50, 2))


def test_prepare_killed_leaves_no_worker_behind() -> None:
    """The workers hold the pipe that the process writes to: it ends when the last of them has ended."""
    child = Child(sleep_in_workers)
    time.sleep(0.5)
    parents = {
        int(path.parent.name): int(path.read_text().rsplit(")", 1)[1].split()[1])
        for path in Path("/proc").glob("[0-9]*/stat")
    }
    workers = [pid for pid, parent in parents.items() if parent == child.process.pid]
    assert len(workers) == 2
    child.send(signal.SIGKILL)
    child.reader.join(30)
    left = child.reader.is_alive()
    for pid in workers if left else ():
        os.kill(pid, signal.SIGKILL)
    assert not left, "workers wait for ever for a parent that is gone"


# training


@dataclass(frozen=True)
class Unharmed:
    """A run that nothing happened to."""

    data: Path
    changes: dict[str, Any]  # of its settings
    result: Result
    ended: Ended

    @classmethod
    def made(cls, data: Path, folder: Path, **changes: Any) -> "Unharmed":
        ended = Child(train, settings(folder, data, **changes), fault=Fault(str(folder))).end()
        assert ended.code == 0, ended.said
        return cls(data, changes, Result.of(folder), ended)


@pytest.fixture(scope="module")
def unharmed(phantom_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Unharmed:
    return Unharmed.made(phantom_file, tmp_path_factory.mktemp("unharmed") / "run")


@dataclass(frozen=True)
class Kills:
    """What a run goes through before it is left alone: a fault, then SIGKILL after so many seconds each time it is resumed."""

    fault: Fault | None = None
    delays: tuple[float, ...] = ()


def training_survives(unharmed: Unharmed, root: Path, kills: Kills) -> str | None:
    """Train, be killed, resume in a new process until it is through; says what differs from the run that was left alone."""
    folder = root / f"{random.getrandbits(64):x}"
    config = settings(folder, unharmed.data, resume="auto", **unharmed.changes)
    codes = []
    if kills.fault is not None:
        ended = Child(train, config, fault=replace(kills.fault, folder=str(folder))).end()
        codes.append(ended.code)
        if ended.code not in (KILLED, TORN):
            return f"{kills}: exit {ended.code} instead of a kill\n{ended.said}"
    for delay in kills.delays:
        codes.append(Child(train, config).send(signal.SIGKILL, delay).end().code)
    interrupted = RunFolder(folder).status["state"] == "running"
    if interrupted and RunFolder(folder).state != "interrupted":
        return f"{kills}: a killed run shows as {RunFolder(folder).state}"
    again = Child(train, config).end()
    if again.code != 0 or not set(codes) <= {0, KILLED, TORN}:
        return f"{kills}: exits {codes}, then {again.code}\n{again.said}"
    if interrupted and "found interrupted" not in (folder / "log.txt").read_text():
        return f"{kills}: the resumed run does not say that it was interrupted"
    if left := [path.name for path in folder.rglob("*.partial*")]:
        return f"{kills}: {left} left after the resume"
    differing = Result.of(folder).differs(unharmed.result)
    shutil.rmtree(folder)
    return (
        f"{kills}: differs in {len(differing)}: {differing[:5]}\n{again.said}"
        if differing
        else None
    )


@sizes(4, None)
def test_training_killed_at_any_file_operation(
    unharmed: Unharmed, tmp_path: Path, cases: int | None
) -> None:
    every = [Kills(Fault(at=at)) for at in range(len(unharmed.ended.events))]
    assert len(every) > 100
    survives(partial(training_survives, unharmed, tmp_path), spread(every, cases))


@sizes(2, None)
def test_training_killed_in_the_middle_of_a_write(
    unharmed: Unharmed, tmp_path: Path, cases: int | None
) -> None:
    """Every file, torn after its first bytes and, where it is a large one, far in."""
    opened = [
        (at, event)
        for at, event in enumerate(unharmed.ended.events)
        if event.split()[0] in ("open", "save", "write_bytes")
    ]
    large = ("save", "pt")  # last letters of the event
    every = [
        Kills(Fault(at=at, tear=tear))
        for at, event in opened
        for tear in (0, 100, 30_000)
        if tear <= 100 or event.endswith(large)
    ]
    assert len(every) > 60
    survives(partial(training_survives, unharmed, tmp_path), spread(every, cases))


@sizes(1, 20)
def test_training_killed_at_random_moments(unharmed: Unharmed, tmp_path: Path, cases: int) -> None:
    dice = random.Random(0)
    every = [Kills(delays=(dice.uniform(0, unharmed.ended.seconds),)) for _ in range(cases)]
    survives(partial(training_survives, unharmed, tmp_path), every)


@sizes(1, 10)
def test_training_killed_five_times_in_a_row(
    unharmed: Unharmed, tmp_path: Path, cases: int
) -> None:
    dice = random.Random(1)
    every = [
        Kills(delays=tuple(dice.uniform(0.1, 0.6) * unharmed.ended.seconds for _ in range(5)))
        for _ in range(cases)
    ]
    survives(partial(training_survives, unharmed, tmp_path), every)


@sizes(2, None)
def test_training_killed_while_it_tidies(
    phantom_file: Path, tmp_path: Path, cases: int | None
) -> None:
    """Under checkpoint.keep=best a finished run loses last.pt: from then on the epochs behind the best one are run again."""
    early = {
        "optimizer": OptimizerConfig("adamw", 0.1),
        "checkpoint": CheckpointConfig(keep="best"),
    }  # the first epoch is the best
    run = Unharmed.made(phantom_file, tmp_path / "run", **early)
    events = run.ended.events
    first = next(at for at, event in enumerate(events) if event.startswith("os.remove"))
    survives(
        partial(training_survives, run, tmp_path),
        spread([Kills(Fault(at=at)) for at in range(first, len(events))], cases),
    )


# extending


@dataclass(frozen=True)
class Extended:
    """A finished run, and what it comes to when nothing happens to its extension by an epoch."""

    data: Path
    before: Path
    result: Result
    events: int

    @staticmethod
    def settings(folder: Path, data: Path, epochs: int) -> TrainConfig:
        return settings(
            folder,
            data,
            resume=str(folder) if folder.exists() else None,
            epochs=epochs,
            scheduler=SchedulerConfig("none"),
        )


@pytest.fixture(scope="module")
def extended(phantom_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Extended:
    before, folder = (tmp_path_factory.mktemp("extended") / name for name in ("before", "run"))
    assert Child(train, Extended.settings(before, phantom_file, epochs=2)).end().code == 0
    shutil.copytree(before, folder)
    ended = Child(
        train, Extended.settings(folder, phantom_file, epochs=3), fault=Fault(str(folder))
    ).end()
    assert ended.code == 0 and "epoch   2" in (folder / "log.txt").read_text(), ended.said
    return Extended(phantom_file, before, Result.of(folder), len(ended.events))


def extension_survives(extended: Extended, root: Path, at: int) -> str | None:
    """Extend, be killed, ask for the same again."""
    folder = root / str(at)
    shutil.copytree(extended.before, folder)
    config = Extended.settings(folder, extended.data, epochs=3)
    ended = Child(train, config, fault=Fault(str(folder), at=at)).end()
    again = Child(train, config).end()
    if ended.code != KILLED or again.code != 0:
        return f"event {at}: exits {ended.code}, {again.code}\n{ended.said}\n{again.said}"
    differing = Result.of(folder).differs(extended.result)
    shutil.rmtree(folder)
    return (
        f"event {at}, {ended.events[-1]}: differs in {len(differing)}: {differing[:5]}\n{again.said}"
        if differing
        else None
    )


@sizes(4, None)
def test_an_extension_killed_at_any_file_operation(
    extended: Extended, tmp_path: Path, cases: int | None
) -> None:
    """The first ones are the most dangerous: the folder says finished, and soon what it was extended to."""
    every = list(range(extended.events))
    assert len(every) > 60
    survives(
        partial(extension_survives, extended, tmp_path),
        every if cases is None else every[2 : 2 + 4 * cases : 4],
    )
