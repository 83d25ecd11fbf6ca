"""Properties of a volume (one scan of one patient), and their computation from its pixels."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CHANNELS = ("pre-contrast", "FLAIR", "post-contrast")
CLASSES = ("background", "tumour")
# Spacing of a volume that gives no voxel size.
UNKNOWN = (math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Volume:
    """Properties of a volume that the HDF5 file stores beside the pixels.

    The volume has S slices of C channels.
    """

    name: str
    # (S,) int32, rising.
    slice_number: np.ndarray
    # (S, C, H, W).
    shape: tuple[int, ...]
    # (C,) float32, the 10th percentile of all pixels of each channel.
    low: np.ndarray
    # (C,) float32, the 99th percentile of all pixels of each channel.
    high: np.ndarray
    # (C,) bool, True for a channel whose sequence is missing and that equals FLAIR in every pixel.
    copies: np.ndarray
    # (S,) int32, the number of pixels of classes above 0.
    tumour_pixels: np.ndarray
    # (256,) int64, the number of pixels of each class in the volume. Class 0 is not counted.
    class_pixels: np.ndarray
    # SHA-256 of name, spacing where known, slice numbers, pixels and classes.
    digest: str
    # (C,) float32, the median of the head's pixels of each channel.
    head_median: np.ndarray
    # (4,) int32, the box of the head in the image: first row, row after the last, first column,
    # column after the last.
    head_box: np.ndarray
    # mm between slices, rows and columns, NaN if unknown.
    spacing: tuple[float, ...] = UNKNOWN
    # Number of slices on which classes above 0 cover more than half of the head.
    covered_slices: int = 0
    # Hash of each slice of the main channel that is not constant.
    slice_hashes: frozenset[bytes] = frozenset()
    # The volume's name without its date, unless the reader names the patient or another patient has
    # the same scan.
    patient: str = ""

    def __post_init__(self) -> None:
        if not self.patient:
            object.__setattr__(self, "patient", patient_of(self.name))

    @property
    def constant(self) -> np.ndarray:
        """Return a bool (C,), True for a channel that the normalisation turns into zeros."""
        return self.low >= self.high


def patient_of(volume: str) -> str:
    """Return the volume's name without its date.

    A date has eight digits, so that `scan_001` and `scan_002` remain two patients.
    """
    return re.sub(r"_[0-9]{8}$", "", volume)


# Slice number, image (C, H, W) uint8 and class index (H, W) uint8.
Slice = tuple[int, np.ndarray, np.ndarray]


def main_channel(channels: Sequence[str]) -> int:
    """Return the index of the channel that pictures show and that a single image is assumed to be.

    This is FLAIR, on which the masks are drawn, or the first channel if there is no FLAIR.
    """
    return list(channels).index("FLAIR") if "FLAIR" in channels else 0


def compute_volume_stats(
    name: str,
    slices: Iterable[Slice],
    channels: Sequence[str] = CHANNELS,
    spacing: Sequence[float] = UNKNOWN,
    patient: str = "",
) -> Volume:
    """Compute the properties of a volume from its slices.

    Only one slice is in memory at a time. Slices of arrays are `zip(numbers, images, masks[:, 0])`.
    """
    content = _start_hash(name, spacing)
    flair = channels.index("FLAIR") if "FLAIR" in channels else None
    histogram, copies = (
        np.zeros((len(channels), 256), np.int64),
        np.full(len(channels), flair is not None),
    )
    numbers, tumour_pixels, size = [], [], (0, 0)
    main, slice_hashes, slice_histograms = main_channel(channels), set(), []
    class_pixels = np.zeros(256, np.int64)
    main_sum = np.zeros((), np.uint32)
    for number, image, mask in slices:
        _add_slice(content, number, image, mask)
        counts = np.array([_histogram(channel) for channel in image])
        histogram += counts
        # Slices of several sizes are a fault, which the reader reports later.
        if main_sum.shape in ((), image[main].shape):
            main_sum = main_sum + image[main]
        slice_histograms.append(counts[main])
        # Constant slices, such as empty ones, are equal in many volumes.
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
        else:
            # For a mask of two classes the count of the tumour suffices and is ten times as fast.
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
        head_median=np.array(
            [
                percentile(_brighter(counts, head_threshold(*limits)), 0.5)
                for counts, *limits in zip(histogram, low, high, strict=True)
            ],
            np.float32,
        ),
        head_box=find_head_box(
            main_sum / max(len(numbers), 1), head_threshold(low[main], high[main])
        ),
        spacing=tuple(map(float, spacing)),
        covered_slices=_count_covered(
            np.reshape(slice_histograms, (-1, 256)), np.array(tumour_pixels), low[main], high[main]
        ),
        slice_hashes=frozenset(slice_hashes),
        patient=patient,
    )


def _histogram(pixels: np.ndarray) -> np.ndarray:
    """Return the number of uint8 pixels with each value from 0 to 255.

    This equals `np.bincount(pixels.ravel(), minlength=256)`. Two neighbours are counted as one
    number of 16 bits, which takes half the time if there are more pixels than 16-bit numbers.
    """
    if pixels.size % 2 or pixels.size < 2**15:
        return np.bincount(pixels.ravel(), minlength=256)
    pairs = np.bincount(
        np.ascontiguousarray(pixels).ravel().view(np.uint16), minlength=2**16
    ).reshape(256, 256)
    return pairs.sum(axis=0) + pairs.sum(axis=1)


def head_threshold(low: float, high: float) -> float:
    """Return the intensity above which a pixel belongs to the head.

    `low` and `high` are the 10th and 99th percentile of a channel of the volume, and the result is
    low + 0.1 * (high - low).
    """
    return float(low + 0.1 * (high - low))


def _brighter(histogram: np.ndarray, threshold: float) -> np.ndarray:
    """Return the histogram (256,) without the values up to `threshold`, or all of it if empty."""
    brighter = np.where(np.arange(256) > threshold, histogram, 0)
    return brighter if brighter.any() else histogram


def find_head_box(mean_slice: np.ndarray, threshold: float) -> np.ndarray:
    """Return the box of the head, int32 (first row, end row, first column, end column).

    `mean_slice` (H, W) is the mean of the main channel over the slices of a volume, in which noise
    and ghosts outside of the head vanish. The head is the largest connected region brighter than
    `threshold`. Without such a pixel the box is the complete image.
    """
    from scipy.ndimage import find_objects, label

    if not mean_slice.ndim:
        # A volume without slices, which the reader refuses later.
        return np.zeros(4, np.int32)
    regions, count = label(mean_slice > threshold)
    if not count:
        return np.array([0, mean_slice.shape[0], 0, mean_slice.shape[1]], np.int32)
    largest = int(np.bincount(regions.ravel())[1:].argmax())
    rows, columns = find_objects(regions)[largest]
    return np.array([rows.start, rows.stop, columns.start, columns.stop], np.int32)


def _count_covered(
    histograms: np.ndarray, tumour_pixels: np.ndarray, low: float, high: float
) -> int:
    """Return the number of slices on which the tumour covers more than half of the head.

    `histograms` (S, 256) are those of the slices.
    """
    head = histograms[:, int(head_threshold(low, high)) + 1 :].sum(axis=1)
    return int(np.count_nonzero((tumour_pixels > 0) & (2 * tumour_pixels > head)))


def hash_slice(pixels: np.ndarray) -> bytes:
    """Return 16 bytes that identify a slice (H, W) uint8 and its left-right mirror image."""
    content = min(pixels.tobytes(), pixels[:, ::-1].tobytes())
    return hashlib.blake2b(f"{pixels.shape}".encode() + content, digest_size=16).digest()


def digest(name: str, slices: Iterable[Slice], spacing: Sequence[float] = UNKNOWN) -> str:
    """Return the SHA-256 of a volume, without the other properties of `compute_volume_stats`."""
    content = _start_hash(name, spacing)
    for number, image, mask in slices:
        _add_slice(content, number, image, mask)
    return content.hexdigest()


def _start_hash(name: str, spacing: Sequence[float]) -> "hashlib._Hash":
    """Return a hash of the name and of the spacing, unless this is unknown."""
    # float32 is the type in which the file stores the spacing.
    stored = np.asarray(spacing, np.float32)
    return hashlib.sha256(name.encode() + (b"" if np.isnan(stored).all() else stored.tobytes()))


def _add_slice(content: "hashlib._Hash", number: int, image: np.ndarray, mask: np.ndarray) -> None:
    content.update(f"\n{number} {image.shape}\n".encode())
    content.update(np.ascontiguousarray(image).data)
    content.update(np.ascontiguousarray(mask).data)


def percentile(histogram: np.ndarray, share: float) -> float:
    """Return `np.percentile(values, 100 * share)` from the histogram of the values.

    `histogram` contains the number of values that equal 0, 1, 2 and so on. The result is equal, and
    the computation is 20 times as fast.
    """
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
    """Return the SHA-256 of a cohort from the digests of its volumes, sorted by name.

    The fingerprint depends on the content, not on paths or dates. The names of channels and classes
    enter it only if they differ from those of the public dataset. `patients` contains the patients
    that do not follow from the volume's name, as `renamed_patients` returns them. They enter the
    fingerprint, too, because splits depend on them.
    """
    names = [list(channels), list(classes)]
    named = "" if names == [list(CHANNELS), list(CLASSES)] else json.dumps(names)
    named += json.dumps(patients, sort_keys=True) if patients else ""
    return hashlib.sha256(("".join(digests) + named).encode()).hexdigest()


def renamed_patients(volumes: Iterable[str], patients: Iterable[str]) -> dict[str, str]:
    """Return the patient of each volume whose patient is not the volume's name without its date."""
    pairs = zip(volumes, patients, strict=True)
    return {volume: patient for volume, patient in pairs if patient != patient_of(volume)}
