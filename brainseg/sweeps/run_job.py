"""A job, run in this process or in a process that this process waits for.

A single run is a job, too, one that belongs to no sweep.
"""

import os
import signal
import socket
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from brainseg.config import TrainConfig
from brainseg.core.errors import DeviceMissingError, InUseError, RequestError
from brainseg.core.signals import Interrupted
from brainseg.runs.job import Job, JobState, Outcome
from brainseg.sweeps import progress
from brainseg.sweeps.gpu_slots import reserve_gpu
from brainseg.sweeps.isolated_process import SubprocessFailed, call_in_subprocess
from brainseg.sweeps.job_status import JobStatusStore
from brainseg.sweeps.queue_signals import QueueSignals, requeue_unless_cancelled

Run = Callable[[TrainConfig, Job], Outcome]


@dataclass(frozen=True)
class LaunchContext:
    """Facts that all jobs in one start of a sweep share.

    It is sent to the launcher's processes.
    """

    # Name of the launcher, from config.launchers.LAUNCHERS.
    launcher: str
    # Hydra's folder of this start.
    folder: str
    sweep: str
    start: str
    swept: tuple[str, ...]
    choosing: bool
    threads: int | None = None
    # Number of GPUs that the jobs share, and of jobs on each GPU.
    gpus: int = 0
    jobs_per_gpu: int = 1
    # The swept settings of each job in words.
    labels: list[str] = field(default_factory=list)
    # The share of its run that each job has left.
    shares: list[float] = field(default_factory=list)
    # The number of jobs that run at the same time, 0 if unknown.
    jobs_at_a_time: int = 0

    @property
    def job_status(self) -> JobStatusStore:
        """Return the status files of this start's jobs."""
        return JobStatusStore(Path(self.folder) / "jobs", self.start)

    def job(self, number: int, overrides: tuple[str, ...]) -> Job:
        """Return the job with this number."""
        return Job(
            overrides, self.sweep, number, self.swept, self.choosing, self.start, self.threads
        )


def target_name(run: Run) -> str:
    """Return the name of a function, so that a worker that receives it need not import torch."""
    return f"{run.__module__}:{run.__qualname__}"


def run_job(run: Run, config: TrainConfig, job: Job) -> Outcome:
    """Run a job and return its outcome. An exception ends only this job.

    The traceback is in the log of the run. Raises RequestError for a single run, which belongs to
    no sweep.
    """
    try:
        return run(config, job)
    except RequestError as error:
        skips_missing_device = (
            isinstance(error, DeviceMissingError) and config.device.on_missing == "skip"
        )
        if skips_missing_device or (isinstance(error, InUseError) and job.sweep):
            return Outcome(JobState.SKIPPED, reason=str(error))
        if job.sweep is None:
            raise
        return Outcome(JobState.FAILED, reason=str(error))
    # The other jobs of the sweep must run whatever this job raises. `run` has logged the traceback.
    except Exception as error:
        reason = "; ".join(
            [
                f"{type(error).__name__}: {error}".strip().splitlines()[0],
                *getattr(error, "__notes__", []),
            ]
        )
        return Outcome(JobState.FAILED, reason=reason)


def run_in_process(
    launch: LaunchContext, run: Run, config: TrainConfig, number: int, overrides: tuple[str, ...]
) -> Outcome:
    """Run a job in this process. Raises Interrupted, after it has written the outcome."""
    from brainseg.device import restoring_threads

    _begin(launch, number, os.getpid())
    try:
        # A job may set the number of threads, which would remain set for the next job.
        with restoring_threads():
            return _end(launch, number, run_job(run, config, launch.job(number, overrides)))
    except Interrupted as interruption:
        _end(launch, number, _stopped_outcome(interruption))
        raise


def run_hydra_job(launch: LaunchContext, target: str, composed: DictConfig) -> Outcome:
    """Run a job in a new process. A process of Hydra's launcher calls this function."""
    # Hydra has set the configuration of this job.
    context = HydraConfig.get()
    job = launch.job(int(context.job.num), tuple(context.overrides.task))
    return run_in_subprocess(launch, target, _to_dataclass(composed), job)


class QueuedJob:
    """Function that submitit calls in a process of the queue. It is pickled.

    After a signal of the queue, the run is saved, and the job returns to the queue unless it was
    cancelled.
    """

    def __init__(self, launch: LaunchContext, target: str) -> None:
        self.launch, self.target = launch, target

    def __call__(self, config: TrainConfig, job: Job) -> None:
        """Run a job in a new process."""
        if self.launch.launcher != "submitit_slurm":
            run_in_subprocess(self.launch, self.target, config, job)
            return

        # Written at once, because SLURM soon kills a job that has not ended by itself.
        def write_outcome(signal_number: int) -> None:
            assert job.number is not None
            outcome = _stopped_outcome(Interrupted(signal_number))
            self.launch.job_status.write_outcome(job.number, outcome)

        with QueueSignals(write_outcome) as signals:
            outcome = run_in_subprocess(self.launch, self.target, config, job, signals)
        if signals.number is not None and outcome.state == JobState.STOPPED:
            requeue_unless_cancelled(signals.number)

    def checkpoint(self, *arguments: Any) -> Any:
        """Return the call with which submitit requeues the job: the same one again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


def run_in_subprocess(
    launch: LaunchContext,
    target: str,
    config: TrainConfig,
    job: Job,
    signals: QueueSignals | None = None,
) -> Outcome:
    """Run a job in a new process, wait for it, and return its outcome, which is also written.

    `signals` are the signals of a cluster's queue.
    """
    # Ctrl-C also reaches the job's process, which saves its run. This process must wait for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job_status, number = launch.job_status, job.number
    assert number is not None
    # After a launcher was lost, it runs all jobs again, also those that have an outcome. A queue
    # starts a job again that was stopped.
    earlier_outcome = job_status.outcome(number)
    if earlier_outcome and earlier_outcome.state != JobState.STOPPED:
        return earlier_outcome
    is_assigned = launch.gpus > 0 and config.device.name in ("auto", "cuda")
    with (
        reserve_gpu(launch.gpus, launch.jobs_per_gpu, lambda: job_status.is_stopped)
        if is_assigned
        else nullcontext()
    ) as gpu:
        if job_status.is_stopped:
            reason = "stopped before it began; run the same command to run it"
            return job_status.write_outcome(number, Outcome(JobState.STOPPED, reason=reason))
        outcome = _call(launch, target, config, replace(job, gpu=gpu), number, signals)
    return _end(launch, number, outcome)


def _call(
    launch: LaunchContext,
    target: str,
    config: TrainConfig,
    job: Job,
    number: int,
    signals: QueueSignals | None,
) -> Outcome:
    """Run a job in a new process and return its outcome."""
    output = Path(launch.folder) / str(number) / "output.txt"
    try:
        facts = call_in_subprocess(
            "brainseg.sweeps.run_job:subprocess_main",
            config,
            target,
            asdict(job),
            output=output,
            on_start=lambda pid: _begin(launch, number, pid),
            signals=signals,
        )
        outcome = Outcome(**facts)
    except SubprocessFailed as error:
        outcome = Outcome(
            JobState.FAILED,
            reason=f"{error}; run the same command to resume it; its output is in {output}",
        )
    # A process that a signal reaches during its imports cannot return an outcome.
    number_of_signal = signals.number if signals is not None else None
    if number_of_signal is not None and outcome.state in (JobState.STOPPED, JobState.FAILED):
        return _stopped_outcome(Interrupted(number_of_signal))
    return outcome


def _begin(launch: LaunchContext, number: int, pid: int) -> None:
    """Write and print the start of a job, which the process `pid` on this host runs."""
    launch.job_status.write_start(number, pid=pid, host=socket.gethostname())
    progress.print_start(number, len(launch.labels), launch.labels[number])


def _end(launch: LaunchContext, number: int, outcome: Outcome) -> Outcome:
    """Write and print the end of a job, and return its outcome."""
    launch.job_status.write_outcome(number, outcome)
    seconds = launch.job_status.read(number)["seconds"]
    left = launch.job_status.estimate_seconds_left(launch.shares, launch.jobs_at_a_time)
    progress.print_end(number, len(launch.labels), outcome, seconds, left)
    return outcome


def subprocess_main(config: TrainConfig, target: str, job: dict[str, Any]) -> dict[str, str]:
    """Run a job in its new process and return its outcome as a dictionary.

    A signal ends the job after its run has been saved.
    """
    module, _, name = target.partition(":")
    # JSON has no tuples, and Job needs them.
    tuples = {key: tuple(value) for key, value in job.items() if isinstance(value, list)}
    try:
        return asdict(run_job(getattr(import_module(module), name), config, Job(**job | tuples)))
    except Interrupted as interruption:
        return asdict(_stopped_outcome(interruption))


def _stopped_outcome(interruption: Interrupted) -> Outcome:
    """Return the outcome of a job that a signal has stopped."""
    return Outcome(JobState.STOPPED, reason=f"{interruption}; run the same command to resume it")


def _to_dataclass(composed: DictConfig) -> TrainConfig:
    """Return a composed config as a dataclass."""
    config: Any = OmegaConf.to_object(composed)
    return config
