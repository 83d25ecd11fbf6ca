"""The jobs of a sweep: one after the other in this process, or through one of Hydra's launchers, side by side or on a cluster.

    in-process                        the default; the data are read once
    hydra/launcher=joblib             so many at a time (hydra.launcher.n_jobs), cores shared out, GPUs dealt in turn
    hydra/launcher=submitit_slurm     each a job of the cluster's queue; submitit_local is the same without a cluster

Under the last two a worker of the launcher only waits for the job, which has a process of its own (`worker.py`).
"""

import logging
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
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from brainseg.config import TrainConfig
from brainseg.config.launchers import launcher_name
from brainseg.config.text import quote_path
from brainseg.core.errors import RequestError, check
from brainseg.core.processes import is_alive
from brainseg.core.signals import ENDING, HANG_UP, Interrupted
from brainseg.runs.job import JobState, Outcome
from brainseg.sweeps.job_status import NOT_STARTED, JobStatusStore
from brainseg.sweeps.run_job import LaunchContext, Run, run_in_process, run_in_subprocess

log = logging.getLogger("brainseg")


def is_elsewhere(multirun: DictConfig) -> bool:
    """Whether the jobs run on other machines, whose devices are not known here."""
    return _launcher(multirun) == "submitit_slurm"


def prepare_launch(
    multirun: DictConfig, sweep: str, swept: tuple[str, ...], choosing: bool
) -> LaunchContext:
    """Make Hydra's folder of the sweep and share out the machine; `multirun` is composed for the sweep as a whole.

    A folder that was not chosen by the request is new, also if another sweep starts in the same instant. `sweep` is
    the sweep's id. Raises RequestError.
    """
    chosen: Any = OmegaConf.to_container(multirun.hydra.sweep, resolve=False)
    try:
        folder = Path(str(multirun.hydra.sweep.dir))
        if "${now:" not in chosen["dir"]:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = _new_folder(folder)
    except OSError as error:
        raise RequestError(
            f"hydra.sweep.dir (below runs/hydra unless set) cannot be written: {error}"
        ) from error
    threads, gpus = share_cores(multirun)
    return LaunchContext(
        _launcher(multirun),
        str(folder.absolute()),
        sweep,
        uuid.uuid4().hex,
        swept,
        choosing,
        threads,
        gpus,
    )


def run_in_turn(
    configs: list[TrainConfig],
    overrides: list[list[str]],
    names: list[str],
    launch: LaunchContext,
    run: Run,
) -> tuple[list[Outcome], Interrupted | None]:
    """Run the jobs of a sweep one after the other in this process; returns how each ended, and the signal that stopped them."""
    for number, (config, own, name) in enumerate(zip(configs, overrides, names, strict=True)):
        log.info("\njob %d, %d of %d: %s", number, number + 1, len(configs), name)
        try:
            run_in_process(launch, run, config, number, tuple(own))
        except Interrupted as stop:
            return launch.ledger.outcomes(len(configs), NOT_STARTED), stop
    return launch.ledger.outcomes(len(configs), NOT_STARTED), None


def run_through_hydra(
    command: str, overrides: list[str], count: int, launch: LaunchContext, run: Run
) -> tuple[list[Outcome], Interrupted | None]:
    """Run the jobs of a sweep by one of Hydra's launchers; returns how each ended, also if the launcher lost some, and the signal."""
    name = f"{run.__module__}:{run.__qualname__}"  # looked up by the job's process: the one that waits for it need not import torch
    task = partial(run_in_subprocess, launch, name)
    arguments = [*overrides, f"hydra.sweep.dir={quote_path(launch.folder)}", "hydra.mode=MULTIRUN"]
    try:
        with _stopping(launch, count):
            lost = _through_hydra(command, task, arguments, launch, count)
            if (
                lost and launch.launcher == "joblib"
            ):  # its pool ends with any worker: once more, for the jobs that went with it
                lost = _through_hydra(command, task, arguments, launch, count)
    except Interrupted as stop:
        return launch.ledger.outcomes(count, NOT_STARTED), stop
    return launch.ledger.outcomes(
        count, Outcome(JobState.FAILED, reason=f"not started: {lost}")
    ), None


def _through_hydra(
    command: str,
    task: Callable[[DictConfig], Outcome],
    arguments: list[str],
    launch: LaunchContext,
    count: int,
) -> str:
    """Let the launcher run all jobs; returns an empty string, or what the launcher died of when no job is under way any more."""
    engine = GlobalHydra.instance().hydra
    assert engine is not None
    try:
        engine.multirun(command, task, arguments)
    except (RequestError, HydraException, OmegaConfBaseException):
        raise
    except Exception as error:  # whatever a launcher's library raises when it has lost a process: the other jobs' work counts
        print(
            f"the launcher failed ({type(error).__name__}); waiting for the jobs under way",
            file=sys.stderr,
        )
        while _under_way(launch.ledger, count):
            time.sleep(0.2)
        return f"the launcher failed, {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def share_cores(multirun: DictConfig) -> tuple[int | None, int]:
    """Threads of a job, and GPUs to deal. A cluster gives each job its own machine, or as much as it asks for."""
    settings = multirun.hydra.launcher
    if _launcher(multirun) == "joblib":
        import torch
        from joblib import cpu_count, effective_n_jobs

        check(
            settings.n_jobs != 0,
            "hydra.launcher.n_jobs",
            0,
            "no job at a time",
            "-1 is one for each core",
        )
        return max(1, cpu_count() // effective_n_jobs(settings.n_jobs)), torch.cuda.device_count()
    return settings.get("cpus_per_task"), 0


def _launcher(multirun: DictConfig) -> str:
    return launcher_name(multirun.hydra.launcher._target_)


def _new_folder(folder: Path) -> Path:
    number = 1
    while True:
        path = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1


def _under_way(ledger: JobStatusStore, count: int) -> list[int]:
    """Processes on this machine that still work on a job of this start."""
    found = [ledger.read(number) for number in range(count)]
    return [
        f["pid"]
        for f in found
        if f.get("host") == socket.gethostname() and f["pid"] != os.getpid() and is_alive(f["pid"])
    ]


@contextmanager
def _stopping(launch: LaunchContext, count: int) -> Iterator[None]:
    """Inside, the first SIGINT, SIGTERM or SIGHUP ends the jobs that run apart from this process, saved; then it is raised as Interrupted.

    A second one ends this process at once. The jobs of a cluster go on: there the queue is told, by its own commands.
    """
    caught: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if caught and number == HANG_UP:
            return
        if caught or launch.launcher == "submitit_slurm":
            raise Interrupted(number)
        caught.append(number)
        launch.ledger.stop()
        for pid in _under_way(launch.ledger, count):
            os.kill(pid, signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, stop)
        for number in ENDING
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        raise Interrupted(caught[0])
