"""Overlays of masks on images, and the choice of the patients and slices that they show."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainseg.core.errors import DataError
from brainseg.evaluation.metrics import PatientScore
from brainseg.reports import figures

# Colours that colour-blind readers can distinguish, too.
TRUTH, PREDICTION, OVERLAP = (0.337, 0.706, 0.914), (0.835, 0.369, 0.0), (0.941, 0.894, 0.259)
SLICES_SHOWN = 4


@dataclass(frozen=True)
class Case:
    """The images, masks and Dice of a patient to draw."""

    name: str
    dice: float
    # (S, C, H, W) of any dtype
    images: np.ndarray
    # Class indices (S, H, W)
    truth: np.ndarray
    # Class indices (S, H, W)
    prediction: np.ndarray
    # The image channel that is drawn.
    channel: int
    # A prefix of the title, such as best, median or worst.
    label: str = ""
    # Names by class index. With more than two, each class has its own colour.
    classes: Sequence[str] = ()


def draw_overlays(cases: Sequence[Case], path: str | Path) -> None:
    """Draw each case as a row of four slices with truth and prediction over the image, as PNG.

    Raises DataError without a case.
    """
    if not cases:
        raise DataError(f"{path}: there is no patient to draw")
    figure = figures.new_figure(2.6 * SLICES_SHOWN, 2.95 * len(cases) + 0.4)
    grid = figure.subplots(len(cases), SLICES_SHOWN, squeeze=False)
    for row, case in zip(grid, cases, strict=True):
        slices, high, window = draw_frame(case)
        for column, axes in enumerate(row):
            axes.axis("off")
            if column < len(slices):
                index = slices[column]
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
        "truth only (false negative)": TRUTH,
        "prediction only (false positive)": PREDICTION,
    }
    classes = cases[0].classes
    is_multiclass = len(classes) > 2
    if is_multiclass:
        names = {name: figures.class_colour(index) for index, name in enumerate(classes) if index}
    handles = [Patch(color=colour, label=name) for name, colour in names.items()]
    heading = "tint: prediction, outline: truth" if is_multiclass else None
    figure.legend(handles=handles, title=heading, loc="outside upper right", ncols=3, frameon=False)
    figures.save_figure(figure, path)


def draw_frame(case: Case) -> tuple[list[int], float, tuple[slice, slice]]:
    """Return the slices to draw, the intensity that is white, and the rows and columns to draw.

    The rows and columns contain the head and the masks.
    """
    slices = choose_slices(case.truth > 0, case.prediction > 0)
    # A percentile makes fat and fluid white. The maximum might be a single bright pixel.
    high = float(np.percentile(case.images[:, case.channel], 99.3)) or 1.0
    window = head_window(
        case.images[slices, case.channel] > 0.15 * high,
        (case.truth[slices] > 0) | (case.prediction[slices] > 0),
    )
    return slices, high, window


def paint(case: Case, index: int, high: float) -> np.ndarray:
    """Return slice `index` as RGB float (H, W, 3).

    The image is grey, tinted inside a mask, and has the full colour on the masks' edges. With
    several classes the prediction is tinted and the truth outlined, in the colour of the class.
    """
    from scipy.ndimage import binary_erosion

    grey = np.clip(case.images[index, case.channel].astype(np.float32) / high, 0, 1)
    picture = np.repeat(grey[:, :, None], 3, axis=2)
    if len(case.classes) > 2:
        for label in range(1, len(case.classes)):
            class_colour = np.array(figures.class_colour(label))
            predicted, true = case.prediction[index] == label, case.truth[index] == label
            picture[predicted] = 0.65 * picture[predicted] + 0.35 * class_colour
            picture[true & ~binary_erosion(true)] = class_colour
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
    """Return the rows and columns of a square around the head and around every mask pixel.

    `bright` (S, H, W) marks the head. A row or column with at most 1 % of bright pixels is taken
    for noise.
    """
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


def choose_slices(truth: np.ndarray, prediction: np.ndarray) -> list[int]:
    """Return at most four slices of bool (S, H, W), spread over the tumour with its largest slice.

    Without a tumour they are spread over the prediction, and without a prediction over the volume.
    """
    area = np.count_nonzero(truth if truth.any() else prediction, axis=(1, 2))
    candidates = np.flatnonzero(area) if area.any() else np.arange(len(truth))
    if len(candidates) <= SLICES_SHOWN:
        # The slices beside a small tumour show whether the prediction extends beyond it.
        distance = np.abs(np.arange(len(truth))[:, None] - candidates).min(axis=1)
        return sorted(distance.argsort(kind="stable")[:SLICES_SHOWN].tolist())
    # The outermost slices of a tumour contain only a few tumour pixels.
    trim = (len(candidates) - SLICES_SHOWN) // 8
    spread = candidates[
        np.linspace(trim, len(candidates) - 1 - trim, SLICES_SHOWN).round().astype(int)
    ]
    if area.any():
        spread[np.abs(spread - area.argmax()).argmin()] = area.argmax()
    return sorted(spread.tolist())


def pick_cases(scores: Sequence[PatientScore]) -> list[tuple[str, int]]:
    """Return (label, index) of the best, median and worst Dice among patients with a tumour.

    If no patient has a tumour, all patients are candidates. The median of an even number is the
    lower of the two in the middle. With fewer than three patients there are fewer cases.
    """
    with_tumour = [index for index, score in enumerate(scores) if score.tumour_pixels]
    order = sorted(
        with_tumour or range(len(scores)),
        key=lambda index: (-scores[index].dice, scores[index].patient),
    )
    ranks = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
    labels: dict[int, str] = {}
    # The median comes last, so that with few patients best and worst keep their labels.
    for label in ("best", "worst", "median") if order else ():
        labels.setdefault(order[ranks[label]], label)
    return [(labels[index], index) for index in order if index in labels]
