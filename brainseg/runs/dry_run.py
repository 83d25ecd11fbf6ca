"""The planned action of a job, determined without creating any file.

The check of a request uses it, and so does the table of a dry run.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from brainseg.config import TrainConfig
from brainseg.runs.code_version import code_version
from brainseg.runs.find import find_run_folder
from brainseg.runs.finished_run import describe_finished_run, extends_finished_run, read_history
from brainseg.runs.identity import training_budget
from brainseg.runs.job import Job, JobState, Outcome, tests_patients
from brainseg.runs.run_folder import RunFolder


@dataclass(frozen=True)
class JobCheck:
    """Result of the check of one job."""

    parameters: int
    # Counts as training/validation/test.
    patients: str
    # The device that the job would get, or the requested device if that is missing.
    device: str
    # The reason why the device is missing.
    missing: str = ""
    # Name of the run folder. Empty while the data are not prepared yet: the name depends on their
    # fingerprint.
    name: str = ""
    # The identity without the code.
    recipe: str = ""

    @property
    def has_validation(self) -> bool:
        """Return True if the split has validation patients."""
        return self.patients.split("/")[1] != "0"


@dataclass(frozen=True)
class PlannedAction:
    """Planned action of a job in words, and the share of its epochs that is left."""

    words: str
    left: float = 1.0


def plan_job(config: TrainConfig, facts: JobCheck, job: Job) -> PlannedAction:
    """Return what the job would do if it started now.

    Raises RequestError if `resume` names a folder without a run.
    """
    if facts.missing and config.device.on_missing == "skip":
        return PlannedAction(f"skip: {facts.missing}", 0)
    folder = find_run_folder(config, job, facts.name) if facts.name else None
    state = folder.state if folder else "new"
    if folder is None or state == "new":
        return PlannedAction("run")
    done = len(read_history(folder))
    if state == "finished":
        return (
            PlannedAction(f"extend from epoch {done}", _share_left(folder, config))
            if extends_finished_run(folder, config)
            else PlannedAction("skip: finished before", 0)
        )
    if state == "running":
        return PlannedAction(
            f"skip: in use by pid {folder.status['pid']} on {folder.status['host']}", 0
        )
    if state == "failed" and job.sweep:
        return PlannedAction("failed before: run anew")
    return (
        PlannedAction(f"resume at epoch {done}", _share_left(folder, config))
        if folder.last.is_file()
        else PlannedAction("run")
    )


def finished_outcome(config: TrainConfig, facts: JobCheck, is_choosing: bool) -> Outcome | None:
    """Return the outcome of a job of a sweep whose run is finished, or None if it has to run.

    The run need not be started to know this outcome. `is_choosing` is True if the sweep chooses
    between settings.
    """
    job = Job(sweep="planned")
    folder = find_run_folder(config, job, facts.name) if facts.name else None
    if folder is None or folder.state != "finished" or extends_finished_run(folder, config):
        return None
    has_test = facts.patients.split("/")[2] != "0"
    is_testing = has_test and tests_patients(config.test, is_choosing)
    reason = describe_finished_run(folder, is_testing)
    return Outcome(JobState.SKIPPED, str(folder.path), reason)


def _share_left(folder: RunFolder, config: TrainConfig) -> float:
    """Return the share of the epochs or steps that is left.

    The share is 1 under a time budget, because its number of epochs is not known here.
    """
    unit, budget = training_budget(config)
    if unit == "max_minutes":
        return 1.0
    rows = read_history(folder)
    done = len(rows) if unit == "epochs" else json.loads(rows[-1])["step"] if rows else 0
    return max(0.0, 1 - done / budget)


def count_jobs_under_other_code(configs: list[TrainConfig], facts: list[JobCheck], job: Job) -> int:
    """Return how many jobs have no run under this code but a finished run under other code."""
    new_jobs = [
        (config, fact)
        for config, fact in zip(configs, facts, strict=True)
        if fact.name and not find_run_folder(config, job, fact.name)
    ]
    roots = {Path(config.output or "runs") for config, _ in new_jobs}
    finished = {recipe for root in roots for recipe in _recipes_under_other_code(root)}
    return sum(fact.recipe in finished for _, fact in new_jobs)


def _recipes_under_other_code(root: Path) -> set[str]:
    """Return the recipes of the finished runs below `root` that other code has made."""
    recipes = set()
    for path in root.glob("*/run.json"):
        facts = json.loads(path.read_text())
        if (
            facts["code"]["sha256"] != code_version().sha256
            and RunFolder(path.parent).state == "finished"
        ):
            recipes.add(facts.get("recipe", ""))
    return recipes
