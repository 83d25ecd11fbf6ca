"""The contents of a run folder as MLflow params, tags and metrics. Only reads files.

MLflow gets what a person compares runs by. All settings are in config.yaml and all facts in
run.json, which are artifacts of the run. All metrics are in metrics.jsonl and summary.json.
"""

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import OmegaConf

from brainseg.config import EXTENDED, NOT_IDENTITY
from brainseg.config.overrides import values_by_setting, without_settings
from brainseg.evaluation.history import best_row
from brainseg.tracking.chart_layout import sweep_tag
from brainseg.tracking.names import mlflow_keys
from brainseg.tracking.runs import place_tags

if TYPE_CHECKING:
    from mlflow.entities import Metric

# The longest param or tag that every server since MLflow 2.10 accepts.
VALUE_LENGTH = 5000
# Settings that every run has as params, so that runs can be sorted and grouped by them.
CORE_SETTINGS = (
    "model.name",
    "model.depth",
    "model.width",
    "loss.name",
    "optimizer.name",
    "optimizer.lr",
    "scheduler.name",
    "batch_size",
    "seed",
    "split.name",
    "split.fold",
)
# Typed settings that are no params, because they change no result. A sweep=NAME is a param, because
# its file may also set values that no job repeats.
NO_PARAMS = (*NOT_IDENTITY, *EXTENDED, "on_nonfinite", "from")
# The command in the description of a run. MLflow breaks the lines of code in backticks alone.
COMMAND = "`python -m brainseg.train"
# Prefixes of the final scores. They belong to the run as a whole, so that their step is 0. MLflow
# then draws them as bars.
FINAL = ("best/", "test/")
# Scores of patients that MLflow does not get, and those of each class.
LEFT_OUT = {"iou", "dice_tumour_slices", "empty_slice_false_positives", "hd95_undefined"}
LEFT_OUT_OF_CLASSES = {"iou", "precision", "recall", "patients_missed"}
# Colours of the jobs of a sweep, in turn. MLflow's own colours depend on the run's id, so that two
# jobs often have nearly the same.
COLOURS = (
    *("#1f6fb4", "#d9730d", "#2a9d3f", "#c1272d", "#7b4fb5", "#8c564b", "#d94f9c", "#5f6b6d"),
    *("#a8a000", "#0fa3b1", "#1b2a6b", "#f0a202", "#7fc97f", "#b9a0e0", "#f29e8e", "#274d2b"),
)


def params_of(folder: Path, record: Mapping[str, Any]) -> dict[str, str]:
    """Return the typed settings and CORE_SETTINGS as a mapping from dotted names to text.

    A typed choice without a name of its own, such as experiment=fast, is a param, too. The number
    of weights is `model.parameters`. The settings that an extension changes are left out, because a
    param of MLflow cannot be changed. `tags_of` returns them.
    """
    settings, typed = _settings(folder), values_by_setting(record["overrides"])
    params = {name: settings[name] for name in CORE_SETTINGS if name in settings}
    for name, value in typed.items():
        if name in settings:
            params[name] = settings[name]
        elif f"{name}.name" not in settings:
            params[name] = value
    params = {name: value for name, value in params.items() if not _is_below(name, NO_PARAMS)}
    params["model.parameters"] = _text(record["parameters"])
    keys = mlflow_keys(params)
    return {keys[name]: value for name, value in params.items()}


def tags_of(folder: Path, record: dict[str, Any]) -> dict[str, str]:
    """Return the tags of the run: its folder, budget, device, sweep, commit and the user's tags.

    A property that does not apply has no tag, for example `sweep` for a run outside a sweep. Tags
    of the prefix `mlflow.` are those that MLflow documents for the source of a run. Its pages show
    them in places of their own.
    """
    settings = _settings(folder)
    tags = {"brainseg.uid": record["uid"], "kind": "run", **place_tags(folder)}
    tags |= {name: value for name in EXTENDED if (value := settings.get(name, "null")) != "null"}
    tags |= {
        "device": record["device"]["got"],
        "sweep": record["sweep"],
        "tags": ", ".join(record.get("tags", [])),
        "mlflow.source.name": "brainseg.train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": record["code"].get("commit"),
    }
    tags |= {"code.dirty": True} if record["code"].get("dirty") else {}
    tags |= {"leaky": True} if record["split"]["leaky"] else {}
    tags |= {sweep_tag(record["sweep"]): True} if record["sweep"] else {}
    return {key: _text(value) for key, value in tags.items() if value is not None and value != ""}


def colour_of(record: Mapping[str, Any]) -> str | None:
    """Return the colour of a sweep's job in MLflow's charts, or None for a run outside a sweep."""
    job = record.get("job")
    return COLOURS[job % len(COLOURS)] if job is not None else None


def description_of(record: Mapping[str, Any], present: str | None = None) -> str:
    """Return Markdown for the run's page: the note, and the command that repeats the run.

    A `present` description that a user changed on MLflow's pages is returned instead, unless it
    lacks the note of the run.
    """
    note, overrides = record.get("note"), without_settings(record["overrides"], ("note", "tags"))
    command = f"{COMMAND} {shlex.join(overrides)}".rstrip() + "`"
    description = "\n\n".join(filter(None, (note, command)))[:VALUE_LENGTH]
    if present is None or note == "" or (note and note not in present):
        return description
    typed, command, _ = present.rpartition(COMMAND)
    return description if command and typed.strip() == (note or "") else present


def final_epoch(folder: Path) -> int:
    """Return the epoch of best.pt, or 0 before the first epoch."""
    rows = _rows(folder)
    return int(best_row(rows)["epoch"]) if rows else 0


class RunMetrics(NamedTuple):
    """The metrics of a run as MLflow gets them, without those that `is_logged` leaves out."""

    # The best epoch so far and its val/dice, at step 0.
    best: list["Metric"]
    # The metrics of each epoch, with the epoch as the step.
    epochs: list["Metric"]
    # The metrics of summary.json: the scores of the validation patients at the best epoch, the
    # others at step 0.
    summary: list["Metric"]

    @property
    def points(self) -> list["Metric"]:
        """Return all points. MLflow lists metrics in the order of their arrival."""
        return [*self.best, *self.epochs, *self.summary]


def read_metrics(folder: Path, ended: int | None) -> RunMetrics:
    """Return the metrics in a run folder.

    `ended` is the time at which the run ended, in milliseconds since 1970. None leaves out the
    metrics of summary.json.
    """
    from mlflow.entities import Metric

    rows = _rows(folder)
    if not rows:
        return RunMetrics([], [], [])
    best = best_row(rows)
    dice = best["metrics"].get("val/dice")
    finals = {"best/val_dice": dice, "best/epoch": best["epoch"]} if dice is not None else {}
    path = folder / "summary.json"
    is_complete = ended is not None and path.exists()
    summary = json.loads(path.read_text())["metrics"] if is_complete else {}
    keys = mlflow_keys({*finals, *summary, *(key for row in rows for key in row["metrics"])})

    def points(metrics: Mapping[str, float | None], time: int, step: int) -> list[Metric]:
        return [
            Metric(keys[key], _finite(value), time, step)
            for key, value in metrics.items()
            if value is not None and is_logged(key)
        ]

    tests = {key: value for key, value in summary.items() if key.startswith(FINAL)}
    validations = {key: value for key, value in summary.items() if key not in tests}
    return RunMetrics(
        points(finals, best["time"], 0),
        [point for row in rows for point in points(row["metrics"], row["time"], row["epoch"])],
        points(tests, ended or 0, 0) + points(validations, best["time"], best["epoch"]),
    )


def _is_below(name: str, groups: tuple[str, ...]) -> bool:
    return any(name == group or name.startswith(f"{group}.") for group in groups)


def is_logged(metric: str) -> bool:
    """Return True for a metric that MLflow gets. All metrics are in the files of a run."""
    part, _, name = metric.partition("/")
    score, _, label = name.partition("/")
    is_score = part in ("train", "val", "test", "unknown")
    return not (is_score and (score in LEFT_OUT or bool(label and score in LEFT_OUT_OF_CLASSES)))


def _rows(folder: Path) -> list[Mapping[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _settings(folder: Path) -> dict[str, str]:
    return _flat(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))


def _finite(value: float) -> float:
    """Return the value, or NaN instead of an infinity.

    MLflow would store an infinity as 1.8e308, which flattens the chart. It draws a NaN as a gap.
    """
    return value if math.isfinite(value) else math.nan


def _flat(settings: Any, prefix: str = "") -> dict[str, str]:
    """Return nested settings as a flat mapping from dotted names to text.

    Lists and empty groups are not taken apart.
    """
    if not (isinstance(settings, dict) and settings):
        return {prefix: _text(settings)}
    return {
        name: leaf
        for key, value in settings.items()
        for name, leaf in _flat(value, f"{prefix}.{key}" if prefix else key).items()
    }


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:VALUE_LENGTH]
