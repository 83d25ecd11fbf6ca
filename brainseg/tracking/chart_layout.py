"""How MLflow draws our runs when the chart link is opened: an overview first, every run in it, final scores as bars.

MLflow keeps such a layout as a tag of the experiment and applies it where a link names its key. Left to itself it sorts the
sections by name (best, speed, test, train, val), which puts the Dice curves five screens down; it draws the first ten runs
only, and a final score as a dot at its step.
"""

import json
from typing import Any

KEY = "brainseg-2"  # count up with every change below: an experiment keeps the layout that it has under a key
CURVES = ("val/dice", "val/loss", "train/loss")
BARS = ("best/val_dice", "test/dice", "test/patients_missed")
SECTIONS = ("overview", "val", "test", "train", "best", "speed")
FINAL = (
    "dice_median",
    "iou",
    "precision",
    "recall",
    "dice_tumour_slices",
    "empty_slice_false_positives",
    "hd95",
    "hd95_undefined",
)


def experiment_tags(sweep: str | None = None) -> dict[str, str]:
    """The layout of an experiment's page, or the same for the runs of one sweep alone, as a tag of the experiment.

    Metrics not named above get a chart of MLflow's choice in their section.
    """
    shown = (
        {}
        if sweep is None
        else {"searchFilter": f"tags.`{sweep_tag(sweep)}` = 'true' and tags.kind = 'run'"}
    )
    return {f"mlflow.sharedViewState.{key(sweep)}": json.dumps(_layout() | shown)}


def sweep_tag(sweep: str) -> str:
    """Return the tag of a sweep's jobs. A job has one for each sweep that it belongs to."""
    return f"sweep.{sweep}"


def key(sweep: str | None = None) -> str:
    """By which a link names a layout."""
    return KEY if sweep is None else f"{KEY}-{sweep}"


def _layout() -> dict[str, Any]:
    charts = [_chart(metric, "LINE", "overview") for metric in CURVES] + [
        _chart(metric, "BAR", "overview") for metric in BARS
    ]
    charts += [_chart(f"test/{name}", "BAR", "test") for name in FINAL] + [
        _chart("best/epoch", "BAR", "best")
    ]
    return {
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": True} for name in SECTIONS
        ],
        "compareRunCharts": charts,
        "isAccordionReordered": True,
        "runsHiddenMode": "SHOW_ALL",
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
        "selectedColumns": [
            "metrics.`best/val_dice`",
            "metrics.`test/dice`",
            "attributes.`Duration`",
        ],
    }


def _chart(metric: str, kind: str, section: str) -> dict[str, Any]:
    chart = {
        "uuid": metric,
        "type": kind,
        "metricKey": metric,
        "metricSectionId": section,
        "runsCountToCompare": 100,
    }
    chart |= {"deleted": False, "isGenerated": False}
    if kind == "BAR":
        return chart
    axes = {
        "xAxisKey": "step",
        "useGlobalXaxisKey": True,
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": True,
    }
    return chart | axes | {"selectedMetricKeys": [metric]}
