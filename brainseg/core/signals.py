"""Handling of SIGINT, SIGTERM and SIGHUP.

A signal ends a run between two steps, after everything is saved. Outside of runs a signal ends
the command at once. SIGHUP arrives when a terminal closes, for example with a laptop's lid or a
lost SSH connection. A second signal ends the process immediately. A second SIGHUP does not,
because the shell and the system each send one. A signal that was ignored when the process
started, for example by nohup, stays ignored. `runs/callbacks.py` saves the run.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Windows has no SIGHUP.
HANG_UP = getattr(signal, "SIGHUP", None)
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([HANG_UP] if HANG_UP else []))


class Stopped(BaseException):
    """A request to end the run, which is saved and can be resumed.

    The class is not an Exception, so that no handler takes the request for a failed job.
    """


class Interrupted(Stopped):
    """A signal that asks the run, or the command, to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


def exit_on_signals() -> None:
    """Make SIGINT end the process without a traceback, as SIGTERM does, until a command starts.

    This covers the seconds of the imports. A library's bare `except:` may catch a
    KeyboardInterrupt and leave a module half initialised, which was observed with numpy.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """End the block with `Interrupted` when a signal arrives, whatever code is running.

    Libraries can change or lose the exception on its way. If it passes through OmegaConf during
    a change, OmegaConf raises an AttributeError instead. If it is raised in a callback, such as
    that of a weak reference, Python prints and discards it, and the signal is then sent again.
    """
    received: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        if received and number == HANG_UP:
            return
        if received:
            os._exit(128 + number)
        received.append(number)
        raise Interrupted(number)

    def resend(args: "sys.UnraisableHookArgs") -> None:
        if not (received and isinstance(args.exc_value, Interrupted)):
            return report(args)
        # The timer sends the signal after this hook has returned.
        threading.Timer(0.01, os.kill, (os.getpid(), received.pop())).start()

    report, sys.unraisablehook = sys.unraisablehook, resend
    previous = {number: signal.signal(number, end) for number in _signals_to_handle()}
    try:
        yield
    except BaseException as error:
        if received and not isinstance(error, Interrupted):
            raise Interrupted(received[0]) from error
        raise
    finally:
        sys.unraisablehook = report
        for number, handler in previous.items():
            signal.signal(number, handler)
    # A library may have caught and dropped the exception.
    if received:
        raise Interrupted(received[0])


def _signals_to_handle() -> list[signal.Signals]:
    """Return the ending signals that are not ignored, or none outside of the main thread."""
    # Python allows signal handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in ENDING_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


class Signals:
    """Deferred signals: within the block a signal is stored until `poll` raises `Interrupted`.

    The run calls `poll` at moments when its state can be saved. A second signal ends the process at
    once, unless `exits_at_second` is False.
    """

    def __init__(self, exits_at_second: bool = True) -> None:
        self.pending: int | None = None
        self._exits_at_second = exits_at_second
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in _signals_to_handle():
            self._previous[number] = signal.signal(number, self._store)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def poll(self) -> None:
        """Raise `Interrupted` if a signal has arrived."""
        if self.pending is not None:
            raise Interrupted(self.pending)

    def _store(self, number: int, frame: FrameType | None) -> None:
        """Store the first signal. A second one may end the process, unless it is SIGHUP."""
        if self.pending is None:
            self.pending = number
        elif number != HANG_UP and self._exits_at_second:
            os._exit(128 + number)
