"""SIGINT and SIGTERM end a run between two steps, with everything saved; a second one ends the process at once."""

import os
import signal
import threading
from types import FrameType
from typing import Any


class Stopped(BaseException):
    """The run is asked to end here, saved and able to go on; not an Exception, so that nothing takes it for a failure of the job."""


class Interrupted(Stopped):
    """A signal asked the run to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class Signals:
    """While entered, a signal is kept until `poll` raises it as `Interrupted` at a moment when the run can be saved."""

    def __init__(self) -> None:
        self.pending: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handler
            for number in (signal.SIGINT, signal.SIGTERM):
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
        if self.pending is not None:
            os._exit(128 + number)
        self.pending = number
