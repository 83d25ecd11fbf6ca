"""Scores of a patient's whole volume and of each class, and their summary over patients.

The main metric is Dice over a volume, because a reader of the scan sees the volume. An average over
slices would be dominated by empty slices. Definitions and names follow docs/contracts.md, Metrics.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from brainseg.core.errors import DataError
from brainseg.evaluation.surfaces import score_surfaces

if TYPE_CHECKING:
    import pandas as pd

# A patient with a tumour and a Dice below this counts as missed.
MISSED_DICE = 0.05
# The metrics that are also summarised for each class.
CLASS_METRICS = (
    "dice",
    "iou",
    "precision",
    "recall",
    "patients_missed",
    "hd95",
    "hd95_undefined",
    "nsd",
    "hd95_3d",
    "volume_error_ml",
)


@dataclass(frozen=True)
class PatientScore:
    """The scores of one volume.

    Counts are in slices and pixels, ratios lie in [0, 1], and NaN means undefined. With several
    foreground classes the counts and the volume error cover all of them together. `dice iou
    precision recall hd95 nsd hd95_3d` are then means over the classes, and undefined if a class is
    undefined. `dice_tumour_slices` is the mean over the classes that the truth contains. None means
    not measured.
    """

    # The name of the volume's folder.
    patient: str
    slices: int
    # Slices with tumour in the truth.
    tumour_slices: int
    # Pixels with tumour in the truth.
    tumour_pixels: int
    predicted_pixels: int
    dice: float
    iou: float
    precision: float
    recall: float
    # In plane, in pixels or mm. NaN if both masks are non-empty in no slice.
    hd95: float | None
    # The mean over the tumour slices, or NaN without a tumour slice.
    dice_tumour_slices: float
    # Slices without tumour in the truth.
    empty_slices: int
    # Empty slices with a predicted pixel.
    empty_slice_false_positives: int
    # The criterion on this volume, or NaN if it was not computed.
    loss: float
    # Normalised surface Dice at 2 mm, or at 2 pixels in plane if the spacing is unknown.
    nsd: float | None = None
    # HD95 in 3-D, in mm. NaN for an empty mask or an unknown spacing.
    hd95_3d: float | None = None
    # Predicted minus true volume in millilitres. NaN for an unknown spacing.
    volume_error_ml: float | None = None
    # The scores of each foreground class if there are several, else empty.
    classes: Mapping[str, "PatientScore"] = field(default_factory=dict, hash=False)


def score_patient(
    name: str,
    prediction: Any,
    truth: Any,
    spacing: Sequence[float] | None = None,
    loss: float = math.nan,
    with_geometry: bool = True,
    classes: Sequence[str] = (),
) -> PatientScore:
    """Return the scores of one volume.

    `prediction` and `truth` are (S, H, W), bool or class index, numpy arrays or CPU tensors.
    `classes` names the class indices, background first. With fewer than two foreground classes
    every index above 0 counts as tumour. `spacing` is (z, y, x) in mm. None, or a NaN in y or x,
    gives distances in pixels. A caller that summarises the scores therefore passes a spacing for
    all volumes or for none. `with_geometry` measures surface distances and the volume error, which
    takes longer than the other scores. Raises DataError when the shapes differ.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if len(classes) <= 2:
        return _score(name, prediction > 0, truth > 0, spacing, loss, with_geometry)
    class_scores = {
        label: _score(name, prediction == index, truth == index, spacing, math.nan, with_geometry)
        for index, label in enumerate(classes)
        if index
    }

    def mean(metric: str) -> float:
        return float(np.mean([getattr(score, metric) for score in class_scores.values()]))

    # A class that the truth lacks has no tumour slice, so its Dice over them is undefined.
    slice_dice = [
        score.dice_tumour_slices for score in class_scores.values() if score.tumour_slices
    ]
    # Distances are means over the classes. Measuring those of the union would be wasted time.
    foreground = _score(name, prediction > 0, truth > 0, spacing, loss, with_geometry=False)
    return replace(
        foreground,
        dice=mean("dice"),
        iou=mean("iou"),
        precision=mean("precision"),
        recall=mean("recall"),
        hd95=mean("hd95") if with_geometry else None,
        nsd=mean("nsd") if with_geometry else None,
        hd95_3d=mean("hd95_3d") if with_geometry else None,
        volume_error_ml=_volume_error(foreground, spacing) if with_geometry else None,
        dice_tumour_slices=float(np.mean(slice_dice)) if slice_dice else math.nan,
        classes=class_scores,
    )


def _score(
    name: str,
    predicted: np.ndarray,
    true: np.ndarray,
    spacing: Sequence[float] | None,
    loss: float,
    with_geometry: bool,
) -> PatientScore:
    """Return the scores of a single class, from bool (S, H, W) of prediction and truth."""
    if predicted.ndim != 3 or predicted.shape != true.shape or not len(true):
        raise DataError(
            f"{name}: prediction {predicted.shape} and truth {true.shape} must have the same shape "
            "(slices, height, width) with at least one slice"
        )
    # Pixels of each slice, int64 (S,).
    slice_overlap, slice_predicted, slice_true = (
        np.count_nonzero(mask, axis=(1, 2)) for mask in (predicted & true, predicted, true)
    )
    overlap, predicted_pixels, true_pixels = (
        int(slice_overlap.sum()),
        int(slice_predicted.sum()),
        int(slice_true.sum()),
    )
    both_empty = predicted_pixels + true_pixels == 0

    def ratio(numerator: int, denominator: int) -> float:
        return 1.0 if both_empty else numerator / denominator if denominator else 0.0

    has_tumour = slice_true > 0
    # The denominator can't be 0, because every slice selected here contains tumour.
    slice_dice = 2 * slice_overlap[has_tumour] / (slice_predicted + slice_true)[has_tumour]
    score = PatientScore(
        patient=name,
        slices=len(true),
        tumour_slices=int(has_tumour.sum()),
        tumour_pixels=true_pixels,
        predicted_pixels=predicted_pixels,
        dice=ratio(2 * overlap, predicted_pixels + true_pixels),
        iou=ratio(overlap, predicted_pixels + true_pixels - overlap),
        precision=ratio(overlap, predicted_pixels),
        recall=ratio(overlap, true_pixels),
        hd95=None,
        dice_tumour_slices=float(slice_dice.mean()) if has_tumour.any() else math.nan,
        empty_slices=int((~has_tumour).sum()),
        empty_slice_false_positives=int((slice_predicted[~has_tumour] > 0).sum()),
        loss=float(loss),
    )
    if not with_geometry:
        return score
    surfaces = score_surfaces(predicted, true, spacing)
    return replace(score, **surfaces._asdict(), volume_error_ml=_volume_error(score, spacing))


def _volume_error(score: PatientScore, spacing: Sequence[float] | None) -> float:
    """Return the predicted minus the true volume in millilitres, or NaN for an unknown spacing."""
    if spacing is None:
        return math.nan
    return (score.predicted_pixels - score.tumour_pixels) * math.prod(spacing) / 1000


def summarise(scores: Sequence[PatientScore], prefix: str) -> dict[str, float]:
    """Return the metrics of several patients under the names of docs/contracts.md.

    A name is the prefix and the metric, such as `val/dice`. Every value is finite, because
    undefined metrics are left out. Values are means over patients, except for the names with
    `median`, for counts, and for these metrics. `hd95` and `hd95_3d` are medians over the patients
    where they are defined, and `hd95_undefined` counts those without `hd95`. `volume_error_ml` is
    the mean of the absolute errors. `empty_slice_false_positives` is a share of the
    tumour-free slices of all patients. With several foreground classes the metrics of
    `CLASS_METRICS` follow for each class, such as `val/dice/oedema`. Raises DataError without a
    patient.
    """
    if not scores:
        raise DataError(
            f"{prefix}: no patient to summarise, because this part of the split is empty"
        )
    dice = [score.dice for score in scores]
    distances = [score.hd95 for score in scores if score.hd95 is not None]
    defined = _keep_finite(distances)
    slice_dice = [score.dice_tumour_slices for score in scores if score.tumour_slices]
    empty_slices = sum(score.empty_slices for score in scores)
    # A single NaN leaves the mean loss out. A mean over the other patients would be too good.
    losses = [score.loss for score in scores]

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
    if surface_dice := [score.nsd for score in scores if score.nsd is not None]:
        summary["nsd"] = float(np.mean(surface_dice))
    if defined_3d := _keep_finite(score.hd95_3d for score in scores):
        summary["hd95_3d"] = float(np.median(defined_3d))
    if volume_errors := _keep_finite(score.volume_error_ml for score in scores):
        summary["volume_error_ml"] = float(np.mean(np.abs(volume_errors)))
    metrics = {f"{prefix}/{name}": value for name, value in summary.items() if math.isfinite(value)}
    for label in scores[0].classes:
        class_metrics = summarise([score.classes[label] for score in scores], prefix)
        metrics |= {
            f"{name}/{label}": class_metrics[name]
            for key in CLASS_METRICS
            if (name := f"{prefix}/{key}") in class_metrics
        }
    return metrics


def _keep_finite(values: Iterable[float | None]) -> list[float]:
    """Return the values that are measured and defined."""
    return [value for value in values if value is not None and math.isfinite(value)]


def is_missed(score: PatientScore) -> bool:
    """Return True if a tumour, or any class in the truth, has a Dice below `MISSED_DICE`."""
    return (
        any(map(is_missed, score.classes.values()))
        if score.classes
        else score.tumour_pixels > 0 and score.dice < MISSED_DICE
    )


def count_missed(patients: "pd.DataFrame") -> "pd.Series":
    """Return for each row of patients.csv whether that patient is missed, as in `is_missed`."""
    classes = [name.removeprefix("dice/") for name in patients.columns if name.startswith("dice/")]
    pixel_columns = [f"tumour_pixels/{label}" for label in classes] or ["tumour_pixels"]
    dice_columns = [f"dice/{label}" for label in classes] or ["dice"]
    has_tumour = patients[pixel_columns].to_numpy() > 0
    return (has_tumour & (patients[dice_columns] < MISSED_DICE)).any(axis=1)
