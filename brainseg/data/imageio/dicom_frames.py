"""Frames of a DICOM file, each with its position, spacing, rescaling and acquisition.

A file of one slice gives one frame. An enhanced multi-frame object gives one frame per item of its
functional groups, whose values may differ from frame to frame. All other modules use the same
`Frame` for both.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset

from brainseg.core.errors import DataError

# Attributes that may distinguish the volumes of one series, in the order in which they are tried.
# Each has a label, a unit, a keyword in files of one slice, and a sequence and a keyword in
# enhanced objects.
ATTRIBUTES = (
    ("stack", "", "", "FrameContentSequence", "StackID"),
    ("image type", "", "ImageType", "MRImageFrameTypeSequence", "FrameType"),
    ("component", "", "ComplexImageComponent", "MRImageFrameTypeSequence", "ComplexImageComponent"),
    ("echo time", " ms", "EchoTime", "MREchoSequence", "EffectiveEchoTime"),
    ("echo", "", "EchoNumbers", "", ""),
    ("inversion time", " ms", "InversionTime", "MRModifierSequence", "InversionTimes"),
    ("flip angle", " degrees", "FlipAngle", "MRTimingAndRelatedParametersSequence", "FlipAngle"),
    ("b-value", " s/mm2", "DiffusionBValue", "MRDiffusionSequence", "DiffusionBValue"),
    (
        "gradient",
        "",
        "DiffusionGradientOrientation",
        "MRDiffusionSequence",
        "DiffusionGradientOrientation",
    ),
    (
        "time point",
        "",
        "TemporalPositionIdentifier",
        "FrameContentSequence",
        "TemporalPositionIndex",
    ),
    (
        "trigger delay",
        " ms",
        "TriggerTime",
        "CardiacSynchronizationSequence",
        "NominalCardiacTriggerDelayTime",
    ),
    ("acquisition", "", "AcquisitionNumber", "FrameContentSequence", "FrameAcquisitionNumber"),
)
# Sequences of a legacy converted object for the attributes that have no functional group.
CONVERTED = (
    "UnassignedPerFrameConvertedAttributesSequence",
    "UnassignedSharedConvertedAttributesSequence",
)
MEASURES, VALUES = "PixelMeasuresSequence", "PixelValueTransformationSequence"
POSITION, ORIENTATION = "ImagePositionPatient", "ImageOrientationPatient"


@dataclass(frozen=True, eq=False)
class Frame:
    """Header of one two-dimensional image. Positions are DICOM's LPS coordinates in mm."""

    path: Path
    # Index of the frame in the file, from 0.
    index: int
    # True if an item of functional groups describes the frame.
    is_multiframe: bool
    # Pixels along (i, j), which are the columns and the rows of the image.
    shape: tuple[int, int]
    # Centre of the first pixel, (3,).
    position: tuple[float, ...] | None
    # Unit vectors along i and along j, (6,).
    orientation: tuple[float, ...] | None
    # Distances in mm between neighbours along i and along j, (2,).
    spacing: tuple[float, ...] | None
    # Thickness of the slice in mm.
    thickness: float | None
    slope: float
    intercept: float
    # Values as text by the labels of ATTRIBUTES.
    attributes: Mapping[str, str]

    @property
    def is_rescaled(self) -> bool:
        """Return True if the values differ from the stored values."""
        return (self.slope, self.intercept) != (1.0, 0.0)


def read_frames(path: Path, dataset: Dataset, count: int) -> list[Frame]:
    """Return the `count` frames of a parsed header. Raises DataError naming the attribute."""
    shared = _items(dataset, "SharedFunctionalGroupsSequence")[:1]
    by_frame = _items(dataset, "PerFrameFunctionalGroupsSequence")
    if not shared and not by_frame:
        if count > 1:
            raise DataError(f"{path}: {count} frames, and the header gives no frame a position")
        return [_frame(path, 0, dataset, [])]
    if len(by_frame) != count:
        groups = f"the header describes {len(by_frame)} frames, and the file holds {count}"
        raise DataError(f"{path}: {groups}")
    return [_frame(path, index, dataset, [item, *shared]) for index, item in enumerate(by_frame)]


def read_numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return the `count` finite numbers of an attribute, None if it is empty. Raises DataError."""
    try:
        value = dataset.get(keyword)
        if value is None or value == "":
            return None
        parts = [value] if _is_single(value) else list(value)
        values = tuple(map(float, parts if any(part != "" for part in parts) else []))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise DataError(f"{keyword} is not a number") from error
    if not values:
        return None
    if len(values) != count or not all(map(math.isfinite, values)):
        raise DataError(f"{keyword} must be {count} finite numbers")
    return values


def read_text(dataset: Dataset, keyword: str) -> str:
    """Return an attribute as text without surrounding blanks, "" if it is missing.

    Several values are joined as a/b.
    """
    value = dataset.get(keyword)
    if value is None:
        return ""
    return (str(value) if _is_single(value) else "/".join(map(str, value))).strip(" \0")


def _frame(path: Path, index: int, dataset: Dataset, groups: Sequence[Dataset]) -> Frame:
    """Return one frame. In `groups`, the frame's own groups come before the shared groups."""
    try:
        spacing = read_numbers(_holder(dataset, groups, MEASURES), "PixelSpacing", 2)
        is_usable = spacing is not None and min(spacing) > 0
        thickness = read_numbers(_holder(dataset, groups, MEASURES), "SliceThickness", 1)
        slope = read_numbers(_holder(dataset, groups, VALUES), "RescaleSlope", 1) or (1.0,)
        if slope[0] == 0:
            raise DataError("RescaleSlope is 0, which makes all values equal")
        return Frame(
            path=path,
            index=index,
            is_multiframe=bool(groups),
            shape=(int(dataset.Columns), int(dataset.Rows)),
            position=read_numbers(_holder(dataset, groups, "PlanePositionSequence"), POSITION, 3),
            orientation=_orientation(_holder(dataset, groups, "PlaneOrientationSequence")),
            # PixelSpacing begins with the distance between rows, which is the step along j.
            spacing=spacing[::-1] if spacing is not None and is_usable else None,
            thickness=thickness[0] if thickness and thickness[0] > 0 else None,
            slope=slope[0],
            intercept=(
                read_numbers(_holder(dataset, groups, VALUES), "RescaleIntercept", 1) or (0.0,)
            )[0],
            attributes=_attributes(dataset, groups),
        )
    except DataError as error:
        frame = f", frame {index + 1}" if groups else ""
        raise DataError(f"{path}{frame}: {error}") from error


def _orientation(holder: Dataset) -> tuple[float, ...] | None:
    """Return the directions along i and j with unit length, None if absent. Raises DataError."""
    directions = read_numbers(holder, ORIENTATION, 6)
    if directions is None:
        return None
    along_i, along_j = directions[:3], directions[3:]
    lengths = math.hypot(*along_i), math.hypot(*along_j)
    product = sum(a * b for a, b in zip(along_i, along_j, strict=True))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(product)) > 0.01:
        raise DataError(f"{ORIENTATION} must be two perpendicular directions of length 1")
    return tuple(a / lengths[0] for a in along_i) + tuple(b / lengths[1] for b in along_j)


def _attributes(dataset: Dataset, groups: Sequence[Dataset]) -> Mapping[str, str]:
    """Return the attributes that may distinguish this frame from other frames at its place."""
    # A converted object repeats the attributes of files of one slice, under the same keywords.
    converted = [item for group in groups for name in CONVERTED for item in _items(group, name)[:1]]
    values = {}
    for label, unit, keyword, sequence, enhanced_keyword in ATTRIBUTES:
        value = ""
        for item in [item for group in groups if sequence for item in _items(group, sequence)[:1]]:
            value = value or read_text(item, enhanced_keyword)
        if label == "gradient" and not value:
            value = _gradient(groups)
        for item in [*converted, *([] if groups else [dataset])]:
            value = value or (read_text(item, keyword) if keyword else "")
        if value:
            values[label] = _short_text(value) + unit
    return values


def _gradient(groups: Sequence[Dataset]) -> str:
    """Return the direction of the diffusion gradient, which lies one sequence deeper."""
    for group in groups:
        for item in _items(group, "MRDiffusionSequence")[:1]:
            for direction in _items(item, "DiffusionGradientDirectionSequence")[:1]:
                return read_text(direction, "DiffusionGradientOrientation")
    return ""


def _holder(dataset: Dataset, groups: Sequence[Dataset], sequence: str) -> Dataset:
    """Return the item that holds an attribute, in the functional groups or in the header."""
    for group in groups:
        if items := _items(group, sequence):
            return items[0]
    return Dataset() if groups else dataset


def _items(dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    """Return the items of a sequence, none if the dataset does not contain it."""
    return dataset.get(keyword) or []


def _is_single(value: object) -> bool:
    """Return True for a single value, False for several values of one attribute."""
    return isinstance(value, str | bytes | int | float) or not isinstance(value, Sequence)


def _short_text(value: str) -> str:
    """Return a printable text of at most 64 characters, without trailing zeros of decimals."""
    with suppress(ValueError):
        value = f"{float(value):.6g}"
    value = value if value.isprintable() else ascii(value)
    return value[:64]
