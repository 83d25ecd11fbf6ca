"""Layout of the MLflow chart page: an overview section first, all runs shown, final scores as bars.

MLflow stores such a layout as a tag of the experiment. A link that names the layout's key applies
it. By default, MLflow sorts the sections by name (best, speed, test, train, val), which puts the
Dice curves five screens down. It also draws only the first ten runs, and draws a final score as a
dot at its step.
"""

import json
from typing import Any

# Increase the number with every change of the layout below. An experiment keeps the layout that it
# already has under a key, so a changed layout under an old key would never be shown.
KEY = "brainseg-2"
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
    """Return the experiment tag that stores the chart layout.

    If `sweep` is set, the layout shows only the runs of that sweep. MLflow chooses the chart type
    of a metric that this module does not name.
    """
    filters = (
        {}
        if sweep is None
        else {"searchFilter": f"tags.`{sweep_tag(sweep)}` = 'true' and tags.kind = 'run'"}
    )
    return {f"mlflow.sharedViewState.{layout_key(sweep)}": json.dumps(_layout() | filters)}


def sweep_tag(sweep: str) -> str:
    """Return the tag of a sweep's jobs.

    A job has one such tag for each sweep that it belongs to.
    """
    return f"sweep.{sweep}"


def layout_key(sweep: str | None = None) -> str:
    """Return the key by which a link refers to a layout."""
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
        # MLflow draws ten runs by default.
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
