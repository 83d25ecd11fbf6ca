"""Launching the jobs of a sweep: one after another in this process, or through a launcher.

    in-process                        the default; data are read once for all jobs
    hydra/launcher=joblib             hydra.launcher.n_jobs jobs at a time, sharing cores and GPUs
    hydra/launcher=submitit_slurm     each job in the queue of a cluster
    hydra/launcher=submitit_local     the same without a cluster
    hydra/launcher=ray                each job on a machine of a Ray cluster that has room

A worker process of these launchers only waits. The job runs in a process of its own
(`isolated_process.py`).
"""

import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import ceil
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from brainseg.config import TrainConfig
from brainseg.config.launchers import launcher_name
from brainseg.config.text import quote_path
from brainseg.core.errors import RequestError, check, shorten_error
from brainseg.core.processes import is_alive
from brainseg.core.signals import ENDING_SIGNALS, HANG_UP, Interrupted
from brainseg.runs.job import JobState, Outcome
from brainseg.sweeps.job_status import NOT_STARTED, JobStatusStore
from brainseg.sweeps.run_job import LaunchContext, Run, run_hydra_job, run_in_process, target_name


def runs_on_cluster(multirun: DictConfig) -> bool:
    """Return True if the jobs run on a cluster, whose devices are unknown on this machine."""
    return _launcher_name(multirun) in ("submitit_slurm", "ray")


def has_queue(multirun: DictConfig) -> bool:
    """Return True if the jobs wait and run in a queue that outlives the command."""
    return _launcher_name(multirun) == "submitit_slurm"


def prepare_launch(
    multirun: DictConfig,
    sweep: str,
    swept: tuple[str, ...],
    choosing: bool,
    labels: list[str],
    shares: list[float],
) -> LaunchContext:
    """Create Hydra's folder of the sweep, share out the machine, and return the context.

    Raises RequestError if the folder cannot be created.

    Args:
        multirun: The config that Hydra composes for the sweep as a whole.
        sweep: The sweep's id.
        swept: The settings in which the jobs differ.
        choosing: True if the sweep chooses between settings.
        labels: The swept settings of each job in words.
        shares: The share of its run that each job has left.
    """
    template: Any = OmegaConf.to_container(multirun.hydra.sweep, resolve=False)
    try:
        folder = Path(str(multirun.hydra.sweep.dir))
        # A name that is made from the time must be new, even if another sweep starts in the same
        # instant.
        if "${now:" not in template["dir"]:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = _make_new_folder(folder)
    except OSError as error:
        raise RequestError(
            f"hydra.sweep.dir (below runs/hydra unless set) cannot be created: {error}"
        ) from error
    return LaunchContext(
        _launcher_name(multirun),
        str(folder.absolute()),
        sweep,
        uuid.uuid4().hex,
        swept,
        choosing,
        **share_machine(multirun)._asdict(),
        labels=labels,
        shares=shares,
        jobs_at_a_time=_count_jobs_at_a_time(multirun),
    )


def run_in_turn(
    configs: list[TrainConfig], overrides: list[list[str]], launch: LaunchContext, run: Run
) -> tuple[list[Outcome], Interrupted | None]:
    """Run the jobs of a sweep one after another in this process.

    Returns the outcomes of all jobs, and the signal that stopped the sweep or None.
    """
    interruption = None
    for number, (config, job_overrides) in enumerate(zip(configs, overrides, strict=True)):
        try:
            run_in_process(launch, run, config, number, tuple(job_overrides))
        except Interrupted as error:
            interruption = error
            break
    return launch.job_status.outcomes(len(configs), NOT_STARTED), interruption


def run_with_joblib(
    command: str, overrides: list[str], count: int, launch: LaunchContext, run: Run
) -> tuple[list[Outcome], Interrupted | None]:
    """Run the jobs of a sweep with Hydra's joblib launcher.

    Returns the outcomes of all `count` jobs, and the signal that stopped the sweep or None. Jobs
    that the launcher has lost get an outcome, too.
    """
    task = partial(run_hydra_job, launch, target_name(run))
    arguments = [*overrides, f"hydra.sweep.dir={quote_path(launch.folder)}", "hydra.mode=MULTIRUN"]
    try:
        with stopping_jobs_on_signals(launch, count):
            failure = _run_launcher(command, task, arguments, launch, count)
            # joblib's pool ends with any of its workers. A second launch runs the jobs that were
            # lost with the pool.
            if failure:
                failure = _run_launcher(command, task, arguments, launch, count)
    except Interrupted as interruption:
        return launch.job_status.outcomes(count, NOT_STARTED), interruption
    not_started = Outcome(JobState.FAILED, reason=f"not started: {failure}")
    return launch.job_status.outcomes(count, not_started), None


def _run_launcher(
    command: str,
    task: Callable[[DictConfig], Outcome],
    arguments: list[str],
    launch: LaunchContext,
    count: int,
) -> str:
    """Run all jobs with the launcher and return an empty string, or the reason why it failed.

    After a failure of the launcher this function waits until no job is running.
    """
    engine = GlobalHydra.instance().hydra
    assert engine is not None
    try:
        engine.multirun(command, task, arguments)
    except (RequestError, HydraException, OmegaConfBaseException):
        raise
    # A launcher's library may raise any exception after it has lost a process. The work of the
    # other jobs must not be lost with it.
    except Exception as error:
        print(
            f"the launcher failed ({type(error).__name__}); waiting for the running jobs",
            file=sys.stderr,
        )
        while _running_pids(launch.job_status, count):
            time.sleep(0.2)
        return f"the launcher failed, {type(error).__name__}: {shorten_error(error)}"
    return ""


class MachineShare(NamedTuple):
    """Share of this machine that a job gets."""

    # Threads of a job, or None if they are not limited.
    threads: int | None = None
    # Number of GPUs that are assigned to the jobs.
    gpus: int = 0
    jobs_per_gpu: int = 1


def share_machine(multirun: DictConfig) -> MachineShare:
    """Return the share of this machine that each of a launcher's parallel jobs gets.

    A cluster gives each job its own machine, or the share that the job requests.
    """
    settings = multirun.hydra.launcher
    if _launcher_name(multirun) == "joblib":
        import torch
        from joblib import cpu_count, effective_n_jobs

        check(
            settings.n_jobs != 0,
            "hydra.launcher.n_jobs",
            0,
            "at least 1 job must run at a time",
            "-1 runs one job per core",
        )
        jobs, gpus = effective_n_jobs(settings.n_jobs), torch.cuda.device_count()
        return MachineShare(max(1, cpu_count() // jobs), gpus, ceil(jobs / max(gpus, 1)))
    return MachineShare(settings.get("cpus_per_task"))


def _count_jobs_at_a_time(multirun: DictConfig) -> int:
    """Return how many jobs the launcher runs at the same time, or 0 if that is unknown."""
    launcher = _launcher_name(multirun)
    if launcher == "joblib":
        from joblib import effective_n_jobs

        return effective_n_jobs(multirun.hydra.launcher.n_jobs)
    # The queue of a cluster decides when a job starts.
    return 1 if launcher == "basic" else 0


def _launcher_name(multirun: DictConfig) -> str:
    return launcher_name(multirun.hydra.launcher._target_)


def _make_new_folder(folder: Path) -> Path:
    """Create a folder that did not exist: `folder`, or `folder` with -2, -3, ... appended."""
    number = 1
    while True:
        path = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        # `mkdir` fails if another process has just created the folder. A test with `exists` before
        # it would not exclude that.
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1


def _running_pids(job_status: JobStatusStore, count: int) -> list[int]:
    """Return the pids of the other processes on this machine that run a job of this start."""
    jobs = [job_status.read(number) for number in range(count)]
    return [
        job["pid"]
        for job in jobs
        if job.get("host") == socket.gethostname()
        and job["pid"] != os.getpid()
        and is_alive(job["pid"])
    ]


@contextmanager
def stopping_jobs_on_signals(launch: LaunchContext, count: int) -> Iterator[None]:
    """Pass the first SIGINT, SIGTERM or SIGHUP on to the jobs' processes, then raise Interrupted.

    The jobs save their runs before they end. A second signal ends this process at once. The jobs of
    a cluster continue, since only the commands of its queue can stop them.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        # A shell and the system both send SIGHUP when a terminal closes.
        if received and number == HANG_UP:
            return
        if received or launch.launcher == "submitit_slurm":
            raise Interrupted(number)
        received.append(number)
        launch.job_status.stop()
        for pid in _running_pids(launch.job_status, count):
            os.kill(pid, signal.SIGTERM)

    # Python allows signal handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A signal that is ignored, for example under nohup, stays ignored.
    previous_handlers = {
        number: signal.signal(number, stop)
        for number in ENDING_SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
    if received:
        raise Interrupted(received[0])
