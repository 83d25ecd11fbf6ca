"""Layout of the MLflow chart page: an overview section first, all runs shown, final scores as bars.

MLflow stores such a layout as a tag of the experiment. A link that names the layout's key applies
it. By default, MLflow sorts the sections by name (best, speed, test, train, val), which puts the
Dice curves five screens down. It also draws only the first ten runs, and draws a final score as a
dot at its step.
"""

import json
from collections.abc import Sequence
from typing import Any

# Increase the number with every change of the layout below. An experiment keeps the layout that it
# already has under a key, so a changed layout under an old key would never be shown.
KEY = "brainseg-3"
CURVES = ("val/dice", "val/loss", "train/loss")
BARS = ("best/val_dice", "test/dice", "test/patients_missed")
# Pixels. Under MLflow's default, three columns 360 high, legends and axes do not fit on a laptop.
CARD_HEIGHT = 400
SECTIONS = ("overview", "val", "test", "train", "best", "speed")
FINAL = ("dice_median", "precision", "recall", "hd95")
# Columns of the table of runs, besides those of the settings that a sweep varies.
COLUMNS = (
    "metrics.`best/val_dice`",
    "metrics.`test/dice`",
    "params.`model.parameters`",
    "tags.`device`",
    "attributes.`Duration`",
)
# The order of the table is also that of the bars.
ORDER = {"orderByKey": "metrics.`best/val_dice`", "orderByAsc": False}


def experiment_tags(sweep: str | None = None, varied: Sequence[str] = ()) -> dict[str, str]:
    """Return the experiment tag that stores the chart layout.

    If `sweep` is set, the layout shows only the runs of that sweep. `varied` are the columns of its
    varied settings, such as "params.`model.depth`", which come first. MLflow chooses the chart type
    of a metric that this module does not name.
    """
    filters = (
        {}
        if sweep is None
        else {"searchFilter": f"tags.`{sweep_tag(sweep)}` = 'true' and tags.kind = 'run'"}
    )
    return {f"mlflow.sharedViewState.{layout_key(sweep)}": json.dumps(_layout(varied) | filters)}


def sweep_tag(sweep: str) -> str:
    """Return the tag of a sweep's jobs.

    A job has one such tag for each sweep that it belongs to.
    """
    return f"sweep.{sweep}"


def layout_key(sweep: str | None = None) -> str:
    """Return the key by which a link refers to a layout."""
    return KEY if sweep is None else f"{KEY}-{sweep}"


def _layout(varied: Sequence[str]) -> dict[str, Any]:
    # The curves of Dice and the bars of the best Dice stand side by side at the top.
    overview = [CURVES[0], *BARS, *CURVES[1:]]
    charts = [
        _chart(metric, "BAR" if metric in BARS else "LINE", "overview") for metric in overview
    ]
    charts += [_chart(f"test/{name}", "BAR", "test") for name in FINAL] + [
        _chart("best/epoch", "BAR", "best")
    ]
    return {
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": True}
            | {"cardHeight": CARD_HEIGHT, "columns": 2}
            for name in SECTIONS
        ],
        "compareRunCharts": charts,
        "isAccordionReordered": True,
        "runsHiddenMode": "SHOW_ALL",
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
        "selectedColumns": [*varied, *COLUMNS],
    } | ORDER


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
