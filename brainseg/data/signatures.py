"""Signatures of volumes, which identify equal scans in two files without reading pixels."""

import hashlib
from collections.abc import Collection

import numpy as np

from brainseg.data.store import SliceStore

# Hexadecimal digits of each half. 64 bits suffice for cohorts of thousands of patients.
LENGTH = 16
# Volumes with fewer tumour slices may have equal numbers of tumour pixels by chance.
TUMOUR_SLICES = 3


def signatures_of(store: SliceStore) -> dict[str, list[str]]:
    """Return the signatures of each patient's volumes, by the patient's name."""
    signatures: dict[str, list[str]] = {}
    for index, patient in enumerate(store.patients):
        signatures.setdefault(patient, []).append(signature(store, index))
    return signatures


def signature(store: SliceStore, index: int) -> str:
    """Return the signature of the volume `index`, two digests of images and masks with a dash.

    The digest of the images covers their size, their number and the 10th and 99th percentile of
    each sequence. The digest of the masks covers the number of tumour pixels of each slice. All of
    these are in memory, so that a signature costs microseconds.
    """
    start, stop = int(store.first_slice[index]), int(store.first_slice[index + 1])
    size = f"{stop - start} {store.shape[1:]} ".encode()
    images = hashlib.sha256(size + store.low[index].tobytes() + store.high[index].tobytes())
    masks = hashlib.sha256(store.tumour_pixels[start:stop].tobytes())
    return f"{images.hexdigest()[:LENGTH]}-{masks.hexdigest()[:LENGTH]}"


def is_same_scan(first: str, second: str, has_masks: bool = True) -> bool:
    """Return True if two signatures belong to the same scan. Without masks only images count."""
    return first == second if has_masks else first.split("-")[0] == second.split("-")[0]


def is_scan_of(store: SliceStore, index: int, signatures: Collection[str]) -> bool:
    """Return True if the volume `index` has the images or the masks of one of the signatures.

    Equal masks identify a scan that was prepared with other sequences, unless the volume has too
    few slices with tumour.
    """
    if not signatures:
        return False
    images, masks = signature(store, index).split("-")
    start, stop = int(store.first_slice[index]), int(store.first_slice[index + 1])
    has_masks = np.count_nonzero(store.tumour_pixels[start:stop]) >= TUMOUR_SLICES
    parts = [stored.partition("-") for stored in signatures]
    return any(
        images == stored_images or (has_masks and masks == stored_masks)
        for stored_images, _, stored_masks in parts
    )
