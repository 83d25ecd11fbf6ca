"""Workers of a search: processes that share the trials of one study."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from brainseg.config import TrainConfig
from brainseg.core.signals import Interrupted
from brainseg.sweeps import queue
from brainseg.sweeps.isolated_process import SubprocessFailed, call_in_subprocess
from brainseg.sweeps.queue_signals import QueueSignals, requeue_unless_cancelled

# The function that runs a worker, in a process of its own. It returns the exit code.
WORKER = "brainseg.search:run_worker"


class QueuedWorker:
    """Function that submitit calls in a process of the queue. It is pickled.

    After a signal of the queue, the trial is set aside, and the worker returns to the queue unless
    it was cancelled.
    """

    def __init__(self, config: TrainConfig, arguments: list[str], threads: int | None) -> None:
        self.call = (WORKER, config, arguments, threads)

    def __call__(self, output: str) -> None:
        """Run a worker, which prints to the file `output`."""
        # Ctrl-C of the command that waits for the workers must not end them.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with QueueSignals() as signals:
            try:
                call_in_subprocess(*self.call, output=Path(output), signals=signals)
            except SubprocessFailed as error:
                print(f"worker: {error}", flush=True)
        if signals.number is not None:
            requeue_unless_cancelled(signals.number)

    def checkpoint(self, *arguments: Any) -> Any:
        """Return the call with which submitit requeues the worker: the same one again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


def submit_workers(
    worker: QueuedWorker, count: int, settings: dict[str, Any], folder: Path, wait: bool
) -> list[str]:
    """Submit `count` workers to a cluster, and wait until they have left the queue if `wait`.

    Returns their IDs in the queue. `settings` are those of the launcher. Raises RequestError if the
    queue refuses the workers.
    """
    outputs = [(str(_output_of(folder, number)),) for number in range(count)]
    jobs = queue.submit(worker, outputs, settings, str(folder.absolute()))
    names = [job.job_id for job in jobs]
    print(f"submitted: {', '.join(names)}; their output is in {_output_of(folder, 0)} ...")
    if wait:
        queue.wait_until_absent(names)
    return names


def run_workers(
    config: TrainConfig, arguments: list[str], count: int, threads: int, folder: Path
) -> list[int]:
    """Run `count` workers at once on this machine, and return their exit codes.

    A worker whose process was killed has the exit code 1. The first signal is passed on to all
    workers, which save their trials, and is raised again as Interrupted.
    """
    pids: list[int] = []

    def run(number: int) -> int:
        output = _output_of(folder, number)
        try:
            return int(
                call_in_subprocess(
                    WORKER, config, arguments, threads, output=output, on_start=pids.append
                )
            )
        except SubprocessFailed as error:
            print(f"worker {number}: {error}; its output is in {output}", flush=True)
            return 1

    print(f"{count} workers; their output is in {_output_of(folder, 0)} ...", flush=True)
    with ThreadPoolExecutor(count) as pool:
        workers = [pool.submit(run, number) for number in range(count)]
        try:
            return [worker.result() for worker in workers]
        except Interrupted:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            raise


def _output_of(folder: Path, number: int) -> Path:
    """Return the absolute path of the file to which a worker prints."""
    return (folder / f"worker-{number}.txt").absolute()
