"""Launchers that a sweep may use, and their settings that a request may change.

docs/sweeps.md describes when to use which launcher. The libraries have further settings, and some
of them run code: joblib evaluates `pre_dispatch`, and submitit writes `setup` and
`additional_parameters` into a shell script. The classes below therefore replace the plugins' own.
Hydra runs the first two launchers. `sweeps/queue.py` and `sweeps/ray_jobs.py` submit the jobs of
the others.
"""

from dataclasses import asdict, dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from brainseg.config.fields import setting

JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
LOCAL, SLURM = "submitit.LocalExecutor", "submitit.SlurmExecutor"
RAY = "ray.remote"
# Submitit has these settings for every kind of queue.
SHARED_SETTINGS = ("name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node")
# These settings are passed to the plugins, but a request must not change them.
FIXED_SETTINGS = ("batch_size",)


@dataclass
class InProcess:
    """Settings of Hydra's basic launcher, which runs the jobs one after another."""

    _target_: str = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


@dataclass
class Joblib:
    """Settings of the joblib launcher, which runs jobs in parallel on this machine."""

    _target_: str = JOBLIB
    n_jobs: int = setting(-1, "number of jobs at a time; -1: one per core")
    # With a larger batch, joblib would hand several jobs to one worker, and a job would wait for
    # a long one before it.
    batch_size: int = setting(1, "fixed: a worker takes one job at a time")


@dataclass
class SubmititLocal:
    """Settings of submitit on this machine."""

    _target_: str = LOCAL
    timeout_min: int = setting(1440, "minutes after which a job is stopped")
    cpus_per_task: int | None = setting(None, "number of threads per job; null: torch's default")
    gpus_per_node: int = setting(0, "number of GPUs that each job sees, counted from the first")


@dataclass
class SubmititSlurm:
    """Settings of submitit on a SLURM cluster."""

    _target_: str = SLURM
    name: str = setting("brainseg", "name of the job in the queue")
    timeout_min: int = setting(1440, "time limit of a job in minutes")
    signal_delay_s: int = setting(
        120, "seconds before the time limit at which a job is signalled and saves its state"
    )
    max_num_timeout: int = setting(
        3, "number of times that a job is requeued at its time limit and resumed"
    )
    array_parallelism: int = setting(256, "number of jobs at a time")
    cpus_per_task: int | None = setting(8, "number of cores and threads per job")
    gpus_per_node: int | None = setting(None, "number of GPUs per job")
    mem_gb: int | None = setting(None, "memory per job in GB")
    mem_per_gpu: str | None = setting(None, "memory per GPU, such as 32GB")
    partition: str | None = setting(None, "partition, as in sbatch")
    qos: str | None = setting(None, "quality of service, as in sbatch")
    account: str | None = setting(None, "account that is charged, as in sbatch")
    constraint: str | None = setting(None, "required features of the nodes, as in sbatch")
    gres: str | None = setting(None, "generic resources, such as gpu:a100:1")
    nodelist: str | None = setting(None, "nodes to use, as in sbatch")
    exclude: str | None = setting(None, "nodes to exclude, as in sbatch")
    reservation: str | None = setting(None, "reservation, as in sbatch")
    dependency: str | None = setting(None, "jobs to wait for, such as afterok:1234")
    comment: str | None = setting(None, "comment on the job, as in sbatch")


@dataclass
class Ray:
    """Settings of a Ray cluster, which shares out the machines that have joined it."""

    _target_: str = RAY
    address: str | None = setting(
        None,
        "address of the cluster, such as 10.0.0.1:6379; null: the cluster of this machine, or a "
        "new one on this machine alone",
    )
    cpus_per_task: int = setting(2, "number of cores and threads per job")
    gpus_per_task: float | None = setting(
        None,
        "number of GPUs per job, such as 1, or 0.5 for two jobs per GPU; null: 1 if the cluster "
        "has GPUs and the device is auto or cuda",
    )
    max_retries: int = setting(
        3, "number of times that a job is started again after its machine was lost"
    )


LAUNCHERS: dict[str, type] = {
    "basic": InProcess,
    "joblib": Joblib,
    "submitit_local": SubmititLocal,
    "submitit_slurm": SubmititSlurm,
    "ray": Ray,
}


def register_launchers() -> None:
    """Register these classes with Hydra, in place of the plugins' own."""
    # Hydra registers the plugins' classes when it loads the plugins, so that has to come first.
    Plugins.instance()
    for name, launcher in LAUNCHERS.items():
        ConfigStore.instance().store(
            group="hydra/launcher", name=name, node=launcher, provider="brainseg"
        )


def offered_settings() -> dict[str, dict[str, Any]]:
    """Return the offered settings and defaults of each launcher, by the name of its class."""
    offered: dict[str, dict[str, Any]] = {}
    for launcher in LAUNCHERS.values():
        settings: dict[str, Any] = asdict(launcher())
        offered[settings.pop("_target_")] = settings
    return offered


def launcher_name(target: str) -> str:
    """Return the name of the launcher with this class."""
    return next(name for name, launcher in LAUNCHERS.items() if launcher()._target_ == target)
