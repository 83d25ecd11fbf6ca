"""Scores of one patient's whole volume, of its classes, and their summary over patients.

The headline is Dice over a volume, because that is what a reader of the scan sees; an average over slices would be
dominated by empty slices. Definitions and names are those of docs/contracts.md, Metrics.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from brainseg.core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

MISSED_DICE = 0.05  # below this a patient with a tumour counts as missed
OF_A_CLASS = (
    "dice",
    "iou",
    "precision",
    "recall",
    "patients_missed",
    "hd95",
    "hd95_undefined",
)  # summarised for each class, too


@dataclass(frozen=True)
class PatientScore:
    """What one volume scored. Counts are in slices and pixels, ratios in [0, 1], NaN means undefined.

    With several foreground classes the counts are of all of them together, `dice iou precision recall hd95` the mean over
    them (undefined if one is), `dice_tumour_slices` over those that the truth has.
    """

    patient: str  # the volume's folder name
    slices: int
    tumour_slices: int  # slices with tumour in the truth
    tumour_pixels: int  # in the truth
    predicted_pixels: int
    dice: float
    iou: float
    precision: float
    recall: float
    hd95: (
        float | None
    )  # in-plane, pixels or mm; NaN: no slice where both masks are non-empty; None: not measured
    dice_tumour_slices: float  # mean over the tumour slices; NaN: no tumour slice
    empty_slices: int  # slices without tumour in the truth
    empty_slice_false_positives: int  # how many of those have a predicted pixel
    loss: float  # the criterion on this volume; NaN: none computed
    classes: Mapping[str, "PatientScore"] = field(
        default_factory=dict, hash=False
    )  # of each foreground class, if there are several


def score_patient(
    name: str,
    prediction: Any,
    truth: Any,
    spacing: Sequence[float] | None = None,
    loss: float = math.nan,
    with_hd95: bool = True,
    classes: Sequence[str] = (),
) -> PatientScore:
    """Score one volume: `prediction` and `truth` are (S, H, W), bool or class index, numpy arrays or CPU tensors.

    `classes` names the class indices, background first; with fewer than two foreground classes every index above 0 counts as
    tumour. `spacing` is (z, y, x) in mm; None or a NaN in y or x gives HD95 in pixels, so whoever summarises passes it for all
    volumes or for none. Raises DataError when the shapes differ.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if len(classes) <= 2:
        return _score(name, prediction > 0, truth > 0, spacing, loss, with_hd95)
    of_class = {
        label: _score(name, prediction == index, truth == index, spacing, math.nan, with_hd95)
        for index, label in enumerate(classes)
        if index
    }

    def mean(name: str) -> float:
        return float(np.mean([getattr(one, name) for one in of_class.values()]))

    slice_dice = [one.dice_tumour_slices for one in of_class.values() if one.tumour_slices]
    together = _score(name, prediction > 0, truth > 0, spacing, loss, with_hd95=False)
    return replace(
        together,
        dice=mean("dice"),
        iou=mean("iou"),
        precision=mean("precision"),
        recall=mean("recall"),
        hd95=mean("hd95") if with_hd95 else None,
        dice_tumour_slices=float(np.mean(slice_dice)) if slice_dice else math.nan,
        classes=of_class,
    )


def _score(
    name: str,
    predicted: np.ndarray,
    true: np.ndarray,
    spacing: Sequence[float] | None,
    loss: float,
    with_hd95: bool,
) -> PatientScore:
    """One class: bool (S, H, W) of prediction and truth."""
    if predicted.ndim != 3 or predicted.shape != true.shape or not len(true):
        raise DataError(
            f"{name}: prediction {predicted.shape} and truth {true.shape} must be (slices, height, width) alike, with a slice"
        )
    overlap_of, predicted_of, true_of = (
        np.count_nonzero(m, axis=(1, 2)) for m in (predicted & true, predicted, true)
    )  # int64, (S,)
    overlap, predicted_pixels, true_pixels = (
        int(overlap_of.sum()),
        int(predicted_of.sum()),
        int(true_of.sum()),
    )
    both_empty = predicted_pixels + true_pixels == 0

    def ratio(numerator: int, denominator: int) -> float:
        return 1.0 if both_empty else numerator / denominator if denominator else 0.0

    tumour = true_of > 0
    slice_dice = (
        2 * overlap_of[tumour] / (predicted_of + true_of)[tumour]
    )  # float64; a tumour slice has a denominator
    return PatientScore(
        patient=name,
        slices=len(true),
        tumour_slices=int(tumour.sum()),
        tumour_pixels=true_pixels,
        predicted_pixels=predicted_pixels,
        dice=ratio(2 * overlap, predicted_pixels + true_pixels),
        iou=ratio(overlap, predicted_pixels + true_pixels - overlap),
        precision=ratio(overlap, predicted_pixels),
        recall=ratio(overlap, true_pixels),
        hd95=hausdorff95(predicted, true, spacing) if with_hd95 else None,
        dice_tumour_slices=float(slice_dice.mean()) if tumour.any() else math.nan,
        empty_slices=int((~tumour).sum()),
        empty_slice_false_positives=int((predicted_of[~tumour] > 0).sum()),
        loss=float(loss),
    )


def hausdorff95(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | None = None
) -> float:
    """95th percentile Hausdorff distance in plane, of bool (S, H, W), in pixels or, with `spacing` (z, y, x), in mm.

    Distances from each edge pixel of one mask to the nearest edge pixel of the other in the same slice, pooled over the
    slices where both masks are non-empty; the larger of the two directions' 95th percentiles (Huttenlocher et al. 1993 with
    percentile, as MONAI's `compute_hausdorff_distance`, which one slice reproduces). NaN when there is no such slice.
    An edge pixel has one of its four neighbours outside the mask, or lies on the image's border.
    """
    from scipy.ndimage import binary_erosion
    from scipy.spatial import KDTree

    both = prediction.any(axis=(1, 2)) & truth.any(axis=(1, 2))
    if not both.any():
        return math.nan
    masks = np.stack([prediction[both], truth[both]])
    rows, columns = (np.flatnonzero(masks.any(axis=axes)) for axes in ((0, 1, 3), (0, 1, 2)))
    masks = masks[
        :, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1
    ]  # the bounding box: erosion costs in its area
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)[None, None]
    edges = masks & ~binary_erosion(masks, cross)

    in_plane = np.ones(2) if spacing is None else np.asarray(spacing, np.float64)[1:]
    scale = in_plane if np.isfinite(in_plane).all() else np.ones(2)
    to_truth, to_prediction = [], []
    for predicted_edge, true_edge in zip(*edges, strict=True):
        predicted_points, true_points = (
            np.argwhere(predicted_edge) * scale,
            np.argwhere(true_edge) * scale,
        )
        to_truth.append(KDTree(true_points).query(predicted_points)[0])
        to_prediction.append(KDTree(predicted_points).query(true_points)[0])
    return max(
        float(np.percentile(np.concatenate(distances), 95))
        for distances in (to_truth, to_prediction)
    )


def summarise(scores: Sequence[PatientScore], prefix: str) -> dict[str, float]:
    """Summarise patients under the names of the contract, as `val/dice`. Every number is finite: what is undefined is left out.

    Means are over patients, except: `hd95` is the median over the patients that have one, `hd95_undefined` their
    complement's count, `empty_slice_false_positives` a share of all tumour-free slices pooled. With several foreground classes
    those of `OF_A_CLASS` follow for each, as `val/dice/oedema`. Raises DataError without a patient.
    """
    if not scores:
        raise DataError(f"{prefix}: no patient to summarise; the part of the split is empty")
    dice = [score.dice for score in scores]
    distances = [score.hd95 for score in scores if score.hd95 is not None]
    defined = [distance for distance in distances if math.isfinite(distance)]
    slice_dice = [score.dice_tumour_slices for score in scores if score.tumour_slices]
    empty_slices = sum(score.empty_slices for score in scores)
    losses = [
        score.loss for score in scores
    ]  # one NaN leaves the mean out: a mean over the others would flatter

    summary = {
        "dice": float(np.mean(dice)),
        "dice_median": float(np.median(dice)),
        "patients_missed": float(sum(is_missed(score) for score in scores)),
        "iou": float(np.mean([score.iou for score in scores])),
        "precision": float(np.mean([score.precision for score in scores])),
        "recall": float(np.mean([score.recall for score in scores])),
        "loss": float(np.mean(losses)),
    }
    if slice_dice:
        summary["dice_tumour_slices"] = float(np.mean(slice_dice))
    if empty_slices:
        summary["empty_slice_false_positives"] = (
            sum(score.empty_slice_false_positives for score in scores) / empty_slices
        )
    if defined:
        summary["hd95"] = float(np.median(defined))
    if distances:
        summary["hd95_undefined"] = float(len(distances) - len(defined))
    found = {f"{prefix}/{name}": value for name, value in summary.items() if math.isfinite(value)}
    for label in scores[0].classes:
        of_class = summarise([score.classes[label] for score in scores], prefix)
        found |= {
            f"{name}/{label}": of_class[name]
            for key in OF_A_CLASS
            if (name := f"{prefix}/{key}") in of_class
        }
    return found


def is_missed(score: PatientScore) -> bool:
    """Whether a tumour, or one of the classes that are there, was all but overlooked."""
    return (
        any(map(is_missed, score.classes.values()))
        if score.classes
        else score.tumour_pixels > 0 and score.dice < MISSED_DICE
    )


def count_missed(patients: "pd.DataFrame") -> "pd.Series":
    """`is_missed` of each row of patients.csv."""
    classes = [name.removeprefix("dice/") for name in patients.columns if name.startswith("dice/")]
    there = [(f"tumour_pixels/{label}", f"dice/{label}") for label in classes] or [
        ("tumour_pixels", "dice")
    ]
    return (
        (patients[[pixels for pixels, _ in there]].to_numpy() > 0)
        & (patients[[dice for _, dice in there]] < MISSED_DICE)
    ).any(axis=1)
