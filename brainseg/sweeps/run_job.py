"""One job of a sweep, in whatever process the launcher runs it: here, or waiting for a process of the job's own."""

import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from brainseg.config import TrainConfig
from brainseg.core.errors import DeviceMissingError, InUseError, RequestError
from brainseg.core.signals import Interrupted
from brainseg.runs.job import Job, JobState, Outcome
from brainseg.sweeps.isolated_process import SubprocessDied, call_in_subprocess
from brainseg.sweeps.job_status import JobStatusStore

Run = Callable[[TrainConfig, Job], Outcome]


@dataclass(frozen=True)
class LaunchContext:
    """What the jobs of one start of a sweep share; it travels to the launcher's processes."""

    launcher: str  # one of LAUNCHERS
    folder: str  # Hydra's folder of this start
    sweep: str
    start: str
    swept: tuple[str, ...]
    choosing: bool
    threads: int | None = None
    gpus: int = 0

    @property
    def ledger(self) -> JobStatusStore:
        return JobStatusStore(Path(self.folder) / "jobs", self.start)

    def job(self, number: int, overrides: tuple[str, ...]) -> Job:
        """What the job with this number knows of its sweep."""
        gpu = number % self.gpus if self.gpus else None
        return Job(
            overrides, self.sweep, number, self.swept, self.choosing, self.start, self.threads, gpu
        )


def run_job(run: Run, config: TrainConfig, job: Job) -> Outcome:
    """Run a job; whatever it dies of ends this job alone. Its traceback is in its own log, its reason is printed at once."""
    name = "run" if job.number is None else f"job {job.number}"
    try:
        return run(config, job)
    except RequestError as error:
        left_out = isinstance(error, DeviceMissingError) and config.device.on_missing == "skip"
        if left_out or (isinstance(error, InUseError) and job.sweep):
            outcome = Outcome(JobState.SKIPPED, reason=str(error))
        elif job.sweep is None:  # not raised through Hydra, which would print a line of its own
            return Outcome(JobState.REFUSED, reason=str(error))
        else:
            outcome = Outcome(JobState.FAILED, reason=str(error))
    except Exception as error:  # whatever a job dies of, the others of its sweep go on; run() has logged the traceback
        reason = "; ".join(
            [
                f"{type(error).__name__}: {error}".strip().splitlines()[0],
                *getattr(error, "__notes__", []),
            ]
        )
        outcome = Outcome(JobState.FAILED, reason=reason)
    print(f"{name} {outcome.state}: {outcome.reason}", file=sys.stderr)
    return outcome


def run_in_process(
    launch: LaunchContext, run: Run, config: TrainConfig, number: int, overrides: tuple[str, ...]
) -> Outcome:
    """One job, in this process."""
    from brainseg.device import restoring_threads

    launch.ledger.write(number, pid=os.getpid(), host=socket.gethostname())
    try:
        with restoring_threads():
            return launch.ledger.end(number, run_job(run, config, launch.job(number, overrides)))
    except Interrupted as stop:
        launch.ledger.end(number, _interrupted(stop))
        raise


def run_in_subprocess(launch: LaunchContext, target: str, composed: DictConfig) -> Outcome:
    """One job, in a process of its own, which this one waits for; called in a process of the launcher's."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the job's process too, which saves
    context, ledger = (
        HydraConfig.get(),
        launch.ledger,
    )  # where Hydra has set the job's own configuration
    number = int(context.job.num)
    job = launch.job(number, tuple(context.overrides.task))
    if done := ledger.outcome(
        number
    ):  # by an earlier worker of this start, whose launcher was lost
        return done
    if ledger.stopped:
        return ledger.end(
            number,
            Outcome(JobState.STOPPED, reason="stopped before it began; the same command runs it"),
        )
    output = Path(launch.folder) / str(number) / "output.txt"
    try:
        said = call_in_subprocess(
            "brainseg.sweeps.run_job:subprocess_main",
            _config(composed),
            target,
            asdict(job),
            output=output,
            started=lambda pid: ledger.write(number, pid=pid, host=socket.gethostname()),
        )
        outcome = Outcome(**said)
    except SubprocessDied as died:
        outcome = Outcome(
            JobState.FAILED,
            reason=f"{died}; the same command goes on with it; its output: {output}",
        )
    print(f"job {number} {outcome.state}  {outcome.folder}  {outcome.reason}", flush=True)
    return ledger.end(number, outcome)


def subprocess_main(config: TrainConfig, target: str, job: dict[str, Any]) -> dict[str, str]:
    """What the job's own process does; a signal ends it saved."""
    module, _, name = target.partition(":")
    lists = {key: tuple(value) for key, value in job.items() if isinstance(value, list)}
    try:
        return asdict(run_job(getattr(import_module(module), name), config, Job(**job | lists)))
    except Interrupted as stop:
        return asdict(_interrupted(stop))


def _interrupted(stop: Interrupted) -> Outcome:
    return Outcome(JobState.STOPPED, reason=f"{stop}; the same command goes on with it")


def _config(composed: DictConfig) -> TrainConfig:
    config: Any = OmegaConf.to_object(composed)
    return config
