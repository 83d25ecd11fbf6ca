"""Facts of many runs for a table, read from their folders without torch and without MLflow."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from brainseg.config import flatten
from brainseg.config.overrides import short_name, values_by_setting
from brainseg.core.errors import DataError
from brainseg.evaluation.history import best_row
from brainseg.reports import tables
from brainseg.runs.identity import drop_non_identity, training_budget
from brainseg.runs.run_folder import RunFolder

COLUMNS = ("run", "state", "epoch", "val/dice", "test/dice", "left", "settings", "tags", "note")
# Characters of a column in the table. A CSV file contains all of them.
LONGEST = {"settings": 70, "note": 60}


@dataclass(frozen=True)
class RunSummary:
    """State, scores and typed settings of one run."""

    path: Path
    # Milliseconds since 1970, for the order of the table.
    created: int
    state: str
    # Number of finished epochs.
    epochs: int
    val_dice: float | None
    test_dice: float | None
    # Estimated seconds until the end of a running run.
    seconds_left: float | None
    # The typed settings that can change a result, by name.
    settings: dict[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    note: str = ""


def read_summary(path: Path) -> RunSummary:
    """Return the facts of the run in this folder. Raises DataError if its files cannot be read."""
    folder = RunFolder(path)
    try:
        facts, state = folder.facts, folder.state
        is_scored = state == "finished" and (path / "summary.json").is_file()
        scores = json.loads((path / "summary.json").read_text()) if is_scored else {}
        history = path / "metrics.jsonl"
        lines = history.read_text().splitlines() if history.is_file() else []
        rows = [json.loads(line) for line in lines]
        dice = best_row(rows)["metrics"].get("val/dice") if rows else None
        return RunSummary(
            path,
            int(facts.get("created", 0)),
            state,
            len(rows),
            dice,
            scores.get("metrics", {}).get("test/dice"),
            _estimate_seconds_left(folder, rows) if state == "running" else None,
            drop_non_identity(values_by_setting(facts["overrides"])),
            tuple(facts.get("tags", [])),
            facts.get("note") or "",
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not what a run writes ({type(error).__name__}: {error})"
        ) from error


def _estimate_seconds_left(folder: RunFolder, rows: Sequence[dict[str, Any]]) -> float | None:
    """Return the seconds until the last step of a run, or None before its first epoch ended."""
    if not rows:
        return None
    unit, budget = training_budget(folder.config)
    seconds = [row["metrics"]["speed/epoch_seconds"] for row in rows]
    if unit == "epochs":
        return max(0.0, (budget - len(rows)) * sum(seconds) / len(seconds))
    if unit == "max_steps":
        return max(0.0, (budget - rows[-1]["step"]) * sum(seconds) / rows[-1]["step"])
    return max(0.0, budget * 60 - sum(seconds))


def differing_settings(runs: Sequence[RunSummary]) -> list[str]:
    """Return the settings whose values differ between the runs, in the order of their names."""
    names = sorted({name for run in runs for name in run.settings})
    return [name for name in names if len({run.settings.get(name) for run in runs}) > 1]


def compare_settings(first: Path, second: Path) -> list[tuple[str, str, str]]:
    """Return name and both values of each setting in which two runs differ, defaults included."""
    first_settings, second_settings = (
        flatten(asdict(RunFolder(path).config)) for path in (first, second)
    )
    return [
        (name, str(first_settings.get(name, "")), str(second_settings.get(name, "")))
        for name in sorted(first_settings | second_settings)
        if first_settings.get(name) != second_settings.get(name)
    ]


def table_rows(runs: Sequence[RunSummary]) -> list[dict[str, str]]:
    """Return the cells of each run by column, as text."""
    names = differing_settings(runs)
    return [
        {
            "run": str(run.path),
            "state": run.state,
            "epoch": str(run.epochs),
            "val/dice": _format_score(run.val_dice),
            "test/dice": _format_score(run.test_dice),
            "left": _format_duration(run.seconds_left),
            "settings": " ".join(
                f"{short_name(name, names)}={run.settings[name]}"
                for name in names
                if name in run.settings
            ),
            "tags": ", ".join(run.tags),
            "note": " ".join(run.note.split()),
        }
        for run in runs
    ]


def format_rows(rows: Sequence[dict[str, str]]) -> str:
    """Return the rows of `table_rows` as a text table, with long texts shortened."""
    cells = [[_shorten(name, row[name]) for name in COLUMNS] for row in rows]
    return tables.format_table(COLUMNS, cells)


def format_csv(rows: Sequence[dict[str, str]]) -> str:
    """Return rows of text as CSV with a header."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().rstrip("\n")


def _shorten(column: str, text: str) -> str:
    return tables.shorten_text(text, LONGEST.get(column, len(text)))


def _format_score(score: float | None) -> str:
    return "" if score is None else f"{score:.3f}"


def _format_duration(seconds: float | None) -> str:
    """Return seconds as hours and minutes, such as 1 h 05 min."""
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
