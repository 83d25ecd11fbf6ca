"""A request to train: check every job of it, then run the jobs or print their plan."""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from brainseg.config.compose import (
    check_budget,
    check_output,
    compose_job,
    expand_sweep,
    task_overrides,
)
from brainseg.core.errors import RequestError, check
from brainseg.core.output import print_log
from brainseg.runs.dry_run import JobCheck, PlannedAction, count_jobs_under_other_code, plan_job
from brainseg.runs.identity import REPETITION_SETTINGS
from brainseg.runs.job import Job, JobState
from brainseg.runs.sweep_record import sweep_id, write_record
from brainseg.sweeps import launch, progress, ray_jobs, submitted_jobs, summary
from brainseg.sweeps.isolated_process import SubprocessFailed, call_in_subprocess
from brainseg.sweeps.run_job import run_job

# The function that estimates time and memory, which runs in a process of its own.
MEASUREMENT = "brainseg.runs.measurement:measure_run"


def run_train_request(
    overrides: list[str],
    arguments: Any,
    run: Callable,
    check_request: Callable,
    finish: Callable[..., str] | None,
) -> int:
    """Check every job of the request, then run the jobs and return the exit code.

    `finish` receives a sweep's id, root folder and first config after all jobs have ended, and
    returns the text to print. Raises RequestError.
    """
    plan = plan_jobs(overrides, arguments, check_request)
    if any(config.dry_run != "false" for config in plan.configs):
        print(_format_dry_run(plan))
        return 0
    terminal_level = logging.INFO if plan.multirun is None else logging.WARNING
    print_log(logging.DEBUG if arguments.verbose else terminal_level)
    if plan.multirun is not None:
        return _run_sweep(plan, overrides, run, finish)
    # This raises RequestError for a reason that only the run could find, such as a folder in use.
    outcome = run_job(run, plan.configs[0], Job(tuple(task_overrides(overrides))))
    # A run that finished before has already logged how to extend it.
    if outcome.state == JobState.FAILED or not outcome.folder:
        print(f"run {outcome.state}: {outcome.reason}", file=sys.stderr)
    return int(outcome.state == JobState.FAILED)


@dataclass(frozen=True)
class RequestPlan:
    """The checked jobs of a request to train, with one entry per job in each list."""

    # The config of the sweep as a whole, None for a single run.
    multirun: Any
    overrides: list[list[str]]
    configs: list[Any]
    facts: list[JobCheck]
    # The settings that differ between the jobs.
    swept: tuple[str, ...]

    @property
    def labels(self) -> list[str]:
        """Return the swept settings of each job in words."""
        return [summary.job_label(overrides, self.swept) for overrides in self.overrides]

    @property
    def actions(self) -> list[PlannedAction]:
        """Return what each job would do if it started now."""
        job = Job(sweep="planned" if self.multirun is not None else None)
        return [
            plan_job(config, fact, job)
            for config, fact in zip(self.configs, self.facts, strict=True)
        ]

    @property
    def launcher_settings(self) -> dict[str, Any]:
        """Return the settings of the launcher of a sweep, with the name of its class."""
        settings: Any = OmegaConf.to_container(self.multirun.hydra.launcher)
        return settings

    @property
    def is_choosing(self) -> bool:
        """Return True if the sweep chooses between settings, and not only repeats a run."""
        return _is_choosing(self.swept)


def plan_jobs(overrides: list[str], arguments: Any, check_request: Callable) -> RequestPlan:
    """Compose and check every job of a request to train. Raises RequestError."""
    if arguments.multirun and not overrides:
        raise RequestError(
            "-m: nothing to vary; give a list of values, such as -m model.width=16,32, "
            "or leave out -m for a single run"
        )
    multirun, jobs = expand_sweep("train", overrides) if arguments.multirun else (None, [overrides])
    configs = [compose_job("train", job_overrides) for job_overrides in jobs]
    swept = summary.find_swept_settings(jobs)
    on_cluster = multirun is not None and launch.runs_on_cluster(multirun)
    facts = []
    for config in configs:
        check_budget([*arguments.overrides, *swept], config)
        check_output("train", config)
        check(
            config.wait or (multirun is not None and launch.has_queue(multirun)),
            "wait",
            "false",
            "only the jobs in the queue of a cluster go on without this command",
            "leave it out, or use hydra/launcher=submitit_slurm",
        )
        check(
            config.dry_run != "measure" or not on_cluster,
            "dry_run",
            "measure",
            "would measure this machine, and not a node of the cluster",
            "write dry_run=true, or submit one job with max_steps=50 and read its pace",
        )
        fact = check_job(check_request, _any_device(config) if on_cluster else config)
        # The devices of this machine say nothing about those of the node that runs the job.
        if on_cluster:
            fact = replace(fact, device=f"{config.device.name}, on its node", missing="")
        if _is_choosing(swept):
            _check_choosing(config, fact)
        facts.append(fact)
    job = Job(sweep="planned" if arguments.multirun else None)
    if multirun is not None and (count := count_jobs_under_other_code(configs, facts, job)):
        print(
            f"{count} of the {len(jobs)} jobs were finished under other code; "
            "they run again under this code, in new folders"
        )
    return RequestPlan(multirun, jobs, configs, facts, swept)


def _is_choosing(swept: Sequence[str]) -> bool:
    """Return True if jobs differ in more than seed and fold, so that one of them is chosen."""
    return not set(REPETITION_SETTINGS).issuperset(swept)


def _check_choosing(config: Any, fact: JobCheck) -> None:
    """Raise RequestError if a sweep over settings may not choose between them.

    It must not see test patients, and needs validation patients to judge by.
    """
    check(
        config.test != "yes",
        "test",
        "yes",
        "a sweep that chooses between settings must not see test patients",
        "leave test=auto and evaluate the chosen run",
    )
    check(
        fact.has_validation,
        "split",
        config.split.name,
        "has no validation patients, by which a sweep over settings would choose",
        "give the split validation patients, or sweep over seed and split.fold alone",
    )


def _format_dry_run(plan: RequestPlan) -> str:
    """Return the table of a dry run, with times and memory under dry_run=measure."""
    threads = launch.share_machine(plan.multirun).threads if plan.multirun is not None else None
    measure = (
        partial(_measure_job, threads)
        if any(config.dry_run == "measure" for config in plan.configs)
        else None
    )
    return summary.format_plan(plan.facts, plan.actions, plan.labels, plan.configs, measure)


def _run_sweep(
    plan: RequestPlan, overrides: list[str], run: Callable, finish: Callable[..., str] | None
) -> int:
    """Run the jobs of a sweep, write its record, and print the table and the text of `finish`.

    Returns 1 if a job failed or was stopped, else 0. An interruption is raised again after the
    table.
    """
    jobs, configs = plan.overrides, plan.configs
    sweep, root = sweep_id(jobs, plan.swept), Path(configs[0].output or "runs")
    shares = [action.left for action in plan.actions]
    context = launch.prepare_launch(
        plan.multirun, sweep, plan.swept, plan.is_choosing, plan.labels, shares
    )
    if finish is not None and configs[0].tracking.name != "none":
        print(progress.describe_charts(sweep, configs[0].tracking), flush=True)
    tasks = [task_overrides(job_overrides) for job_overrides in jobs]
    if context.launcher == "basic":
        outcomes, interruption = launch.run_in_turn(configs, tasks, context, run)
    elif context.launcher == "joblib":
        outcomes, interruption = launch.run_with_joblib("train", overrides, len(jobs), context, run)
    elif context.launcher == "submitit_local":
        outcomes, interruption = submitted_jobs.run_at_once(
            configs, tasks, context, run, plan.launcher_settings
        )
    elif context.launcher == "ray":
        outcomes, interruption = ray_jobs.run_on_ray(
            configs, tasks, context, run, plan.launcher_settings
        )
    else:
        outcomes, interruption = submitted_jobs.run_on_cluster(
            configs, jobs, plan.facts, root, context, run, plan.launcher_settings
        )
    # A killed process leaves its run marked as running. The record and the table need its real
    # state.
    outcomes = summary.mark_lost_jobs(
        outcomes, configs, plan.facts, Job(sweep="planned", start=context.start)
    )
    queued = {number for number, outcome in enumerate(outcomes) if outcome.state == JobState.QUEUED}
    rows = [
        {"overrides": job_overrides, **asdict(outcome)}
        for number, (job_overrides, outcome) in enumerate(zip(jobs, outcomes, strict=True))
        # The record has these jobs already, with their places in the queue.
        if number not in queued
    ]
    write_record(root, sweep, rows)
    print(summary.format_summary(outcomes, plan.labels))
    # The table is printed first, so that an interrupted sweep also lists its jobs.
    if interruption:
        raise interruption
    if finish is not None and any(outcome.state != JobState.QUEUED for outcome in outcomes):
        print(f"\n{finish(sweep, root, configs[0])}")
    return int(any(outcome.state in (JobState.FAILED, JobState.STOPPED) for outcome in outcomes))


def _any_device(config: Any) -> Any:
    """Return the config for a check on a machine that may lack the job's device."""
    return replace(config, device=replace(config.device, on_missing="skip"))


def _measure_job(threads: int | None, config: Any) -> tuple[float, int] | str:
    """Return the seconds and the bytes of memory of one job, or the reason for a failure."""
    try:
        seconds, memory = call_in_subprocess(MEASUREMENT, config, threads)
    # The measurement fails where the job itself would, for example when memory is too small.
    except SubprocessFailed as error:
        return str(error)
    return seconds, memory


def check_job(check_request: Callable, config: Any) -> Any:
    """Return the result of `check_request`. Raises RequestError, also for an unreadable file."""
    try:
        return check_request(config)
    except OSError as error:
        raise RequestError(str(error)) from error
