"""Signatures of volumes: whether two files hold the same scan of a patient, without reading a pixel."""

import hashlib

from brainseg.data.store import Store

LENGTH = 16  # hexadecimal digits of each half: 64 bits, for cohorts of thousands of patients


def signatures_of(store: Store) -> dict[str, list[str]]:
    """Return the signatures of each patient's volumes, by the patient's name."""
    found: dict[str, list[str]] = {}
    for index, patient in enumerate(store.patients):
        found.setdefault(patient, []).append(signature(store, index))
    return found


def signature(store: Store, index: int) -> str:
    """Return the signature of a volume by its index: a digest of its images, a dash, a digest of its masks.

    The images enter by their size, their number and each sequence's 10th and 99th percentile, the masks by
    the tumour pixels of each slice. These lie in memory, so that a signature costs microseconds.
    """
    start, stop = int(store.first_slice[index]), int(store.first_slice[index + 1])
    size = f"{stop - start} {store.shape[1:]} ".encode()
    images = hashlib.sha256(size + store.low[index].tobytes() + store.high[index].tobytes())
    masks = hashlib.sha256(store.tumour_pixels[start:stop].tobytes())
    return f"{images.hexdigest()[:LENGTH]}-{masks.hexdigest()[:LENGTH]}"


def is_same_scan(first: str, second: str, has_masks: bool = True) -> bool:
    """Return True if two signatures are of the same scan; without masks its images decide."""
    return first == second if has_masks else first.split("-")[0] == second.split("-")[0]
