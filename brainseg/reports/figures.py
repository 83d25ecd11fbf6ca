"""Figures, colours and lines over epochs for all pictures, and the training curves of a run.

Figures are drawn on matplotlib's `Figure` with the Agg canvas and never through pyplot, which would
keep figures alive and choose a backend for the whole process. The same input gives a file with the
same bytes.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brainseg.core.errors import DataError
from brainseg.core.files import writing
from brainseg.evaluation.history import best_row

BLUE, ORANGE, GREY = "#1f6fb4", "#d9730d", "#666666"
# The colours of class 1, 2, ..., in turn.
CLASS_COLOURS = (
    "#ffb000",
    "#2f9bff",
    "#ff4fa3",
    "#35d07f",
    "#b07cff",
    "#ff6a2b",
    "#00d5d5",
    "#e8e85a",
)


def draw_curves(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw the losses and the validation Dice over the epochs as PNG.

    `rows` are the lines of metrics.jsonl, one per epoch. Raises DataError without a row.
    """
    if not rows:
        raise DataError(f"{path}: there is no epoch to draw")
    figure = new_figure(11, 4.2)
    losses, dice = figure.subplots(1, 2)
    draw_lines(losses, rows, {"train/loss": ("training", BLUE), "val/loss": ("validation", ORANGE)})
    losses.set_title("Loss", loc="left", fontweight="bold")
    # Further classes are left out, because there is no colour for them.
    class_metrics = [name for name in rows[-1]["metrics"] if name.startswith("val/dice/")][
        : len(CLASS_COLOURS)
    ]
    lines = {
        name: (name.removeprefix("val/dice/"), CLASS_COLOURS[index])
        for index, name in enumerate(class_metrics)
    }
    draw_lines(
        dice,
        rows,
        {"val/dice": ("mean", ORANGE), "val/dice_median": ("median", GREY), **lines},
        top=1.0,
    )
    dice.set_title("Validation Dice", loc="left", fontweight="bold")
    validated_rows = [row for row in rows if "val/dice" in row["metrics"]]
    if validated_rows:
        best = best_row(validated_rows)
        epoch, value = best["epoch"], best["metrics"]["val/dice"]
        for axes in (losses, dice):
            axes.axvline(epoch, color=GREY, linewidth=1, linestyle=":", zorder=0)
        dice.plot(
            [epoch],
            [value],
            marker="o",
            markersize=9,
            markerfacecolor="none",
            markeredgecolor=ORANGE,
            markeredgewidth=2,
        )
        dice.set_title(
            f"best mean {value:.3f}, epoch {epoch}", loc="right", color=ORANGE, fontsize=10
        )
    save_figure(figure, path)


def draw_lines(
    axes: Any,
    rows: Sequence[Mapping[str, Any]],
    lines: Mapping[str, tuple[str, str]],
    top: float | None = None,
) -> None:
    """Draw a line for each metric of `lines`, which maps metrics to (label, colour).

    The label and the last value stand at the right end of the line. Epochs without the metric are
    skipped. `top` is the upper limit of the axis, and by default follows the values.
    """
    from matplotlib.ticker import MaxNLocator

    ends, low, high = [], 0.0, top or 0.0
    for metric, (label, colour) in lines.items():
        points = [
            (row["epoch"], row["metrics"][metric]) for row in rows if metric in row["metrics"]
        ]
        if points:
            epochs, values = zip(*points, strict=True)
            axes.plot(
                epochs,
                values,
                color=colour,
                linewidth=1.8,
                marker="o" if len(points) < 15 else None,
                markersize=3.5,
            )
            low, high = min(low, *values), top or max(high, 1.05 * max(values))
            ends.append((values[-1], f" {label} {values[-1]:.3f}", colour))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("epoch")
    axes.set_xlim(rows[0]["epoch"] - 0.5, rows[-1]["epoch"] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="#e5e5e5")
    axes.set_axisbelow(True)
    high = high if high > low else low + 1
    axes.set_ylim(low, high)
    height = -math.inf
    # Going upwards, each label has a minimum distance to the one below, so that the labels of lines
    # that end close together do not overlap.
    for value, text, colour in sorted(ends):
        height = max((value - low) / (high - low), height + 0.06)
        axes.text(
            1.0, height, text, color=colour, transform=axes.transAxes, verticalalignment="center"
        )


def class_colour(index: int) -> tuple[float, float, float]:
    """Return the RGB colour of a class above 0."""
    from matplotlib.colors import to_rgb

    return to_rgb(CLASS_COLOURS[(index - 1) % len(CLASS_COLOURS)])


def new_figure(width: float, height: float) -> Any:
    """Return a matplotlib Figure of `width` x `height` inches on the Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure as PNG, atomically."""
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
