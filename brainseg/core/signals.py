"""SIGINT, SIGTERM and SIGHUP end a run between two steps, with everything saved, and a command at once outside of runs.

SIGHUP comes when a terminal closes: a laptop's lid, a lost SSH connection. A second signal ends the process without further ado, but for
a second SIGHUP, since a shell and the system each send theirs. One that the process was started to ignore, as by nohup, stays ignored.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

HANG_UP = getattr(signal, "SIGHUP", None)  # Windows has none
ENDING = (signal.SIGINT, signal.SIGTERM, *([HANG_UP] if HANG_UP else []))


class Stopped(BaseException):
    """The run is asked to end here, saved and able to go on; not an Exception, so that nothing takes it for a failure of the job."""


class Interrupted(Stopped):
    """A signal asked the run, or the command, to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


def exit_on_signals() -> None:
    """From here on, until a command takes over, SIGINT ends the process where it is, as SIGTERM does, without a traceback.

    For the seconds of the imports: a library's `except:` may keep a KeyboardInterrupt and leave a module half made (seen: numpy's).
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Inside, a signal ends the block by `Interrupted`, wherever it is.

    Whatever that exception becomes on its way: one that reaches OmegaConf in the midst of a change comes out as an AttributeError, and
    one that falls into a callback, as a weak reference's, is printed by Python and goes no further; there the signal comes again.
    """
    came: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        if came and number == HANG_UP:
            return
        if came:
            os._exit(128 + number)
        came.append(number)
        raise Interrupted(number)

    def dropped(what: "sys.UnraisableHookArgs") -> None:
        if not (came and isinstance(what.exc_value, Interrupted)):
            return report(what)
        threading.Timer(0.01, os.kill, (os.getpid(), came.pop())).start()

    report, sys.unraisablehook = sys.unraisablehook, dropped
    before = {number: signal.signal(number, end) for number in _heeded()}
    try:
        yield
    except BaseException as error:
        if came and not isinstance(error, Interrupted):
            raise Interrupted(came[0]) from error
        raise
    finally:
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:  # a library has kept the exception to itself
        raise Interrupted(came[0])


def _heeded() -> list[signal.Signals]:
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # elsewhere Python allows no handler
        return []
    return [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]


class Signals:
    """While entered, a signal is kept until `poll` raises it as `Interrupted` at a moment when the run can be saved."""

    def __init__(self) -> None:
        self.pending: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in _heeded():
            self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def poll(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.pending is not None:
            raise Interrupted(self.pending)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.pending is not None and number == HANG_UP:
            return
        if self.pending is not None:
            os._exit(128 + number)
        self.pending = number
