"""Masks over the images: which patients and slices are shown, and how they are painted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainseg.core.errors import DataError
from brainseg.evaluation.metrics import PatientScore
from brainseg.reports import figures

TRUTH, PREDICTION, OVERLAP = (
    (0.337, 0.706, 0.914),
    (0.835, 0.369, 0.0),
    (0.941, 0.894, 0.259),
)  # told apart by the colour-blind, too
SLICES_SHOWN = 4


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


def draw_overlays(cases: Sequence[Case], path: str | Path) -> None:
    """Draw each case as a row of four slices with truth and prediction over the image, as PNG. Raises DataError without a case."""
    if not cases:
        raise DataError(f"{path}: no patient to draw")
    figure = figures.new_figure(2.6 * SLICES_SHOWN, 2.95 * len(cases) + 0.4)
    grid = figure.subplots(len(cases), SLICES_SHOWN, squeeze=False)
    for row, case in zip(grid, cases, strict=True):
        shown, high, window = draw_frame(case)
        for column, axes in enumerate(row):
            axes.axis("off")
            if column < len(shown):
                index = shown[column]
                axes.imshow(paint(case, index, high)[window], interpolation="nearest")
                axes.text(
                    0.02,
                    0.02,
                    f"slice {index + 1} of {len(case.truth)}",
                    color="white",
                    fontsize=8,
                    transform=axes.transAxes,
                )
        title = f"{case.label + ': ' if case.label else ''}{case.name}   Dice {case.dice:.3f}"
        row[0].set_title(title, loc="left", fontweight="bold", parse_math=False)
    from matplotlib.patches import Patch

    names = {
        "both": OVERLAP,
        "truth only (missed)": TRUTH,
        "prediction only (false alarm)": PREDICTION,
    }
    classes, several = cases[0].classes, len(cases[0].classes) > 2
    if several:
        names = {name: figures.class_colour(index) for index, name in enumerate(classes) if index}
    handles = [Patch(color=colour, label=name) for name, colour in names.items()]
    heading = "tint: prediction, outline: truth" if several else None
    figure.legend(handles=handles, title=heading, loc="outside upper right", ncols=3, frameon=False)
    figures.save_figure(figure, path)


def draw_frame(case: Case) -> tuple[list[int], float, tuple[slice, slice]]:
    """What of a case is drawn: the slices shown, the intensity that is white, and the rows and columns around head and masks."""
    shown = slices_shown(case.truth > 0, case.prediction > 0)
    high = (
        float(np.percentile(case.images[:, case.channel], 99.3)) or 1.0
    )  # fat and fluid are white, not one bright pixel
    window = head_window(
        case.images[shown, case.channel] > 0.15 * high,
        (case.truth[shown] > 0) | (case.prediction[shown] > 0),
    )
    return shown, high, window


def paint(case: Case, index: int, high: float) -> np.ndarray:
    """Slice `index` as RGB float (H, W, 3): grey image, tinted where a mask is, full colour on the masks' edges.

    Of several classes the prediction is tinted and the truth outlined, each in its colour.
    """
    from scipy.ndimage import binary_erosion

    grey = np.clip(case.images[index, case.channel].astype(np.float32) / high, 0, 1)
    picture = np.repeat(grey[:, :, None], 3, axis=2)
    if len(case.classes) > 2:
        for label in range(1, len(case.classes)):
            own = np.array(figures.class_colour(label))
            predicted, true = case.prediction[index] == label, case.truth[index] == label
            picture[predicted] = 0.65 * picture[predicted] + 0.35 * own
            picture[true & ~binary_erosion(true)] = own
        return picture
    truth, prediction = case.truth[index] > 0, case.prediction[index] > 0
    for mask, colour in (
        (truth & ~prediction, TRUTH),
        (prediction & ~truth, PREDICTION),
        (truth & prediction, OVERLAP),
    ):
        edge = mask & ~binary_erosion(mask)
        picture[mask] = 0.65 * picture[mask] + 0.35 * np.array(colour)
        picture[edge] = colour
    return picture


def head_window(bright: np.ndarray, masks: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the square around the head, bright in (S, H, W), stray noise aside, and around every pixel of the masks."""
    sides = []
    for axes in ((0, 2), (0, 1)):
        inside = np.flatnonzero((bright.mean(axis=axes) > 0.01) | masks.any(axis=axes))
        sides.append(
            (inside[0], inside[-1] + 1) if len(inside) else (0, np.delete(bright.shape, axes)[0])
        )
    half = 0.52 * max(stop - start for start, stop in sides)
    rows, columns = (
        slice(max(0, round((start + stop) / 2 - half)), round((start + stop) / 2 + half))
        for start, stop in sides
    )
    return rows, columns


def slices_shown(truth: np.ndarray, prediction: np.ndarray) -> list[int]:
    """At most four slices spread over the tumour of bool (S, H, W), its largest among them; else over the prediction, else over all."""
    area = np.count_nonzero(truth if truth.any() else prediction, axis=(1, 2))
    candidates = np.flatnonzero(area) if area.any() else np.arange(len(truth))
    if (
        len(candidates) <= SLICES_SHOWN
    ):  # a small tumour: its neighbours show whether the prediction spills over
        distance = np.abs(np.arange(len(truth))[:, None] - candidates).min(axis=1)
        return sorted(distance.argsort(kind="stable")[:SLICES_SHOWN].tolist())
    trim = (
        len(candidates) - SLICES_SHOWN
    ) // 8  # the outermost slices of a tumour hold a few pixels
    spread = candidates[
        np.linspace(trim, len(candidates) - 1 - trim, SLICES_SHOWN).round().astype(int)
    ]
    if area.any():
        spread[np.abs(spread - area.argmax()).argmin()] = area.argmax()
    return sorted(spread.tolist())


def pick_cases(scores: Sequence[PatientScore]) -> list[tuple[str, int]]:
    """(label, index) of the best, median and worst Dice among patients with a tumour (among all when there is none).

    The median of an even number is the lower of the two in the middle; with fewer than three patients there are fewer cases.
    """
    with_tumour = [index for index, score in enumerate(scores) if score.tumour_pixels]
    order = sorted(
        with_tumour or range(len(scores)),
        key=lambda index: (-scores[index].dice, scores[index].patient),
    )
    places = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
    chosen: dict[int, str] = {}
    for label in ("best", "worst", "median") if order else ():
        chosen.setdefault(order[places[label]], label)
    return [(chosen[index], index) for index in order if index in chosen]
