"""What a job would do, found out before anything is created: for the check of a request, and for a dry run's table."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from brainseg.config import TrainConfig
from brainseg.runs.code_version import code_version
from brainseg.runs.find import find_run_folder
from brainseg.runs.identity import training_budget
from brainseg.runs.job import Job
from brainseg.runs.run_folder import RunFolder


@dataclass(frozen=True)
class JobCheck:
    """What the check of one job found."""

    parameters: int
    patients: str  # training/validation/test
    device: str  # what it would get; what it asks for if that is not there
    missing: str = ""  # why the device is not there
    name: str = ""  # of the run folder; empty while the data are still to be made, and with them their fingerprint
    recipe: str = ""  # the identity without the code


@dataclass(frozen=True)
class PlannedAction:
    """What would become of a job: in words, and which share of its epochs is left."""

    words: str
    left: float = 1.0


def plan_job(config: TrainConfig, facts: JobCheck, job: Job) -> PlannedAction:
    """What the job would do if it were started now. Raises RequestError if it names a run that is none."""
    if facts.missing and config.device.on_missing == "skip":
        return PlannedAction(f"skip: {facts.missing}", 0)
    folder = find_run_folder(config, job, facts.name) if facts.name else None
    state = folder.state if folder else "new"
    if folder is None or state == "new":
        return PlannedAction("run")
    done = _epochs_done(folder)
    if state == "finished":
        return (
            PlannedAction(f"extend from epoch {done}", _left(config, done))
            if extends(folder, config)
            else PlannedAction("skip: finished before", 0)
        )
    if state == "running":
        return PlannedAction(
            f"skip: in use by pid {folder.status['pid']} on {folder.status['host']}", 0
        )
    if state == "failed" and job.sweep:
        return PlannedAction("failed before: run anew")
    return (
        PlannedAction(f"resume at epoch {done}", _left(config, done))
        if folder.last.is_file()
        else PlannedAction("run")
    )


def extends(folder: RunFolder, config: TrainConfig) -> bool:
    """Whether a finished run, named by `resume`, is asked for more epochs, minutes or patience than it was given."""
    stored = folder.config
    (before, given), (now, asked) = training_budget(stored), training_budget(config)
    longer = before != now or asked > given
    return config.resume not in (None, "never") and (
        longer or _more_patient(folder, stored, config)
    )


def _more_patient(folder: RunFolder, stored: TrainConfig, config: TrainConfig) -> bool:
    """Whether the run was stopped by its patience, and is given more."""
    if stored.patience is None or (
        config.patience is not None and config.patience <= stored.patience
    ):
        return False
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    risen = max(rows, key=lambda row: row["metrics"].get("val/dice", -1.0))[
        "epoch"
    ]  # of equal ones the first
    return len(rows) - 1 - risen >= stored.patience


def finished_before(folder: RunFolder, testing: bool) -> str:
    """Why a finished run is left alone; with what it lacks, where the sweep that made it was choosing and this request would test."""
    summary = folder.path / "summary.json"
    tested = summary.is_file() and "test/dice" in json.loads(summary.read_text())["metrics"]
    test = shlex.join(["python", "-m", "brainseg.evaluate", f"checkpoint={folder.path}"])
    return (
        "finished before"
        if tested or not testing
        else f"finished before, untested: {test} scores its test patients"
    )


def _left(config: TrainConfig, done: int) -> float:
    """The share of the epochs that is left; of a run counted in minutes 1: how many they make is not known here."""
    return max(0.0, 1 - done / config.epochs) if config.max_minutes is None else 1.0


def under_other_code(configs: list[TrainConfig], facts: list[JobCheck], job: Job) -> int:
    """How many of the jobs have no run yet under this code, but a finished one under another."""
    new = [
        (config, fact)
        for config, fact in zip(configs, facts, strict=True)
        if fact.name and not find_run_folder(config, job, fact.name)
    ]
    roots = {Path(config.output or "runs") for config, _ in new}
    finished = {recipe for root in roots for recipe in _finished_elsewhere(root)}
    return sum(fact.recipe in finished for _, fact in new)


def _finished_elsewhere(root: Path) -> set[str]:
    """The recipes of the finished runs of other versions of the code in this folder."""
    found = set()
    for path in root.glob("*/run.json"):
        facts = json.loads(path.read_text())
        if (
            facts["code"]["sha256"] != code_version().sha256
            and RunFolder(path.parent).state == "finished"
        ):
            found.add(facts.get("recipe", ""))
    return found


def _epochs_done(folder: RunFolder) -> int:
    history = folder.path / "metrics.jsonl"
    return len(history.read_text().splitlines()) if history.is_file() else 0
