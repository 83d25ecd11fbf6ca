"""Plausibility of masks, since scores without tumour or with inverted masks mean nothing.

Scores on such a cohort are close to 1.
"""

from collections.abc import Sequence

import numpy as np

from brainseg.core.errors import check
from brainseg.data.fault_report import enumerate_names
from brainseg.data.split import PARTS, Split
from brainseg.data.store import Store
from brainseg.data.volume import Volume

REMEDY = "check the masks in the source, or set allow_empty=true"


def find_doubts(volumes: Sequence[Volume], classes: Sequence[str]) -> list[str]:
    """Return a warning for each property of the masks that makes scores meaningless."""
    tumour = " or ".join(classes[1:])
    empty = [volume.name for volume in volumes if not volume.tumour_pixels.any()]
    covered = [volume.name for volume in volumes if 2 * volume.covered_slices > volume.shape[0]]
    warnings = []
    if len(empty) == len(volumes):
        warnings.append(
            f"no mask of any volume has a pixel of {tumour}: a network that predicts "
            "nothing would score a Dice of 1.000"
        )
    elif empty:
        warnings.append(
            f"no {tumour} in {len(empty)} of {len(volumes)} volumes: {enumerate_names(empty)}"
        )
    if covered:
        rule = (
            f"{tumour} covers more than half of the head in most slices, so the masks look "
            "inverted or mark the head"
        )
        warnings.append(
            f"{rule}, in {len(covered)} of {len(volumes)} volumes: {enumerate_names(covered)}"
        )
    if all((volume.tumour_pixels > 0).all() for volume in volumes):
        rule = f"every slice of every volume has {tumour}"
        warnings.append(
            f"{rule}: false positives on slices without it cannot be counted, or the masks are "
            f"not of {tumour}"
        )
    return warnings


def check_parts(store: Store, split: Split) -> None:
    """Raise RequestError if a part of the split has no tumour, or masks that look inverted."""
    tumour, pixels = " or ".join(store.classes[1:]), store.shape[2] * store.shape[3]
    patient_of_row = np.repeat(store.patients, np.diff(store.first_slice))
    for part in PARTS:
        patients = getattr(split, part)
        counts = store.tumour_pixels[np.isin(patient_of_row, patients)]
        if not len(counts):
            continue
        rule = (
            f"none of the {len(patients)} {part} patients has a pixel of {tumour}, so its "
            "Dice would mean nothing"
        )
        check(bool(counts.any()), "data.path", store.path, rule, REMEDY)
        rule = (
            f"{tumour} covers more than half of most slices of the {part} patients, so the "
            "masks look inverted"
        )
        check(bool(np.mean(2 * counts > pixels) <= 0.5), "data.path", store.path, rule, REMEDY)
