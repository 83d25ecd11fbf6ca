"""Tables of a sweep: the plan of a dry run, and the summary of all outcomes."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from brainseg.config import TrainConfig
from brainseg.config.overrides import values_by_setting
from brainseg.reports import tables
from brainseg.runs.dry_run import JobCheck, PlannedAction
from brainseg.runs.find import find_run_folder
from brainseg.runs.job import Job, JobState, Outcome
from brainseg.sweeps.progress import read_score
from brainseg.tracking.mirror import Mirror

# Characters of a reason in the table. The job has printed the whole reason when it ended.
LONGEST_REASON = 60


def find_swept_settings(jobs: list[list[str]]) -> tuple[str, ...]:
    """Return the settings in which the overrides of a sweep's jobs differ."""
    values: dict[str, set[str]] = {}
    for overrides in jobs:
        for setting, value in values_by_setting(overrides).items():
            values.setdefault(setting, set()).add(value)
    return tuple(setting for setting, distinct in values.items() if len(distinct) > 1)


def job_label(job: Sequence[str], swept: Sequence[str]) -> str:
    """Return a job's values of the swept settings, such as `seed=1 model.depth=3`."""
    values = values_by_setting(job)
    return " ".join(f"{setting}={values[setting]}" for setting in values if setting in swept)


def mark_lost_jobs(
    outcomes: list[Outcome], configs: list[TrainConfig], facts: list[JobCheck], job: Job
) -> list[Outcome]:
    """Record the runs whose process was killed, and return the outcomes with their run folders.

    A killed process cannot write its own end. This function writes it into the run folder and
    MLflow.
    """
    completed_outcomes = []
    for outcome, config, fact in zip(outcomes, configs, facts, strict=True):
        # Only an outcome without a folder comes from a process that could not report it.
        may_be_killed = (
            outcome.state in (JobState.FAILED, JobState.STOPPED)
            and not outcome.folder
            and fact.name
        )
        folder = find_run_folder(config, job, fact.name) if may_be_killed else None
        if folder is not None and folder.exists and folder.mark_killed(outcome.reason):
            if config.tracking.name != "none":
                Mirror(folder.path).update(final=True)
            outcome = replace(outcome, folder=str(folder.path))
        completed_outcomes.append(outcome)
    return completed_outcomes


def format_summary(outcomes: list[Outcome], labels: Sequence[str]) -> str:
    """Return the number of jobs in each state, and a table of all jobs.

    Its columns are state, label, score, and run folder with a shortened reason.
    """
    states = [outcome.state for outcome in outcomes]
    counted = [JobState.FINISHED, JobState.SKIPPED, JobState.FAILED]
    counted += [state for state in (JobState.STOPPED, JobState.QUEUED) if state in states]
    counts = ", ".join(f"{states.count(state)} {state}" for state in counted)
    rows = [
        [
            str(number),
            outcome.state,
            label,
            read_score(outcome),
            f"{outcome.folder} {tables.shorten_text(outcome.reason, LONGEST_REASON)}".strip(),
        ]
        for number, (outcome, label) in enumerate(zip(outcomes, labels, strict=True), 1)
    ]
    return f"\n{len(outcomes)} jobs: {counts}\n" + tables.format_table(
        ("job", "state", "swept", "score", "folder, reason"), rows
    )


def format_plan(
    facts: list[JobCheck],
    plans: list[PlannedAction],
    labels: Sequence[str],
    configs: list[TrainConfig],
    measure: Callable[[TrainConfig], tuple[float, int] | str] | None = None,
) -> str:
    """Return the table of a dry run, with one row per job.

    `measure` returns the seconds and the bytes of memory of a complete run, or the reason why they
    are unknown. With `measure` the table also has the time and memory of each job and the total
    time.
    """
    head = [
        "job",
        "swept",
        "parameters",
        "patients",
        "device",
        *(("time", "memory") if measure else ()),
        "would",
    ]
    rows, total_seconds = [], 0.0
    for number, (fact, plan, label, config) in enumerate(
        zip(facts, plans, labels, configs, strict=True), 1
    ):
        cost_cells: list[str] = []
        if measure is not None:
            # A job that will be skipped costs nothing, and need not be measured.
            cost = measure(config) if plan.left > 0 else ""
            if isinstance(cost, str):
                cost_cells = ["-", cost or "-"]
            else:
                seconds, memory = cost
                # A resumed run trains only the epochs that are left.
                total_seconds += seconds * plan.left
                cost_cells = [tables.format_duration(seconds * plan.left), f"{memory / 1e9:.1f} GB"]
        rows.append(
            [
                str(number),
                label,
                f"{fact.parameters:,}",
                fact.patients,
                fact.device,
                *cost_cells,
                plan.words,
            ]
        )
    return tables.format_table(head, rows) + (
        f"\n{tables.format_duration(total_seconds)} in all, one job after the other"
        if measure
        else ""
    )
