"""SIGTERM and SIGINT at any moment: the command ends soon, with the right exit code and status, and goes on when asked to."""

import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness import Child, Ended, Result, command, sizes, survives

from brainseg import train
from brainseg.reports import figures
from brainseg.runs.run_folder import RunFolder
from brainseg.training import loop

OVERRIDES = [
    "model.depth=2",
    "model.width=4",
    "model.dropout=0.1",
    "epochs=10",
    "batch_size=14",
    "optimizer.lr=0.03",
    "ema_decay=0.5",
    "checkpoint.keep=all",
    "device=cpu",
    "device.threads=1",
    "tracking=none",
    "output=run",
]
BOTH = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Whole:
    """A run that nobody stopped."""

    arguments: tuple[str, ...]
    result: Result
    seconds: float


@dataclass(frozen=True)
class Stop:
    """A signal so many seconds after the process has begun; twice: and again, a moment later."""

    number: int
    delay: float = 0
    twice: bool = False


@pytest.fixture(scope="module")
def whole(phantom_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    arguments = ("train", *OVERRIDES, f"data.path={phantom_file}")
    ended = Child(command, *arguments, cwd=folder).end()
    assert ended.code == 0, ended.said
    return Whole(arguments, Result.of(folder / "run"), ended.seconds)


def stopped_and_resumed(whole: Whole, root: Path, seconds: list[float], stop: Stop) -> str | None:
    """Start the command, stop it, start it again; says what is wrong with exit code, status, time (added to `seconds`) or result."""
    folder = root / f"{stop.number}-{stop.delay:.6f}"
    folder.mkdir()
    child = Child(command, *whole.arguments, cwd=folder).send(stop.number, stop.delay)
    if stop.twice:
        child.send(stop.number, stop.delay + 0.005)
    ended = child.end()
    seconds.append(ended.seconds)
    state = RunFolder(folder / "run").state
    if wrong := wrong_end(stop, ended, state):
        return f"{stop}: {wrong}\n{ended.output}"
    return wrong_resume(whole, folder) if state != "new" else None


def wrong_end(stop: Stop, ended: Ended, state: str) -> str:
    """What is wrong with the way in which a command ended after a signal. State `new`: it came before there was a run."""
    if ended.seconds > 5:
        return f"took {ended.seconds:.1f} s"
    too_late = ended.code == 0 and state == "finished"
    states = ("new", "killed", "finished", *(("interrupted",) if stop.twice else ()))
    if not too_late and (ended.code != 128 + stop.number or state not in states):
        return f"exit {ended.code}, {state}"
    return (
        "a traceback" if "Traceback" in ended.output and state != "new" else ""
    )  # among the imports Python itself answers


def wrong_resume(whole: Whole, folder: Path) -> str | None:
    """Resume the run of a folder; says in what it differs from the one that nobody stopped."""
    again = Child(command, *whole.arguments, "resume=auto", cwd=folder).end()
    if again.code != 0 or RunFolder(folder / "run").state != "finished":
        return f"{folder.name}: exit {again.code} of the resume\n{again.said}"
    differing = Result.of(folder / "run").differs(whole.result)
    shutil.rmtree(folder)
    return (
        f"{folder.name}: differs in {len(differing)}: {differing[:5]}\n{again.said}"
        if differing
        else None
    )


@sizes(2, 46)
def test_a_signal_ends_a_run_that_can_be_resumed(whole: Whole, tmp_path: Path, cases: int) -> None:
    dice = random.Random(2)
    moments = [(i + dice.random()) / cases * whole.seconds for i in range(cases)]
    every, seconds = (
        [Stop(BOTH[i % 2], moment, twice=i % 8 == 5) for i, moment in enumerate(moments)],
        list[float](),
    )
    survives(partial(stopped_and_resumed, whole, tmp_path, seconds), every)
    print(
        f"figure: from the signal to the end {statistics.median(seconds):.2f} s, at worst {max(seconds):.2f} s"
    )


@sizes(4, 60)
def test_a_signal_while_the_request_is_composed(whole: Whole, tmp_path: Path, cases: int) -> None:
    """An exception that a handler raises inside OmegaConf may come out of it as another one, and as exit code 2."""
    dice = random.Random(3)
    every, seconds = (
        [Stop(BOTH[i % 2], dice.uniform(0.02, 0.3)) for i in range(cases)],
        list[float](),
    )
    survives(partial(stopped_and_resumed, whole, tmp_path, seconds), every)
    print(
        f"figure: from the signal to the end {statistics.median(seconds):.2f} s, at worst {max(seconds):.2f} s"
    )


@pytest.mark.faults
@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize("moment", ["none", "run/run.json"])
def test_a_signal_to_a_real_process(whole: Whole, tmp_path: Path, number: int, moment: str) -> None:
    """Once among the imports, once when the file `moment` is there."""
    arguments = [sys.executable, "-m", "brainseg.train", *whole.arguments[1:]]
    process = subprocess.Popen(
        arguments, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + (0.8 if moment == "none" else 60)
    while time.monotonic() < deadline and not (tmp_path / moment).exists():
        time.sleep(0.01)
    sent = time.monotonic()
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    ended, state = Ended(code, output, time.monotonic() - sent), RunFolder(tmp_path / "run").state
    print(f"figure: exit {code}, {state}, {ended.seconds:.2f} s after the signal")
    assert wrong_end(Stop(number), ended, state) == "", output
    assert wrong_resume(whole, tmp_path) is None


def signalled_while_testing(*arguments: str) -> None:
    """The command, which gets a signal when the final evaluation begins."""
    evaluate = train.evaluate

    def evaluate_signalled(*args: Any) -> Iterator[Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        train.evaluate = evaluate
        yield from evaluate(*args)

    train.evaluate = evaluate_signalled
    command(*arguments)


def test_a_signal_while_patients_are_tested_does_not_wait_for_the_last(
    whole: Whole, tmp_path: Path
) -> None:
    """On real data all of them take minutes."""
    ended = Child(signalled_while_testing, *whole.arguments, cwd=tmp_path).end()
    assert (ended.code, RunFolder(tmp_path / "run").state) == (143, "killed"), ended.said
    assert wrong_resume(whole, tmp_path) is None


def signalled_while_drawing(*arguments: str) -> None:
    """The command, which gets a signal when all that is left to do are its pictures."""
    curves = figures.draw_curves

    def curves_signalled(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        curves(*args)

    figures.draw_curves = curves_signalled
    command(*arguments)


def test_a_signal_at_the_end_of_a_job_ends_the_sweep(whole: Whole, tmp_path: Path) -> None:
    sweep = ["train", "-m", *whole.arguments[1:], "seed=0,1"]
    ended = Child(signalled_while_drawing, *sweep, cwd=tmp_path).end()
    assert ended.code == 143, ended.said
    assert len(list(tmp_path.glob("run/*/run.json"))) == 1


def signalled_while_timing(*arguments: str) -> None:
    """The command, which gets a signal in the first of the steps by which it finds out how many fit into `max_minutes`."""
    augmented = loop.augment_batch

    def augmented_signalled(*args: Any) -> Any:
        print("one step", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        loop.augment_batch = lambda *args: print("one step more", flush=True) or augmented(*args)  # type: ignore[func-returns-value]
        return augmented(*args)

    loop.augment_batch = augmented_signalled
    command(*arguments)


def test_a_signal_while_steps_are_timed_waits_for_one_step(whole: Whole, tmp_path: Path) -> None:
    """On real data the eleven of them take a quarter of a minute."""
    ended = Child(signalled_while_timing, *whole.arguments, "max_minutes=1", cwd=tmp_path).end()
    assert (ended.code, RunFolder(tmp_path / "run").state) == (143, "killed"), ended.said
    assert ended.said.count("one step") == 1, ended.said
