"""A sweep before and after its jobs run: which settings it varies, what each job would do, how each one ended."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from brainseg.config import TrainConfig
from brainseg.config.overrides import values_by_setting
from brainseg.runs.dry_run import JobCheck, PlannedAction
from brainseg.runs.find import find_run_folder
from brainseg.runs.job import Job, JobState, Outcome
from brainseg.tracking.mirror import Mirror

REPEATS = {
    "seed",
    "split.fold",
}  # a sweep over nothing else chooses no setting, so it may look at the test patients


def settings_swept(jobs: list[list[str]]) -> tuple[str, ...]:
    """The settings in which the jobs of a sweep differ."""
    values: dict[str, set[str]] = {}
    for job in jobs:
        for key, value in values_by_setting(job).items():
            values.setdefault(key, set()).add(value)
    return tuple(key for key, seen in values.items() if len(seen) > 1)


def job_label(job: Sequence[str], swept: Sequence[str]) -> str:
    """What sets a job apart from the others of its sweep, as typed."""
    given = values_by_setting(job)
    return " ".join(f"{key}={given[key]}" for key in given if key in swept)


def mark_lost_jobs(
    outcomes: list[Outcome], configs: list[TrainConfig], facts: list[JobCheck], job: Job
) -> list[Outcome]:
    """Write down, in folder and MLflow, that a run was killed whose process could not do so itself; names its folder in the outcome."""
    settled = []
    for outcome, config, fact in zip(outcomes, configs, facts, strict=True):
        folder = (
            find_run_folder(config, job, fact.name)
            if outcome.state in (JobState.FAILED, JobState.STOPPED)
            and not outcome.folder
            and fact.name
            else None
        )
        if folder is not None and folder.exists and folder.write_down_kill(outcome.reason):
            if config.tracking.name != "none":
                Mirror(folder.path).update(final=True)
            outcome = replace(outcome, folder=str(folder.path))
        settled.append(outcome)
    return settled


def format_summary(outcomes: list[Outcome], labels: Sequence[str]) -> str:
    """The table that ends a sweep: finished, skipped, failed, stopped by a signal, with reasons."""
    ended = [outcome.state for outcome in outcomes]
    states = [JobState.FINISHED, JobState.SKIPPED, JobState.FAILED]
    states += [JobState.STOPPED] if JobState.STOPPED in ended else []
    counts = ", ".join(f"{ended.count(state)} {state}" for state in states)
    rows = [
        [str(number), state, name, " ".join(filter(None, (one.folder, one.reason)))]
        for number, (one, state, name) in enumerate(zip(outcomes, ended, labels, strict=True))
    ]
    return f"\n{len(outcomes)} jobs: {counts}\n" + format_table(
        ("job", "state", "swept", "folder, reason"), rows
    )


def format_plan(
    facts: list[JobCheck],
    fates: list[PlannedAction],
    labels: Sequence[str],
    configs: list[TrainConfig],
    measure: Callable[[TrainConfig], tuple[float, int] | str] | None = None,
) -> str:
    """A dry run's table; with `measure` also the seconds and the memory that each job takes, or why not, and the total."""
    head = [
        "job",
        "swept",
        "parameters",
        "patients",
        "device",
        *(("time", "memory") if measure else ()),
        "would",
    ]
    rows, total = [], 0.0
    for number, (fact, fate, name, config) in enumerate(
        zip(facts, fates, labels, configs, strict=True)
    ):
        measured: list[str] = []
        if measure is not None:
            found = measure(config) if fate.left > 0 else ""
            if isinstance(found, str):
                measured = ["-", found or "-"]
            else:
                total += found[0] * fate.left
                measured = [format_duration(found[0] * fate.left), f"{found[1] / 1e9:.1f} GB"]
        rows.append(
            [
                str(number),
                name,
                f"{fact.parameters:,}",
                fact.patients,
                fact.device,
                *measured,
                fate.words,
            ]
        )
    return format_table(head, rows) + (
        f"\n{format_duration(total)} in all, one job after the other" if measure else ""
    )


def format_duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def format_table(head: Sequence[str], rows: list[list[str]]) -> str:
    """Columns as wide as their widest entry; a column with no entry is left out."""
    lines = [list(head), *rows]
    kept = [column for column in range(len(head)) if any(row[column] for row in rows)]
    widths = {column: max(len(line[column]) for line in lines) for column in kept}
    return "\n".join(
        "  ".join(line[column].ljust(widths[column]) for column in kept).rstrip() for line in lines
    )
