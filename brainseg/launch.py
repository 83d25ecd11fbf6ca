"""Hydra's launchers run the jobs: one after the other in this process, side by side on this machine, or on a cluster.

    in-process                        the default; the data are read once
    hydra/launcher=joblib             so many at a time (hydra.launcher.n_jobs), cores shared out, GPUs dealt in turn
    hydra/launcher=submitit_slurm     each a job of the cluster's queue; submitit_local is the same without a cluster

Under the last two a worker of the launcher only waits for the job, which has a process of its own (`worker.py`).
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
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from brainseg.config import TrainConfig
from brainseg.errors import DeviceMissingError, InUseError, RequestError
from brainseg.launchers import name_of
from brainseg.records.run import Job, Outcome, is_alive
from brainseg.signals import Interrupted
from brainseg.sweep import Ledger
from brainseg.worker import Died, apart

Run = Callable[[TrainConfig, Job], Outcome]


@dataclass(frozen=True)
class Launch:
    """What the jobs of one start of a sweep share; it travels to the launcher's processes."""

    launcher: str  # one of LAUNCHERS
    name: str  # the sweep's
    folder: str  # Hydra's folder of this start of it
    start: str
    swept: tuple[str, ...]
    choosing: bool
    threads: int | None = None
    gpus: int = 0

    @property
    def ledger(self) -> Ledger:
        return Ledger(Path(self.folder) / "jobs", self.start)


def is_elsewhere(multirun: DictConfig) -> bool:
    """Whether the jobs run on other machines, whose devices are not known here."""
    return _launcher(multirun) == "submitit_slurm"


def prepare(multirun: DictConfig, name: str, named: bool, swept: tuple[str, ...], choosing: bool) -> Launch:
    """Make this start's folder and share out the machine. `multirun` is composed for the sweep; `named`: its folder was chosen.

    A folder that was not chosen is new, also if another sweep starts in the same instant. Raises RequestError.
    """
    try:
        folder = Path(str(multirun.hydra.sweep.dir))
        if named:
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = _new_folder(folder)
    except OSError as error:
        raise RequestError(f"hydra.sweep.dir (below runs/hydra unless set) cannot be written: {error}") from error
    threads, gpus = _shares(multirun)
    return Launch(_launcher(multirun), name, str(folder.absolute()), uuid.uuid4().hex, swept, choosing, threads, gpus)


def sweep(command: str, overrides: list[str], count: int, launch: Launch, run: Run) -> tuple[list[Outcome], Interrupted | None]:
    """Run the jobs of a sweep; returns how each ended, also if the launcher lost some, and the signal that stopped them."""
    engine = GlobalHydra.instance().hydra
    assert engine is not None
    name = f"{run.__module__}:{run.__qualname__}"  # looked up by the job's process: the one that waits for it need not import torch
    task = partial(_job_here, launch, run) if launch.launcher == "basic" else partial(_job_apart, launch, name)
    quoted = launch.folder.replace("\\", "\\\\").replace("'", "\\'")
    arguments = [*overrides, f"hydra.sweep.dir='{quoted}'", "hydra.mode=MULTIRUN"]
    otherwise = "not started"
    interrupted = None
    try:
        with _stopping(launch, count):
            for _ in range(2 if launch.launcher == "joblib" else 1):  # joblib's pool ends with any worker: again, for what it took along
                try:
                    engine.multirun(command, task, arguments)
                    break
                except (RequestError, HydraException, OmegaConfBaseException):
                    raise
                except Exception as error:  # whatever a launcher's library raises when it has lost a process: the others' work counts
                    otherwise = f"not started, the launcher failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
                    print(f"the launcher lost a worker ({type(error).__name__}); waiting for the jobs under way", file=sys.stderr)
                    _wait(launch.ledger, count)
    except Interrupted as stop:
        otherwise, interrupted = "not started", stop
    return launch.ledger.outcomes(count, otherwise), interrupted


def outcome_of(run: Run, config: TrainConfig, job: Job) -> Outcome:
    """Run a job; whatever it dies of ends this job alone. Its traceback is in its own log, its reason is printed at once."""
    name = "run" if job.number is None else f"job {job.number}"
    try:
        return run(config, job)
    except RequestError as error:
        left_out = isinstance(error, DeviceMissingError) and config.device.on_missing == "skip"
        if left_out or (isinstance(error, InUseError) and job.sweep):
            outcome = Outcome("skipped", reason=str(error))
        elif job.sweep is None:  # not raised through Hydra, which would print a line of its own
            return Outcome("refused", reason=str(error))
        else:
            outcome = Outcome("failed", reason=str(error))
    except Exception as error:  # whatever a job dies of, the others of its sweep go on; run() has logged the traceback
        reason = "; ".join([f"{type(error).__name__}: {error}".strip().splitlines()[0], *getattr(error, "__notes__", [])])
        outcome = Outcome("failed", reason=reason)
    print(f"{name} {outcome.state}: {outcome.reason}", file=sys.stderr)
    return outcome


def _job_here(launch: Launch, run: Run, composed: DictConfig) -> Outcome:
    """One job, in this process."""
    from brainseg.device import own_threads

    job = _job(launch)
    assert job.number is not None
    launch.ledger.write(job.number, pid=os.getpid(), host=socket.gethostname())
    try:
        with own_threads():
            return launch.ledger.end(job.number, outcome_of(run, _config(composed), job))
    except Interrupted as stop:
        launch.ledger.end(job.number, _interrupted(stop))
        raise


def _job_apart(launch: Launch, target: str, composed: DictConfig) -> Outcome:
    """One job, in a process of its own, which this one waits for; called in a process of the launcher's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the job's process too, which saves
    job, ledger = _job(launch), launch.ledger
    number = job.number
    assert number is not None
    if done := ledger.outcome(number):  # by an earlier worker of this start, whose launcher was lost
        return done
    if ledger.stopped:
        return ledger.end(number, Outcome("failed", reason="stopped before it began; the same command runs it"))
    output = Path(launch.folder) / str(number) / "output.txt"
    try:
        said = apart("brainseg.launch:job_in_child", _config(composed), target, asdict(job), output=output,
                     started=lambda pid: ledger.write(number, pid=pid, host=socket.gethostname()))
        outcome = Outcome(**said)
    except Died as died:
        outcome = Outcome("failed", reason=f"{died}; the same command goes on with it; its output: {output}")
    print(f"job {number} {outcome.state}  {outcome.folder}  {outcome.reason}", flush=True)
    return ledger.end(number, outcome)


def job_in_child(config: TrainConfig, target: str, job: dict[str, Any]) -> dict[str, str]:
    """What the job's own process does; a signal ends it saved."""
    module, _, name = target.partition(":")
    lists = {key: tuple(value) for key, value in job.items() if isinstance(value, list)}
    try:
        return asdict(outcome_of(getattr(import_module(module), name), config, Job(**job | lists)))
    except Interrupted as stop:
        return asdict(_interrupted(stop))


def _interrupted(stop: Interrupted) -> Outcome:
    return Outcome("failed", reason=f"{stop}; the same command goes on with it")


def _config(composed: DictConfig) -> TrainConfig:
    config: Any = OmegaConf.to_object(composed)
    return config


def _job(launch: Launch) -> Job:
    """What this job knows of its sweep; called where Hydra has set the job's own configuration."""
    context = HydraConfig.get()
    number = int(context.job.num)
    gpu = number % launch.gpus if launch.gpus else None
    return Job(tuple(context.overrides.task), launch.name, number, launch.swept, launch.choosing, launch.start,
               launch.threads, gpu)


def _launcher(multirun: DictConfig) -> str:
    return name_of(multirun.hydra.launcher._target_)


def _shares(multirun: DictConfig) -> tuple[int | None, int]:
    """Threads of a job, and GPUs to deal. A cluster gives each job its own machine, or as much as it asks for."""
    settings = multirun.hydra.launcher
    if _launcher(multirun) == "joblib":
        import torch
        from joblib import cpu_count, effective_n_jobs

        return max(1, cpu_count() // effective_n_jobs(settings.n_jobs)), torch.cuda.device_count()
    return settings.get("cpus_per_task"), 0


def _new_folder(folder: Path) -> Path:
    number = 1
    while True:
        path = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1


def _under_way(ledger: Ledger, count: int) -> list[int]:
    """Processes on this machine that still work on a job of this start."""
    found = [ledger.read(number) for number in range(count)]
    return [f["pid"] for f in found if f.get("host") == socket.gethostname() and f["pid"] != os.getpid() and is_alive(f["pid"])]


def _wait(ledger: Ledger, count: int) -> None:
    while _under_way(ledger, count):
        time.sleep(0.2)


@contextmanager
def _stopping(launch: Launch, count: int) -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM ends the jobs that run apart from this process, saved; then it is raised as Interrupted.

    A second one ends this process at once. The jobs of a cluster go on: there the queue is told, by its own commands.
    """
    caught: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if caught or launch.launcher == "submitit_slurm":
            raise Interrupted(number)
        caught.append(number)
        launch.ledger.stop()
        for pid in _under_way(launch.ledger, count):
            os.kill(pid, signal.SIGTERM)

    if launch.launcher == "basic" or threading.current_thread() is not threading.main_thread():
        yield  # in-process each job has its own handler, and between two jobs the command's is right
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        raise Interrupted(caught[0])
