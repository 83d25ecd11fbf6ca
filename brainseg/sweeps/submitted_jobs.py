"""Sweeps whose jobs are submitted with submitit, to a cluster or at once on this machine."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from brainseg.config import TrainConfig
from brainseg.config.compose import task_overrides
from brainseg.core.signals import Interrupted
from brainseg.runs.dry_run import JobCheck, finished_outcome
from brainseg.runs.job import Job, JobState, Outcome
from brainseg.runs.sweep_record import recorded_submissions, write_record
from brainseg.sweeps import queue
from brainseg.sweeps.job_status import NOT_STARTED
from brainseg.sweeps.launch import stopping_jobs_on_signals
from brainseg.sweeps.run_job import LaunchContext, QueuedJob, Run, target_name


def run_at_once(
    configs: list[TrainConfig],
    overrides: list[list[str]],
    launch: LaunchContext,
    run: Run,
    settings: dict[str, Any],
) -> tuple[list[Outcome], Interrupted | None]:
    """Run all jobs of a sweep at once on this machine.

    Returns the outcomes of all jobs, and the signal that stopped the sweep or None. `settings` are
    those of the launcher.
    """
    interruption, numbers = None, range(len(configs))
    try:
        with stopping_jobs_on_signals(launch, len(configs)):
            arguments = _arguments(configs, overrides, launch, numbers)
            function = QueuedJob(launch, target_name(run))
            jobs = queue.submit(function, arguments, settings, launch.folder)
            while not all(job.done() for job in jobs):
                time.sleep(queue.FILE_SECONDS)
    except Interrupted as error:
        interruption = error
    return launch.job_status.outcomes(len(configs), NOT_STARTED), interruption


def run_on_cluster(
    configs: list[TrainConfig],
    overrides: list[list[str]],
    facts: list[JobCheck],
    root: Path,
    launch: LaunchContext,
    run: Run,
    settings: dict[str, Any],
) -> tuple[list[Outcome], Interrupted | None]:
    """Submit the jobs of a sweep to a cluster, and wait for them unless wait=false.

    Finished jobs are not submitted, nor are jobs that an earlier start of the sweep has submitted.
    Of these the outcome is returned, or that they are still in the queue. With rerun=true every job
    is submitted.

    Returns the outcomes of all jobs, and the signal that ended the waiting or None. The jobs stay
    in the queue after such a signal. Raises RequestError if the queue refuses the jobs.
    """
    numbers = range(len(configs))
    is_rerun = configs[0].rerun
    recorded = {} if is_rerun else recorded_submissions(root, launch.sweep, overrides)
    submissions = {number: queue.Submission(**place) for number, place in recorded.items()}
    finished = {
        number: outcome
        for number in numbers
        if number not in submissions
        and (outcome := finished_outcome(configs[number], facts[number], launch.choosing))
    }
    missing = [number for number in numbers if number not in submissions and number not in finished]
    if missing:
        tasks = [task_overrides(job_overrides) for job_overrides in overrides]
        jobs = queue.submit(
            QueuedJob(launch, target_name(run)),
            _arguments(configs, tasks, launch, missing),
            settings,
            launch.folder,
        )
        for number, job in zip(missing, jobs, strict=True):
            submissions[number] = queue.Submission(job.job_id, launch.folder, launch.start, number)
        # Written before the command waits, so that the jobs are found if the command is killed.
        write_record(
            root,
            launch.sweep,
            [_queued_row(overrides[number], submissions[number]) for number in missing],
        )
    interruption = None
    try:
        with stopping_jobs_on_signals(launch, 0):
            if configs[0].wait:
                queue.wait_for_queue(submissions.values())
    except Interrupted as error:
        interruption = error
    states = queue.states_of(submissions.values())
    return [
        finished[number] if number in finished else submissions[number].outcome_in(states)
        for number in numbers
    ], interruption


def _arguments(
    configs: list[TrainConfig],
    overrides: list[list[str]],
    launch: LaunchContext,
    numbers: Iterable[int],
) -> list[tuple[TrainConfig, Job]]:
    """Return the arguments of `QueuedJob` for the jobs with these numbers."""
    return [(configs[number], launch.job(number, tuple(overrides[number]))) for number in numbers]


def _queued_row(overrides: list[str], submission: queue.Submission) -> dict[str, Any]:
    """Return the row of a submitted job in the record of its sweep."""
    return {
        "overrides": overrides,
        "state": JobState.QUEUED,
        "folder": "",
        "reason": f"job {submission.id}",
        "submission": submission.facts(),
    }
