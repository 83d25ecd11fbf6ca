"""Conversion of the values of a mask to class indices, and reports of values without a class."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from brainseg.core.errors import DataError, check
from brainseg.data.readers.base import NAME
from brainseg.data.volume import CLASSES

BACKGROUND = CLASSES[0]
MOST_CLASSES = 256
# Most values in a message.
SHOWN = 6
# Values below this limit are looked up in a table.
LARGEST_TABLE = 2**20
# Programs such as nibabel write a float mask as scaled integers, so a 1 may be read as 0.9999999 or
# 0.9997.
ROUNDING = 1e-3


class Labels(NamedTuple):
    """Names of the classes, background first, and the class index of each value of a mask.

    `values` is None for masks of one class, which are stored as 0 and 1 or as 0 and 255.
    """

    classes: tuple[str, ...] = CLASSES
    values: Mapping[int, int] | None = None


def parse_classes(classes: Mapping[str, Any]) -> Labels:
    """Return the labels of `classes.NAME=VALUE` or `classes.NAME=[VALUE,...]`.

    Values of `classes.background` are background, as 0 always is. Raises RequestError.
    """
    names = [BACKGROUND, *[name for name in classes if name != BACKGROUND]]
    values: dict[int, int] = {0: 0}
    for name, setting_value in classes.items():
        setting = f"classes.{name}"
        check(
            NAME.fullmatch(name) is not None,
            setting,
            setting_value,
            "a name has letters, digits, space, _ . -",
        )
        numbers = setting_value if isinstance(setting_value, list) else [setting_value]
        is_valid = bool(numbers) and all(
            type(number) is int and 0 <= number < 2**31 for number in numbers
        )
        check(
            is_valid,
            setting,
            setting_value,
            "must be the value of this class in the masks, or a list",
            "as [1,2,4]",
        )
        for number in numbers:
            index = names.index(name)
            owner = values.setdefault(number, index)
            rule = f"value {number} is already {names[owner]}"
            check(owner == index, setting, setting_value, rule, "each value belongs to one class")
    check(
        1 < len(names) <= MOST_CLASSES,
        "classes",
        list(classes),
        "must name at least one class besides background",
    )
    return Labels(tuple(names), values)


def map_labels(mask: np.ndarray, labels: Labels) -> np.ndarray:
    """Return the class index uint8 of each value of a mask.

    Values within `ROUNDING` of a whole number stand for that number. Raises DataError listing
    other fractions, and values of no class.
    """
    integers = mask if mask.dtype.kind in "bui" else np.rint(mask).astype(np.int64)
    if integers is not mask and (fractions := mask[np.abs(mask - integers) > ROUNDING]).size:
        raise DataError(_describe_fractions(fractions))
    # A histogram and a table are 20 times as fast as np.unique, which sorts.
    is_small = integers.min() >= 0 and integers.max() < LARGEST_TABLE
    histogram = np.bincount(integers.ravel()) if is_small else None
    present, counts = (
        np.unique(integers, return_counts=True) if histogram is None else _nonzero(histogram)
    )
    values = labels.values
    if values is None:
        values = {0: 0, 255: 1} if set(present.tolist()) <= {0, 255} else {0: 0, 1: 1}
    if not set(present.tolist()) <= set(values):
        raise DataError(_describe_unknown_values(present.tolist(), counts.tolist(), labels))
    indices = np.array([values[value] for value in present.tolist()], np.uint8)
    if not is_small:
        return indices[np.searchsorted(present, integers)]
    table = np.zeros(present[-1] + 1, np.uint8)
    table[present] = indices
    return table[integers.astype(np.uint8) if integers.dtype == bool else integers]


def _nonzero(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values that occur, in rising order, and their counts."""
    values = np.flatnonzero(histogram)
    return values, histogram[values]


def _describe_fractions(values: np.ndarray) -> str:
    """Return a message on values of a mask that are not integers."""
    examples = ", ".join(f"{value:g}" for value in np.unique(values)[:SHOWN].tolist())
    rule = f"{values.size:,} mask values are no whole numbers, such as {examples}"
    return f"{rule}; interpolation has blurred the mask, resample it by nearest neighbour"


def _describe_unknown_values(present: Sequence[int], counts: Sequence[int], labels: Labels) -> str:
    """Return a message on values without a class, the allowed values, and the setting to change.

    Without `classes`, all values except 0 are listed, because all of them need a class.
    """
    allowed_values = {0} if labels.values is None else labels.values
    unknown = [
        (value, count)
        for value, count in zip(present, counts, strict=True)
        if value not in allowed_values
    ]
    entries = ", ".join(f"{value} ({count:,} pixels)" for value, count in unknown[:SHOWN])
    entries += f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
    example = ",".join(str(value) for value, _ in unknown[:SHOWN])
    if labels.values is None:
        rule = "without classes, a mask holds 0 and 1, or 0 and 255"
        return f"mask values {entries}: {rule}; say which are tumour, as classes.tumour=[{example}]"
    allowed = ", ".join(
        f"{value} {labels.classes[index]}" for value, index in sorted(labels.values.items())
    )
    remedy = (
        f"name them, as classes.NAME=[{example}], or ignore them by classes.background=[{example}]"
    )
    return f"mask values {entries} belong to no class; known are {allowed}; {remedy}"
