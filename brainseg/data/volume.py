"""What is known of one volume (one scan of one patient) beside its pixels, and how it is worked out from them."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

CHANNELS = ("pre-contrast", "FLAIR", "post-contrast")
CLASSES = ("background", "tumour")
UNKNOWN = (math.nan, math.nan, math.nan)  # spacing


@dataclass(frozen=True)
class Volume:
    """What the HDF5 file holds of one volume beside its pixels: S slices of C channels."""

    name: str
    slice_number: np.ndarray  # (S,) int32, rising
    shape: tuple[int, ...]  # (S, C, H, W)
    low: np.ndarray  # (C,) float32, 10th percentile of all pixels of the channel
    high: np.ndarray  # (C,) float32, 99th percentile
    copies: np.ndarray  # (C,) bool: equals FLAIR in every pixel, which stands in for a sequence that is missing
    tumour_pixels: np.ndarray  # (S,) int32, pixels of class > 0
    class_pixels: np.ndarray  # (256,) int64, pixels of each class in the volume; that of class 0 is not counted
    digest: str  # SHA-256 of name, patient, spacing where known, slice numbers, pixels and classes
    spacing: tuple[float, ...] = UNKNOWN  # mm between slices, rows and columns; NaN unknown
    patient: str = ""  # "": the name without its date

    def __post_init__(self) -> None:
        object.__setattr__(self, "patient", self.patient or patient_of(self.name))

    @property
    def constant(self) -> np.ndarray:
        """(C,) bool: scaling between `low` and `high` leaves nothing but zeros of this channel."""
        return self.low >= self.high


def patient_of(volume: str) -> str:
    """The volume's name without its date: eight digits, so that `scan_001` and `scan_002` stay two patients."""
    return re.sub(r"_[0-9]{8}$", "", volume)


Slice = tuple[int, np.ndarray, np.ndarray]  # number, image (C, H, W) uint8, class index (H, W) uint8


def main_channel(channels: Sequence[str]) -> int:
    """Which channel is shown in pictures, and taken to be given where only one is: FLAIR, on which the masks are drawn; else the first."""
    return list(channels).index("FLAIR") if "FLAIR" in channels else 0


def describe(
    name: str,
    slices: Iterable[Slice],
    channels: Sequence[str] = CHANNELS,
    spacing: Sequence[float] = UNKNOWN,
    patient: str = "",
) -> Volume:
    """Work out a `Volume` from its slices, with one of them in memory at a time; for arrays: `zip(numbers, images, masks[:, 0])`."""
    content = _begin(name, spacing, patient)
    flair = channels.index("FLAIR") if "FLAIR" in channels else None
    histogram, copies = np.zeros((len(channels), 256), np.int64), np.full(len(channels), flair is not None)
    numbers, tumour_pixels, size = [], [], (0, 0)
    class_pixels = np.zeros(256, np.int64)
    for number, image, mask in slices:
        _add(content, number, image, mask)
        histogram += [np.bincount(channel.ravel(), minlength=256) for channel in image]
        copies &= [index != flair and np.array_equal(channel, image[flair]) for index, channel in enumerate(image)]
        numbers.append(number)
        tumour_pixels.append(np.count_nonzero(mask))
        if mask.max() > 1:
            class_pixels[1:] += np.bincount(mask.ravel(), minlength=256)[1:]
        else:  # ten times as fast
            class_pixels[1] += tumour_pixels[-1]
        size = image.shape[1:]
    return Volume(
        name=name,
        slice_number=np.array(numbers, np.int32),
        shape=(len(numbers), len(channels), *size),
        low=np.array([percentile(counts, 0.10) for counts in histogram], np.float32),
        high=np.array([percentile(counts, 0.99) for counts in histogram], np.float32),
        copies=copies,
        tumour_pixels=np.array(tumour_pixels, np.int32),
        class_pixels=class_pixels,
        digest=content.hexdigest(),
        spacing=tuple(map(float, spacing)),
        patient=patient,
    )


def digest(name: str, slices: Iterable[Slice], spacing: Sequence[float] = UNKNOWN, patient: str = "") -> str:
    """Return the SHA-256 that `describe` computes, without the rest."""
    content = _begin(name, spacing, patient)
    for number, image, mask in slices:
        _add(content, number, image, mask)
    return content.hexdigest()


def _begin(name: str, spacing: Sequence[float], patient: str) -> "hashlib._Hash":
    known = np.asarray(spacing, np.float32)  # as it is stored
    content = hashlib.sha256(name.encode() + (b"" if np.isnan(known).all() else known.tobytes()))
    # A patient that follows from the volume's name says nothing new, so fingerprints of older files stay valid.
    if patient and patient != patient_of(name):
        content.update(b"\npatient " + patient.encode())
    return content


def _add(content: "hashlib._Hash", number: int, image: np.ndarray, mask: np.ndarray) -> None:
    content.update(f"\n{number} {image.shape}\n".encode())
    content.update(np.ascontiguousarray(image).data)
    content.update(np.ascontiguousarray(mask).data)


def percentile(histogram: np.ndarray, share: float) -> float:
    """`np.percentile(values, 100 * share)` from how often each value 0, 1, 2, ... occurs: 20 times as fast, and equal."""
    position = (histogram.sum() - 1) * share
    below = int(position)
    lower, upper = np.searchsorted(histogram.cumsum(), [below, min(below + 1, histogram.sum() - 1)], side="right")
    return float(lower + (upper - lower) * (position - below))


def fingerprint(digests: Iterable[str], channels: Sequence[str] = CHANNELS, classes: Sequence[str] = CLASSES) -> str:
    """SHA-256 of volumes sorted by name: of the content alone, not of paths or dates; names other than the public set's count."""
    names = [list(channels), list(classes)]
    named = "" if names == [list(CHANNELS), list(CLASSES)] else json.dumps(names)
    return hashlib.sha256(("".join(digests) + named).encode()).hexdigest()
