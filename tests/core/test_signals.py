"""A signal outside of a run ends the command, whatever libraries do with the exception on its way; inside of one it waits to be polled."""

import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import brainseg
from brainseg.core.signals import Interrupted, Signals, interrupt_on_signals

BOTH = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
both = pytest.mark.parametrize("number", BOTH)


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Also where the tests were started in the background, with SIGINT ignored; and the handlers are put back."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in BOTH}
    yield
    assert all(signal.getsignal(number) is signal.default_int_handler for number in BOTH)
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # here the handler runs


def made_another(number: signal.Signals) -> None:
    """As OmegaConf does, whose clean-up fails on a change cut short."""
    try:
        send(number)
    finally:
        raise AttributeError("half a change")


def kept(number: signal.Signals) -> None:
    with suppress(BaseException):
        send(number)


def in_a_callback(number: signal.Signals) -> None:
    """An exception there is printed by Python, and goes no further."""

    class Watched:
        pass

    watched = Watched()
    reference = weakref.ref(watched, lambda _: send(number))
    del watched
    assert reference() is None
    time.sleep(1)  # where it comes again


@both
@pytest.mark.parametrize("met", [send, made_another, kept, in_a_callback])
def test_a_signal_ends_the_command_by_its_own_exception(
    met, number: signal.Signals, capsys
) -> None:
    with pytest.raises(Interrupted) as stop, interrupt_on_signals():
        met(number)
    assert stop.value.exit_code == 128 + number
    assert capsys.readouterr().err == ""


def test_other_exceptions_pass_unchanged() -> None:
    with pytest.raises(ZeroDivisionError), interrupt_on_signals():
        raise ZeroDivisionError


@both
def test_a_run_is_ended_where_it_polls(number: signal.Signals) -> None:
    with interrupt_on_signals(), Signals() as signals:
        signals.poll()
        send(number)
        with pytest.raises(Interrupted, match=number.name):
            signals.poll()


@pytest.mark.parametrize("command", [["-m", "brainseg.train"], ["-m", "brainseg", "train"]])
def test_a_signal_among_the_imports_ends_the_process(command: list[str], tmp_path: Path) -> None:
    """A library that keeps it would go on with half a module: here one that does stands before numpy."""
    (tmp_path / "numpy.py").write_text(KEPT)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(brainseg.__file__).parent.parent)]),
    }
    ended = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "importing\n", "")


KEPT = """
import os, signal, time
print("importing", flush=True)
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)
except BaseException:
    print("kept")
"""

IN_A_PROCESS = """
import os, signal, sys, time
from brainseg.core.signals import Signals, interrupt_on_signals
if {ignored}:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
with {block}:
    try:
        for number in {numbers}:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
    except BaseException as error:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
print("went on")
"""


@pytest.mark.parametrize(
    ("block", "numbers", "ignored", "code"),
    [
        ("Signals()", [15, 15], False, 143),
        ("Signals()", [15, 2], False, 130),
        ("interrupt_on_signals()", [2], False, 143),
        ("interrupt_on_signals()", [2, 2], True, 0),
        ("Signals()", [2, 2], True, 0),
        ("Signals()", [1, 1], False, 0),
        ("Signals()", [1, 15], False, 143),
    ],
)
def test_a_second_signal_ends_the_process_and_ignored_ones_stay_ignored(
    block: str, numbers: list[int], ignored: bool, code: int
) -> None:
    script = IN_A_PROCESS.format(block=block, numbers=numbers, ignored=ignored)
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (
        code,
        "went on" if code == 0 else "",
        "",
    )
