"""The launchers that a sweep may use, and of each the settings that a request may change; docs/sweeps.md says when to take which.

The plugins have further settings, and some of those run what they say: joblib evaluates `pre_dispatch`, submitit writes `setup`
and `additional_parameters` into a shell script. So these classes take the place of theirs.
"""

from dataclasses import asdict, dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from brainseg.config.fields import setting

JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
FOLDER = "${hydra.sweep.dir}/.submitit/%j"
FIXED = ("submitit_folder", "batch_size")


@dataclass
class InProcess:
    _target_: str = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


@dataclass
class Joblib:
    _target_: str = JOBLIB
    n_jobs: int = setting(-1, "jobs at a time; -1: as many as there are cores")
    batch_size: int = setting(
        1, "fixed: joblib would hand several jobs to one worker, a long one behind a short one"
    )


@dataclass
class SubmititLocal:
    _target_: str = f"{SUBMITIT}.LocalLauncher"
    submitit_folder: str = setting(FOLDER, "fixed: submitit unpickles what it finds there")
    timeout_min: int = setting(1440, "minutes after which a job is ended")
    cpus_per_task: int | None = setting(None, "threads of a job; null: torch's choice")
    gpus_per_node: int = setting(0, "GPUs that each job sees, the first ones")


@dataclass
class SubmititSlurm:
    _target_: str = f"{SUBMITIT}.SlurmLauncher"
    submitit_folder: str = setting(FOLDER, "fixed: submitit unpickles what it finds there")
    name: str = setting("brainseg", "name in the queue")
    timeout_min: int = setting(1440, "minutes that a job asks for")
    signal_delay_s: int = setting(
        120, "so many seconds before its time is up a job is told, and saves"
    )
    max_num_timeout: int = setting(
        3, "how often a job whose time was up is queued again, and goes on"
    )
    array_parallelism: int = setting(256, "jobs at a time")
    cpus_per_task: int | None = setting(8, "cores, and threads, of a job")
    gpus_per_node: int | None = setting(None, "GPUs of a job")
    mem_gb: int | None = setting(None, "memory of a job")
    partition: str | None = setting(None, "as in sbatch, and so are the following")
    qos: str | None = setting(None, "quality of service")
    account: str | None = setting(None, "who pays")
    constraint: str | None = setting(None, "features of the machines")
    gres: str | None = setting(None, "generic resources, as gpu:a100:1")
    exclude: str | None = setting(None, "machines not to use")


LAUNCHERS: dict[str, type] = {
    "basic": InProcess,
    "joblib": Joblib,
    "submitit_local": SubmititLocal,
    "submitit_slurm": SubmititSlurm,
}


def register_launchers() -> None:
    """Put these in the place of the plugins' own, which Hydra registers when it looks for plugins."""
    Plugins.instance()
    for name, launcher in LAUNCHERS.items():
        ConfigStore.instance().store(
            group="hydra/launcher", name=name, node=launcher, provider="brainseg"
        )


def offered_settings() -> dict[str, dict[str, Any]]:
    """Of each launcher, by its class: the settings offered and their defaults."""
    found: dict[str, dict[str, Any]] = {}
    for launcher in LAUNCHERS.values():
        settings: dict[str, Any] = asdict(launcher())
        found[settings.pop("_target_")] = settings
    return found


def launcher_name(target: str) -> str:
    """What the launcher of this class is called."""
    return next(name for name, launcher in LAUNCHERS.items() if launcher()._target_ == target)
