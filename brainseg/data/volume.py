"""What is known of one volume (one scan of one patient) beside its pixels, and how it is worked out from them."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
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
    copies: (
        np.ndarray
    )  # (C,) bool: equals FLAIR in every pixel, which stands in for a sequence that is missing
    tumour_pixels: np.ndarray  # (S,) int32, pixels of class > 0
    class_pixels: (
        np.ndarray
    )  # (256,) int64, pixels of each class in the volume; that of class 0 is not counted
    digest: str  # SHA-256 of name, spacing where known, slice numbers, pixels and classes
    spacing: tuple[float, ...] = UNKNOWN  # mm between slices, rows and columns; NaN unknown
    covered_slices: int = 0  # slices on which classes above 0 cover more than half of the head
    slice_hashes: frozenset[bytes] = (
        frozenset()
    )  # of each slice of the main channel that is not constant
    patient: str = ""  # the volume's name without its date; another name if a reader says so, or if that patient has the same scan

    def __post_init__(self) -> None:
        if not self.patient:
            object.__setattr__(self, "patient", patient_of(self.name))

    @property
    def constant(self) -> np.ndarray:
        """(C,) bool: scaling between `low` and `high` leaves nothing but zeros of this channel."""
        return self.low >= self.high


def patient_of(volume: str) -> str:
    """The volume's name without its date: eight digits, so that `scan_001` and `scan_002` stay two patients."""
    return re.sub(r"_[0-9]{8}$", "", volume)


Slice = tuple[
    int, np.ndarray, np.ndarray
]  # number, image (C, H, W) uint8, class index (H, W) uint8


def main_channel(channels: Sequence[str]) -> int:
    """Which channel is shown in pictures, and taken to be given where only one is: FLAIR, on which the masks are drawn; else the first."""
    return list(channels).index("FLAIR") if "FLAIR" in channels else 0


def compute_volume_stats(
    name: str,
    slices: Iterable[Slice],
    channels: Sequence[str] = CHANNELS,
    spacing: Sequence[float] = UNKNOWN,
    patient: str = "",
) -> Volume:
    """Work out a `Volume` from its slices, with one of them in memory at a time; for arrays: `zip(numbers, images, masks[:, 0])`."""
    content = _begin(name, spacing)
    flair = channels.index("FLAIR") if "FLAIR" in channels else None
    histogram, copies = (
        np.zeros((len(channels), 256), np.int64),
        np.full(len(channels), flair is not None),
    )
    numbers, tumour_pixels, size = [], [], (0, 0)
    main, slice_hashes, of_slices = main_channel(channels), set(), []
    class_pixels = np.zeros(256, np.int64)
    for number, image, mask in slices:
        _add(content, number, image, mask)
        counts = np.array([_histogram(channel) for channel in image])
        histogram += counts
        of_slices.append(counts[main])
        if np.count_nonzero(counts[main]) > 1:
            slice_hashes.add(hash_slice(image[main]))
        copies &= [
            index != flair and np.array_equal(channel, image[flair])
            for index, channel in enumerate(image)
        ]
        numbers.append(number)
        tumour_pixels.append(np.count_nonzero(mask))
        if mask.max() > 1:
            class_pixels[1:] += np.bincount(mask.ravel(), minlength=256)[1:]
        else:  # ten times as fast
            class_pixels[1] += tumour_pixels[-1]
        size = image.shape[1:]
    low, high = (
        np.array([percentile(counts, share) for counts in histogram], np.float32)
        for share in (0.10, 0.99)
    )
    return Volume(
        name=name,
        slice_number=np.array(numbers, np.int32),
        shape=(len(numbers), len(channels), *size),
        low=low,
        high=high,
        copies=copies,
        tumour_pixels=np.array(tumour_pixels, np.int32),
        class_pixels=class_pixels,
        digest=content.hexdigest(),
        spacing=tuple(map(float, spacing)),
        covered_slices=_count_covered(
            np.reshape(of_slices, (-1, 256)), np.array(tumour_pixels), low[main], high[main]
        ),
        slice_hashes=frozenset(slice_hashes),
        patient=patient,
    )


def _histogram(pixels: np.ndarray) -> np.ndarray:
    """Return how often each value 0 to 255 occurs in uint8 pixels: `np.bincount(pixels.ravel(), minlength=256)`.

    Two neighbours are counted as one number of 16 bits, which takes half the time where the pixels outnumber those numbers.
    """
    if pixels.size % 2 or pixels.size < 2**15:
        return np.bincount(pixels.ravel(), minlength=256)
    pairs = np.bincount(
        np.ascontiguousarray(pixels).ravel().view(np.uint16), minlength=2**16
    ).reshape(256, 256)
    return pairs.sum(axis=0) + pairs.sum(axis=1)


def _count_covered(
    histograms: np.ndarray, tumour_pixels: np.ndarray, low: float, high: float
) -> int:
    """Return on how many slices the tumour covers more than half of the head, from the histograms (S, 256) of the slices.

    The head is what is brighter than the background: above the 10th percentile by a tenth of the range up to the 99th.
    """
    head = histograms[:, int(low + 0.1 * (high - low)) + 1 :].sum(axis=1)
    return int(np.count_nonzero((tumour_pixels > 0) & (2 * tumour_pixels > head)))


def hash_slice(pixels: np.ndarray) -> bytes:
    """Return 16 bytes that identify a slice (H, W) uint8. Its left-right mirror image has the same hash."""
    content = min(pixels.tobytes(), pixels[:, ::-1].tobytes())
    return hashlib.blake2b(f"{pixels.shape}".encode() + content, digest_size=16).digest()


def digest(name: str, slices: Iterable[Slice], spacing: Sequence[float] = UNKNOWN) -> str:
    """The SHA-256 that `compute_volume_stats` finds, without the rest."""
    content = _begin(name, spacing)
    for number, image, mask in slices:
        _add(content, number, image, mask)
    return content.hexdigest()


def _begin(name: str, spacing: Sequence[float]) -> "hashlib._Hash":
    known = np.asarray(spacing, np.float32)  # as it is stored
    return hashlib.sha256(name.encode() + (b"" if np.isnan(known).all() else known.tobytes()))


def _add(content: "hashlib._Hash", number: int, image: np.ndarray, mask: np.ndarray) -> None:
    content.update(f"\n{number} {image.shape}\n".encode())
    content.update(np.ascontiguousarray(image).data)
    content.update(np.ascontiguousarray(mask).data)


def percentile(histogram: np.ndarray, share: float) -> float:
    """`np.percentile(values, 100 * share)` from how often each value 0, 1, 2, ... occurs: 20 times as fast, and equal."""
    position = (histogram.sum() - 1) * share
    below = int(position)
    lower, upper = np.searchsorted(
        histogram.cumsum(), [below, min(below + 1, histogram.sum() - 1)], side="right"
    )
    return float(lower + (upper - lower) * (position - below))


def fingerprint(
    digests: Iterable[str],
    channels: Sequence[str] = CHANNELS,
    classes: Sequence[str] = CLASSES,
    patients: Mapping[str, str] | None = None,
) -> str:
    """Return the SHA-256 of volumes sorted by name: of the content alone, not of paths or dates.

    Names of channels and classes other than the public set's count. `patients` are volumes whose patient does not follow from
    the volume's name, from `renamed_patients`: they count too, because splits depend on them.
    """
    names = [list(channels), list(classes)]
    named = "" if names == [list(CHANNELS), list(CLASSES)] else json.dumps(names)
    named += json.dumps(patients, sort_keys=True) if patients else ""
    return hashlib.sha256(("".join(digests) + named).encode()).hexdigest()


def renamed_patients(volumes: Iterable[str], patients: Iterable[str]) -> dict[str, str]:
    """Return the patient of each volume whose patient is not the volume's name without its date."""
    pairs = zip(volumes, patients, strict=True)
    return {volume: patient for volume, patient in pairs if patient != patient_of(volume)}
