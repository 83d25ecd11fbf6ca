"""A single job of a sweep, run in this process or in a process that this process waits for."""

import os
import signal
import socket
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
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

    def job(self, number: int, overrides: tuple[str, ...], gpu: int | None = None) -> Job:
        """Return the job with this number, which computes on `gpu` unless it names a device."""
        return Job(
            overrides, self.sweep, number, self.swept, self.choosing, self.start, self.threads, gpu
        )


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


def run_in_subprocess(launch: LaunchContext, target: str, composed: DictConfig) -> Outcome:
    """Run a job in a new process and wait for it. A process of the launcher calls this function."""
    # Ctrl-C also reaches the job's process, which saves its run. This process must wait for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Hydra has set the configuration of this job.
    context = HydraConfig.get()
    job_status = launch.job_status
    number = int(context.job.num)
    # After a launcher was lost, it runs all jobs again, also those that have an outcome.
    if earlier_outcome := job_status.outcome(number):
        return earlier_outcome
    config = _to_dataclass(composed)
    is_assigned = launch.gpus > 0 and config.device.name in ("auto", "cuda")
    with (
        reserve_gpu(launch.gpus, launch.jobs_per_gpu, lambda: job_status.is_stopped)
        if is_assigned
        else nullcontext()
    ) as gpu:
        if job_status.is_stopped:
            reason = "stopped before it began; run the same command to run it"
            return job_status.write_outcome(number, Outcome(JobState.STOPPED, reason=reason))
        job = launch.job(number, tuple(context.overrides.task), gpu)
        outcome = _call(launch, target, config, job, number)
    return _end(launch, number, outcome)


def _call(
    launch: LaunchContext, target: str, config: TrainConfig, job: Job, number: int
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
        )
        return Outcome(**facts)
    except SubprocessFailed as error:
        return Outcome(
            JobState.FAILED,
            reason=f"{error}; run the same command to resume it; its output is in {output}",
        )


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
