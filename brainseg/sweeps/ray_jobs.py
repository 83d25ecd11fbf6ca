"""Sweeps whose jobs run on the machines of a Ray cluster, which needs no queue.

A worker of Ray only waits, like that of any launcher: the job runs in a process of its own. Ray
chooses a machine with enough free cores and GPUs, and shows the job only its GPUs. If a machine is
lost, Ray starts the job again on another one, where the run resumes from its newest checkpoint.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from brainseg.config import TrainConfig
from brainseg.config.fields import check_range
from brainseg.core.errors import check, shorten_error
from brainseg.core.processes import is_alive
from brainseg.core.signals import Interrupted
from brainseg.runs.job import Job, JobState, Outcome
from brainseg.sweeps import progress
from brainseg.sweeps.job_status import NOT_STARTED
from brainseg.sweeps.launch import stopping_jobs_on_signals
from brainseg.sweeps.run_job import LaunchContext, Run, run_in_subprocess, target_name

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_CONNECT = 10
# Time for the process of a lost job to save its run and end.
SECONDS_TO_SAVE = 120


class Command(NamedTuple):
    """What the jobs on other machines need to know of the command that started the sweep."""

    folder: str
    host: str
    # The variables of MLflow, which `ray start` on another machine did not see.
    environment: dict[str, str]


def run_on_ray(
    configs: list[TrainConfig],
    overrides: list[list[str]],
    launch: LaunchContext,
    run: Run,
    settings: Mapping[str, Any],
) -> tuple[list[Outcome], Interrupted | None]:
    """Run the jobs of a sweep on a Ray cluster.

    Returns the outcomes of all jobs, and the signal that stopped the sweep or None. `settings` are
    those of the launcher. Raises RequestError if the cluster does not answer, or has no machine
    with enough cores and GPUs.
    """
    count, interruption = len(configs), None
    for name, lowest in (("cpus_per_task", 1), ("gpus_per_task", 0), ("max_retries", 0)):
        check_range(f"hydra.launcher.{name}", settings[name], lowest)
    with ray_connection(settings["address"]) as ray:
        resources = _resources_of_job(ray, configs, settings)
        function = ray.remote(max_retries=settings["max_retries"], **resources)(run_ray_job)
        try:
            with stopping_jobs_on_signals(launch, count):
                command = Command(os.getcwd(), socket.gethostname(), _tracking_environment())
                shared = (launch, target_name(run), command)
                jobs = {
                    function.remote(
                        *shared, config, launch.job(number, tuple(job_overrides))
                    ): number
                    for number, (config, job_overrides) in enumerate(
                        zip(configs, overrides, strict=True)
                    )
                }
                _wait_for_jobs(ray, jobs, launch)
        except Interrupted as error:
            interruption = error
    return launch.job_status.outcomes(count, NOT_STARTED), interruption


@contextmanager
def ray_connection(address: str | None) -> Iterator[Any]:
    """Yield the module `ray`, connected to a cluster. Raises RequestError if it does not answer.

    Without an address this is the cluster of this machine. If there is none, Ray starts one, which
    ends with the block.
    """
    # Ray reads it when it is imported. Otherwise it sends statistics of usage.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    try:
        # Ray would try for minutes to reach a cluster that is not there.
        if address is not None and address != "auto":
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
        reason = ""
    except (OSError, ValueError, RuntimeError) as error:
        reason = shorten_error(error)
    check(
        not reason,
        "hydra.launcher.address",
        address,
        f"no Ray cluster answers ({reason})",
        "start one with ray start --head, or set hydra.launcher.address=null",
    )
    try:
        yield ray
    finally:
        ray.shutdown()


def run_ray_job(
    launch: LaunchContext, target: str, command: Command, config: TrainConfig, job: Job
) -> None:
    """Run a job in a new process. A worker of Ray calls this function.

    `target` is the function that runs a job, as "package.module:name".
    """
    assert job.number is not None
    os.chdir(command.folder)
    os.environ.update(command.environment)
    _wait_for_former_process(launch, job.number)
    with stopping_with_sweep(launch, job.number, command.host):
        run_in_subprocess(launch, target, config, job)


def _resources_of_job(
    ray: Any, configs: list[TrainConfig], settings: Mapping[str, Any]
) -> dict[str, float]:
    """Return the cores and GPUs of a job. Raises RequestError if no machine has as many."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = settings["gpus_per_task"]
    if gpus is None:
        wants_gpu = any(config.device.name in ("auto", "cuda") for config in configs)
        gpus = int(wants_gpu and any(machine.get("GPU") for machine in machines))
    resources = {"num_cpus": settings["cpus_per_task"], "num_gpus": gpus}
    for setting, name in (("cpus_per_task", "CPU"), ("gpus_per_task", "GPU")):
        needed, most = resources[f"num_{name.lower()}s"], max(m.get(name, 0) for m in machines)
        # Ray would wait for such a machine without end.
        rule = f"no machine of the Ray cluster has more than {most:g}"
        check(needed <= most, f"hydra.launcher.{setting}", needed, rule, "ask for less")
    return resources


def _tracking_environment() -> dict[str, str]:
    """Return the variables of MLflow in the environment of this command."""
    return {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}


def _wait_for_jobs(ray: Any, jobs: dict[Any, int], launch: LaunchContext) -> None:
    """Print the start and the end of each job, until all have ended."""
    waiting, started = dict(jobs), set[int]()
    while waiting:
        ended, _ = ray.wait(list(waiting), timeout=SECONDS_BETWEEN_LOOKS)
        for number in waiting.values():
            if number not in started and launch.job_status.read(number):
                started.add(number)
                progress.print_start(number, len(jobs), launch.labels[number])
        for reference in ended:
            number = waiting.pop(reference)
            outcome = _outcome_of(ray, reference, launch, number)
            seconds = launch.job_status.read(number)["seconds"]
            progress.print_end(number, len(jobs), outcome, seconds, None)


def _outcome_of(ray: Any, reference: Any, launch: LaunchContext, number: int) -> Outcome:
    """Return the outcome of a job that Ray no longer runs."""
    reason = "its worker wrote no outcome"
    try:
        ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = shorten_error(error)
    lost = Outcome(JobState.FAILED, reason=f"{reason}; run the same command to resume it")
    return launch.job_status.outcome(number) or launch.job_status.write_outcome(number, lost)


def _wait_for_former_process(launch: LaunchContext, number: int) -> None:
    """Wait until the process of a job whose worker was lost has saved its run and ended.

    That process ends by itself when its worker is gone. One on another machine is lost with it.
    """
    end = time.monotonic() + SECONDS_TO_SAVE
    facts = launch.job_status.read(number)
    while (
        facts.get("host") == socket.gethostname()
        and is_alive(facts["pid"])
        and time.monotonic() < end
    ):
        time.sleep(SECONDS_BETWEEN_LOOKS)


@contextmanager
def stopping_with_sweep(launch: LaunchContext, number: int, host: str) -> Iterator[None]:
    """Send SIGTERM to the process of a job if the sweep is stopped during the block.

    The command itself signals the processes on its own machine, which is `host`.
    """
    has_ended = threading.Event()

    def watch() -> None:
        while not has_ended.wait(SECONDS_BETWEEN_LOOKS):
            if launch.job_status.is_stopped:
                facts = launch.job_status.read(number)
                # A second signal would end the job before its run is saved.
                if "pid" in facts and facts["host"] != host and is_alive(facts["pid"]):
                    os.kill(facts["pid"], signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()
