"""What a person reads after a run: training curves, overlays of three patients, a table, patients.csv and slices.csv.

Figures are drawn on matplotlib's `Figure` with the Agg canvas, never through pyplot: that would keep figures alive and
choose a backend for the whole process. Files are the same bytes for the same input.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brainseg.errors import DataError
from brainseg.files import writing
from brainseg.training.metrics import PatientScore

BLUE, ORANGE, GREY = "#1f6fb4", "#d9730d", "#666666"
TRUTH, PREDICTION, OVERLAP = (0.337, 0.706, 0.914), (0.835, 0.369, 0.0), (0.941, 0.894, 0.259)  # told apart by the colour-blind, too
OF_CLASS = ("#ffb000", "#2f9bff", "#ff4fa3", "#35d07f", "#b07cff", "#ff6a2b", "#00d5d5", "#e8e85a")  # of class 1, 2, ..., in turn
SLICES_SHOWN = 4
COLUMNS = ("patient", "role", "slices", "tumour_pixels", "dice", "iou", "precision", "recall", "hd95")  # the contract's, first
# With several foreground classes these of each come last, as dice/oedema.
CLASS_COLUMNS = ("tumour_pixels", "predicted_pixels", "dice", "iou", "precision", "recall", "hd95")
FURTHER_COLUMNS = ("dice_tumour_slices", "tumour_slices", "predicted_pixels", "empty_slices", "empty_slice_false_positives", "loss")


@dataclass(frozen=True)
class Case:
    """A patient to draw. images (S, C, H, W) of any dtype, truth and prediction (S, H, W) class indices, `channel` of the images shown."""

    name: str
    dice: float
    images: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    channel: int
    label: str = ""  # as best, median, worst
    classes: Sequence[str] = ()  # names by index; with more than two each has its colour


def curves(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw losses and validation Dice over the epochs of `rows`, the lines of metrics.jsonl, as PNG. Raises DataError without a row."""
    if not rows:
        raise DataError(f"{path}: no epoch to draw")
    figure = new_figure(11, 4.2)
    losses, dice = figure.subplots(1, 2)
    draw_lines(losses, rows, {"train/loss": ("training", BLUE), "val/loss": ("validation", ORANGE)})
    losses.set_title("Loss", loc="left", fontweight="bold")
    classes = [name for name in rows[-1]["metrics"] if name.startswith("val/dice/")][: len(OF_CLASS)]
    lines = {name: (name.removeprefix("val/dice/"), OF_CLASS[index]) for index, name in enumerate(classes)}
    draw_lines(dice, rows, {"val/dice": ("mean", ORANGE), "val/dice_median": ("median", GREY), **lines}, top=1.0)
    dice.set_title("Validation Dice", loc="left", fontweight="bold")
    scored = [row for row in rows if "val/dice" in row["metrics"]]
    if scored:
        best = max(scored, key=lambda row: row["metrics"]["val/dice"])  # the earliest on a tie, as best.pt
        epoch, value = best["epoch"], best["metrics"]["val/dice"]
        for axes in (losses, dice):
            axes.axvline(epoch, color=GREY, linewidth=1, linestyle=":", zorder=0)
        dice.plot([epoch], [value], marker="o", markersize=9, markerfacecolor="none", markeredgecolor=ORANGE, markeredgewidth=2)
        dice.set_title(f"best mean {value:.3f}, epoch {epoch}", loc="right", color=ORANGE, fontsize=10)
    save(figure, path)


def draw_lines(axes: Any, rows: Sequence[Mapping[str, Any]], lines: Mapping[str, tuple[str, str]], top: float | None = None) -> None:
    """One line for each metric of `lines` (label, colour), named and valued at its right end; epochs that lack it are skipped."""
    from matplotlib.ticker import MaxNLocator

    ends, low, high = [], 0.0, top or 0.0
    for metric, (label, colour) in lines.items():
        points = [(row["epoch"], row["metrics"][metric]) for row in rows if metric in row["metrics"]]
        if points:
            epochs, values = zip(*points, strict=True)
            axes.plot(epochs, values, color=colour, linewidth=1.8, marker="o" if len(points) < 15 else None, markersize=3.5)
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
    for value, text, colour in sorted(ends):  # names of lines that end close together are pushed apart
        height = max((value - low) / (high - low), height + 0.06)
        axes.text(1.0, height, text, color=colour, transform=axes.transAxes, verticalalignment="center")


def overlays(cases: Sequence[Case], path: str | Path) -> None:
    """Draw each case as a row of four slices with truth and prediction over the image, as PNG. Raises DataError without a case."""
    if not cases:
        raise DataError(f"{path}: no patient to draw")
    figure = new_figure(2.6 * SLICES_SHOWN, 2.95 * len(cases) + 0.4)
    grid = figure.subplots(len(cases), SLICES_SHOWN, squeeze=False)
    for row, case in zip(grid, cases, strict=True):
        shown = slices_shown(case.truth > 0, case.prediction > 0)
        high = float(np.percentile(case.images[:, case.channel], 99.3)) or 1.0  # shown as white: fat and fluid, not one bright pixel
        window = head_window(case.images[shown, case.channel] > 0.15 * high, (case.truth[shown] > 0) | (case.prediction[shown] > 0))
        for column, axes in enumerate(row):
            axes.axis("off")
            if column < len(shown):
                index = shown[column]
                axes.imshow(paint(case, index, high)[window], interpolation="nearest")
                axes.text(0.02, 0.02, f"slice {index + 1} of {len(case.truth)}", color="white", fontsize=8, transform=axes.transAxes)
        title = f"{case.label + ': ' if case.label else ''}{case.name}   Dice {case.dice:.3f}"
        row[0].set_title(title, loc="left", fontweight="bold", parse_math=False)
    from matplotlib.patches import Patch

    names = {"both": OVERLAP, "truth only (missed)": TRUTH, "prediction only (false alarm)": PREDICTION}
    classes, several = cases[0].classes, len(cases[0].classes) > 2
    if several:
        names = {name: class_colour(index) for index, name in enumerate(classes) if index}
    handles = [Patch(color=colour, label=name) for name, colour in names.items()]
    heading = "tint: prediction, outline: truth" if several else None
    figure.legend(handles=handles, title=heading, loc="outside upper right", ncols=3, frameon=False)
    save(figure, path)


def class_colour(index: int) -> tuple[float, float, float]:
    """RGB of a class above 0."""
    from matplotlib.colors import to_rgb

    return to_rgb(OF_CLASS[(index - 1) % len(OF_CLASS)])


def paint(case: Case, index: int, high: float) -> np.ndarray:
    """Slice `index` as RGB float (H, W, 3): grey image, tinted where a mask is, full colour on the masks' edges.

    Of several classes the prediction is tinted and the truth outlined, each in its colour.
    """
    from scipy.ndimage import binary_erosion

    grey = np.clip(case.images[index, case.channel].astype(np.float32) / high, 0, 1)
    picture = np.repeat(grey[:, :, None], 3, axis=2)
    if len(case.classes) > 2:
        for label in range(1, len(case.classes)):
            own = np.array(class_colour(label))
            predicted, true = case.prediction[index] == label, case.truth[index] == label
            picture[predicted] = 0.65 * picture[predicted] + 0.35 * own
            picture[true & ~binary_erosion(true)] = own
        return picture
    truth, prediction = case.truth[index] > 0, case.prediction[index] > 0
    for mask, colour in ((truth & ~prediction, TRUTH), (prediction & ~truth, PREDICTION), (truth & prediction, OVERLAP)):
        edge = mask & ~binary_erosion(mask)
        picture[mask] = 0.65 * picture[mask] + 0.35 * np.array(colour)
        picture[edge] = colour
    return picture


def head_window(bright: np.ndarray, masks: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the square around the head, bright in (S, H, W), stray noise aside, and around every pixel of the masks."""
    sides = []
    for axes in ((0, 2), (0, 1)):
        inside = np.flatnonzero((bright.mean(axis=axes) > 0.01) | masks.any(axis=axes))
        sides.append((inside[0], inside[-1] + 1) if len(inside) else (0, np.delete(bright.shape, axes)[0]))
    half = 0.52 * max(stop - start for start, stop in sides)
    rows, columns = (slice(max(0, round((start + stop) / 2 - half)), round((start + stop) / 2 + half)) for start, stop in sides)
    return rows, columns


def slices_shown(truth: np.ndarray, prediction: np.ndarray) -> list[int]:
    """At most four slices spread over the tumour of bool (S, H, W), its largest among them; else over the prediction, else over all."""
    area = np.count_nonzero(truth if truth.any() else prediction, axis=(1, 2))
    candidates = np.flatnonzero(area) if area.any() else np.arange(len(truth))
    if len(candidates) <= SLICES_SHOWN:  # a small tumour: its neighbours show whether the prediction spills over
        distance = np.abs(np.arange(len(truth))[:, None] - candidates).min(axis=1)
        return sorted(distance.argsort(kind="stable")[:SLICES_SHOWN].tolist())
    trim = (len(candidates) - SLICES_SHOWN) // 8  # the outermost slices of a tumour hold a few pixels
    spread = candidates[np.linspace(trim, len(candidates) - 1 - trim, SLICES_SHOWN).round().astype(int)]
    if area.any():
        spread[np.abs(spread - area.argmax()).argmin()] = area.argmax()
    return sorted(spread.tolist())


def pick_cases(scores: Sequence[PatientScore]) -> list[tuple[str, int]]:
    """(label, index) of the best, median and worst Dice among patients with a tumour (among all when there is none).

    The median of an even number is the lower of the two in the middle; with fewer than three patients there are fewer cases.
    """
    with_tumour = [index for index, score in enumerate(scores) if score.tumour_pixels]
    order = sorted(with_tumour or range(len(scores)), key=lambda index: (-scores[index].dice, scores[index].patient))
    places = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
    chosen: dict[int, str] = {}
    for label in ("best", "worst", "median") if order else ():
        chosen.setdefault(order[places[label]], label)
    return [(chosen[index], index) for index in order if index in chosen]


def table(metrics: Mapping[str, float], title: str) -> str:
    """A plain text table: the parts that were scored (val, test, ...) side by side, then the other metrics by their whole name."""
    parts = [part for part in ("train", "val", "test", "unknown") if f"{part}/dice" in metrics]
    names = list(dict.fromkeys(name.split("/", 1)[1] for name in metrics if name.split("/", 1)[0] in parts))
    others = [name for name in metrics if name.split("/", 1)[0] not in parts]
    width = max((len(name) for name in [*names, *others]), default=0)
    lines = [title, "-" * max(len(title), width + 12 * max(len(parts), 1))]
    if parts:
        lines.append(" " * width + "".join(f"{part:>12}" for part in parts))
    for name in names:
        cells = [metrics.get(f"{part}/{name}") for part in parts]
        lines.append(f"{name:<{width}}" + "".join(f"{'' if cell is None else number(cell):>12}" for cell in cells))
    lines += [f"{name:<{width}}{number(metrics[name]):>12}" for name in others]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def counted(count: int, what: str) -> str:
    """1 patient, 2 patients."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def number(value: float) -> str:
    """Four digits that say something: 17, 0.8412, 12.35, 1.000e-04."""
    if float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.3e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def patients_csv(rows: Sequence[tuple[PatientScore, str]], path: str | Path) -> None:
    """Write one line for each (score, role), role being train, validation, test or unknown; an undefined value is an empty cell."""
    with writing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        of_classes = [(column, label) for label in (rows[0][0].classes if rows else ()) for column in CLASS_COLUMNS]
        writer.writerow([*COLUMNS, *FURTHER_COLUMNS, *(f"{column}/{label}" for column, label in of_classes)])
        for score, role in rows:
            values = vars(score) | {"role": role}
            own = [values[column] for column in (*COLUMNS, *FURTHER_COLUMNS)]
            writer.writerow(map(cell, [*own, *(getattr(score.classes[label], column) for column, label in of_classes)]))


def slices_csv(counts: Mapping[str, np.ndarray], path: str | Path) -> None:
    """Write one line a slice, counted from 0 in its volume: pixels of truth, prediction and both; `counts` is int (S, 3) by patient."""
    with writing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["patient", "slice", "truth_pixels", "predicted_pixels", "overlap"])
        for patient, rows in counts.items():
            writer.writerows([patient, index, *row] for index, row in enumerate(rows.tolist()))


def cell(value: str | float | None) -> str:
    """Text as it is, counts as integers, ratios with six decimals, and nothing for NaN or what was not measured."""
    if isinstance(value, float):
        return f"{value:.6f}" if math.isfinite(value) else ""
    return "" if value is None else str(value)


def new_figure(width: float, height: float) -> Any:
    """A matplotlib Figure of `width` x `height` inches on the Agg canvas, apart from pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: str | Path) -> None:
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
