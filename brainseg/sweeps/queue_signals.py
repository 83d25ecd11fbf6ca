"""Signals that SLURM sends to a job: its time is almost over, it is preempted, or it is cancelled.

SLURM signals every process of a job, several times. The process that trains would take the second
signal for the wish to end at once, and would lose its work. It therefore ignores these signals. The
launcher's process, which waits for it, passes on the first one by closing the pipe to its stdin.
"""

import os
import signal
import subprocess
from collections.abc import Callable
from types import FrameType
from typing import Any

# SLURM sends SIGTERM when it preempts, cancels or kills a job. It sends SIGUSR2, which submitit
# requests, before the time limit. Windows has no SIGUSR2, and no queue.
QUEUE_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR2") if hasattr(signal, name)
)


class QueueSignals:
    """Handlers that pass the first signal of the queue on to the process of the job.

    They are in force within the block. The handlers of submitit follow after it.
    """

    def __init__(self, on_signal: Callable[[int], object] = lambda number: None) -> None:
        """Prepare the handlers. `on_signal` is called with the number of the first signal."""
        self.number: int | None = None
        self._on_signal = on_signal
        self._process: subprocess.Popen | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "QueueSignals":
        for number in QUEUE_SIGNALS:
            self._previous[number] = signal.signal(number, self._store)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def attach(self, process: subprocess.Popen) -> None:
        """Pass signals to this process, also one that has arrived before."""
        self._process = process
        if self.number is not None:
            self._stop()

    def _store(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            self._stop()
            self._on_signal(number)

    def _stop(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


def requeue_unless_cancelled(number: int) -> None:
    """Return to the queue after the signal `number`, unless the job was cancelled.

    Submitit requeues a job on SIGUSR2, and ends this process. A job that has reached its time limit
    too often is not requeued. After SIGTERM the job returns to the queue only if SLURM still lists
    it as running. Such a job is preempted, and has a grace time. Otherwise it was cancelled, or
    SLURM requeues it without our help.
    """
    if number == signal.SIGTERM and _job_state() != "RUNNING":
        return
    signal.raise_signal(signal.SIGUSR2)


def _job_state() -> str:
    """Return the state of this process's job, such as RUNNING."""
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={os.environ['SLURM_JOB_ID']}"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
