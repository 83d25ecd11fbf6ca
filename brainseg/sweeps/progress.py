"""The lines that a sweep prints: the link to its charts, and the start and the end of each job."""

import json
import sys
from pathlib import Path

from brainseg.config import TrackingConfig
from brainseg.core.errors import shorten_error
from brainseg.reports.tables import format_duration
from brainseg.runs.job import JobState, Outcome
from brainseg.tracking.refusals import RefusedError, remedy_of
from brainseg.tracking.sweep import prepare_charts


def describe_charts(sweep: str, tracking: TrackingConfig) -> str:
    """Return the link to the charts of a sweep, which is valid before its first job starts.

    If the store fails, the text contains the reason. A failing store never stops a sweep.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return prepare_charts(sweep, tracking)
    except (MlflowException, SQLAlchemyError, OSError, RefusedError) as error:
        reason = shorten_error(error)
        remedy = remedy_of(error) or "the jobs run, and MLflow gets them once it answers"
        return f"MLflow charts: not available ({reason}); {remedy}"


def print_start(number: int, count: int, label: str) -> None:
    """Print the number of a job, counted from 1, and its varied settings."""
    print(f"job {number + 1} of {count}: {label}", flush=True)


def print_end(
    number: int, count: int, outcome: Outcome, seconds: float | None, left: float | None
) -> None:
    """Print the state, score or reason, and run folder of a job, and the time left of its sweep.

    `seconds` is the duration of the job, and `left` the estimate for the rest of the sweep.
    """
    # A skipped job takes no time worth telling.
    is_timed = seconds is not None and outcome.state != JobState.SKIPPED
    state = f"{outcome.state} in {format_duration(seconds or 0)}" if is_timed else outcome.state
    words = [outcome.reason, read_score(outcome), outcome.folder]
    words += [f"about {format_duration(left)} left for the sweep"] if left else []
    print(
        f"job {number + 1} of {count} {state}: {', '.join(filter(None, words))}",
        file=sys.stderr if outcome.state == JobState.FAILED else sys.stdout,
        flush=True,
    )


def read_score(outcome: Outcome) -> str:
    """Return the score of a finished job, such as val/dice 0.812, or "" without a score."""
    path = Path(outcome.folder, "summary.json")
    is_scored = outcome.folder and outcome.state in (JobState.FINISHED, JobState.SKIPPED)
    if not is_scored or not path.is_file():
        return ""
    summary = json.loads(path.read_text())
    scores = {"val/dice": summary["best"].get("val/dice")} | summary["metrics"]
    name = "val/dice" if scores["val/dice"] is not None else "test/dice"
    return f"{name} {scores[name]:.3f}" if scores.get(name) is not None else ""
