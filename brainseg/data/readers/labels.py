"""Class indices from the values of a mask file: which values a class has, and a report of those that no class has."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from brainseg.data.readers.base import NAME
from brainseg.data.volume import CLASSES
from brainseg.errors import DataError, check

BACKGROUND = CLASSES[0]
MOST_CLASSES = 256
SHOWN = 6  # values in a message


class Labels(NamedTuple):
    """Names of the classes, background first, and the class index of each value that a mask may hold.

    `values` None stands for a mask of one class, stored as 0 and 1 or as 0 and 255.
    """

    classes: tuple[str, ...] = CLASSES
    values: Mapping[int, int] | None = None


def parse_classes(classes: Mapping[str, Any]) -> Labels:
    """Return what `classes.NAME=VALUE` or `classes.NAME=[VALUE,...]` say. Raises RequestError.

    Values of `classes.background` belong to no tumour, as 0 always does.
    """
    names = [BACKGROUND, *[name for name in classes if name != BACKGROUND]]
    values: dict[int, int] = {0: 0}
    for name, listed in classes.items():
        setting = f"classes.{name}"
        check(NAME.fullmatch(name) is not None, setting, listed, "a name has letters, digits, space, _ . -")
        numbers = listed if isinstance(listed, list) else [listed]
        whole = bool(numbers) and all(type(number) is int and 0 <= number < 2**31 for number in numbers)
        check(whole, setting, listed, "must be the value of this class in the masks, or a list", "as [1,2,4]")
        for number in numbers:
            index = names.index(name)
            taken = values.setdefault(number, index)
            rule = f"value {number} is already {names[taken]}"
            check(taken == index, setting, listed, rule, "each value belongs to one class")
    check(1 < len(names) <= MOST_CLASSES, "classes", list(classes), "must name at least one class besides background")
    return Labels(tuple(names), values)


def map_labels(mask: np.ndarray, labels: Labels) -> np.ndarray:
    """Return the class index uint8 of each value of a mask. Raises DataError listing values of no class."""
    found, inverse, counts = np.unique(mask, return_inverse=True, return_counts=True)
    values = labels.values
    if values is None:
        values = {0: 0, 255: 1} if set(found.tolist()) <= {0, 255} else {0: 0, 1: 1}
    strange = [(value, n) for value, n in zip(found.tolist(), counts.tolist(), strict=True) if value not in values]
    if strange:
        raise DataError(_describe_strange(strange, labels))
    indices = np.array([values[value] for value in found.tolist()], np.uint8)
    return indices[inverse].reshape(mask.shape)


def _describe_strange(strange: Sequence[tuple[float, int]], labels: Labels) -> str:
    """Return values of no class with their counts, what is allowed, and the setting to change."""
    listed = ", ".join(f"{value:g} ({count:,} pixels)" for value, count in strange[:SHOWN])
    listed += f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
    if any(value != int(value) for value, _ in strange):
        return f"mask values {listed} are no whole numbers; interpolation has blurred the mask, save it anew"
    if labels.values is None:
        allowed = "without classes, a mask holds 0 and 1, or 0 and 255"
    else:
        names = zip(labels.values.items(), strict=False)
        allowed = "known are " + ", ".join(f"{value} {labels.classes[index]}" for (value, index), in names)
    example = ",".join(f"{value:g}" for value, _ in strange[:SHOWN])
    remedy = f"name them, as classes.tumour=[{example}], or ignore them by classes.background=[{example}]"
    return f"mask values {listed} belong to no class; {allowed}; {remedy}"
