"""The contents of a run folder as MLflow params, tags and metrics. Only reads files."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from brainseg.config import EXTENDED
from brainseg.evaluation.history import best_row
from brainseg.tracking.chart_layout import sweep_tag
from brainseg.tracking.names import mlflow_keys
from brainseg.tracking.runs import place_tags

if TYPE_CHECKING:
    from mlflow.entities import Metric

# The longest param or tag that every server since MLflow 2.10 accepts.
VALUE_LENGTH = 5000


def params_of(folder: Path) -> dict[str, str]:
    """Return the resolved configuration as a flat mapping from dotted names to values as text.

    The settings that an extension changes are left out, because a param of MLflow cannot be
    changed. `tags_of` returns them.
    """
    settings = {name: value for name, value in _settings(folder).items() if name not in EXTENDED}
    keys = mlflow_keys(settings)
    return {keys[name]: value for name, value in settings.items()}


def tags_of(folder: Path, record: dict[str, Any]) -> dict[str, str]:
    """Return the tags of the run: its code, data, split, device, sweep and overrides.

    A property that does not apply has no tag, for example `sweep` for a run outside a sweep.
    """
    tags = {
        "brainseg.uid": record["uid"],
        "kind": "run",
        "host": record["host"],
        **place_tags(folder),
    }
    tags |= {name: value for name, value in _settings(folder).items() if name in EXTENDED}
    tags |= {f"code.{key}": record["code"][key] for key in ("version", "commit", "dirty")}
    tags |= {f"device.{key}": record["device"][key] for key in ("asked", "got")}
    tags |= {"split.name": record["split"]["name"], "split.sha256": record["split"]["sha256"]}
    tags |= {"data.fingerprint": record["data"]["fingerprint"], "parameters": record["parameters"]}
    tags |= {
        "sweep": record["sweep"],
        "job": record["job"],
        "overrides": " ".join(record["overrides"]),
    }
    tags |= {"leaky": True} if record["split"]["leaky"] else {}
    tags |= {sweep_tag(record["sweep"]): True} if record["sweep"] else {}
    return {key: _text(value) for key, value in tags.items() if value is not None and value != ""}


def metrics_of(folder: Path, ended: bool) -> list["Metric"]:
    """Return the metrics of each epoch, with the epoch as the step.

    If the run has `ended`, best/epoch, best/val_dice and the metrics of summary.json are added at
    the step of the best epoch.
    """
    from mlflow.entities import Metric

    path = folder / "metrics.jsonl"
    rows: list[Mapping[str, Any]] = (
        [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    )
    points = [(key, value, row) for row in rows for key, value in row["metrics"].items()]
    points += _final(folder, rows) if ended and rows else []
    keys = mlflow_keys({key for key, _, _ in points})
    return [
        Metric(keys[key], _finite(value), row["time"], row["epoch"])
        for key, value, row in points
        if value is not None
    ]


def _settings(folder: Path) -> dict[str, str]:
    return _flat(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))


def _final(
    folder: Path, rows: list[Mapping[str, Any]]
) -> list[tuple[str, float | None, Mapping[str, Any]]]:
    summary = folder / "summary.json"
    tested = json.loads(summary.read_text())["metrics"] if summary.exists() else {}
    best = best_row(rows)
    dice = best["metrics"].get("val/dice")
    metrics = {"best/epoch": best["epoch"], "best/val_dice": dice} if dice is not None else {}
    return [(key, value, best) for key, value in (metrics | tested).items()]


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
