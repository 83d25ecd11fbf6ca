"""What a request does to a run that has finished: extend it, or skip it."""

import json
import shlex

from brainseg.config import TrainConfig
from brainseg.runs.identity import training_budget
from brainseg.runs.plan_file import read_plans
from brainseg.runs.run_folder import RunFolder


def extends_finished_run(folder: RunFolder, config: TrainConfig) -> bool:
    """Return True if the request extends a finished run by epochs, steps, minutes or patience.

    Only a request that names the run by `resume` can extend it.
    """
    stored = folder.config
    (stored_unit, stored_budget), (unit, budget) = training_budget(stored), training_budget(config)
    # A run that was counted in minutes can be extended by epochs or steps, so that another unit
    # counts, too.
    is_longer = stored_unit != unit or budget > stored_budget
    return config.resume not in (None, "never") and (
        is_longer or _extends_patience(folder, stored, config)
    )


def _extends_patience(folder: RunFolder, stored: TrainConfig, config: TrainConfig) -> bool:
    """Return True if early stopping ended the run and the request has more patience."""
    if stored.patience is None or (
        config.patience is not None and config.patience <= stored.patience
    ):
        return False
    # Nothing but early stopping ends a finished run before its planned end.
    last = json.loads(read_history(folder)[-1])
    unit, budget = training_budget(stored)
    if unit == "epochs":
        return last["epoch"] + 1 < budget
    if unit == "max_steps":
        return last["step"] < budget
    # The runs of early versions have no plan, so that nothing is known of their end.
    plans = read_plans(folder)
    return bool(plans) and last["step"] < plans[-1].total


def describe_finished_run(folder: RunFolder, testing: bool) -> str:
    """Return why a finished run is skipped.

    If this request would test (`testing`) and the run has no test scores, because its sweep was
    choosing between settings, the text also contains the command that computes them.
    """
    summary = folder.path / "summary.json"
    is_tested = summary.is_file() and "test/dice" in json.loads(summary.read_text())["metrics"]
    command = shlex.join(["python", "-m", "brainseg.evaluate", f"checkpoint={folder.path}"])
    return (
        "finished before"
        if is_tested or not testing
        else f"finished before, untested: {command} scores its test patients"
    )


def read_history(folder: RunFolder) -> list[str]:
    """Return the lines of metrics.jsonl, one per epoch."""
    history = folder.path / "metrics.jsonl"
    return history.read_text().splitlines() if history.is_file() else []
