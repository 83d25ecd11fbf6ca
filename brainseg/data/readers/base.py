"""Protocol of readers, the scans that readers return, and the checks of every volume.

    class Mine:                                         registered under `brainseg.readers`
        channels = ("T1", "FLAIR")                      any number
        classes = ("background", "oedema", "core")      by class index, two or more
        def volumes(self, source): ...                  names
        def read(self, source, volume): ...             a `Scan`

A split never separates two volumes of one patient. The patient is `Scan.patient`, else the volume's
name without its date (`_YYYYMMDD`). A reader must fill a missing sequence with the volume's FLAIR,
as in the public set.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from brainseg.core.errors import DataError
from brainseg.data.imageio.tiff import LARGEST

# The name of a channel or class becomes part of a metric's name, which MLflow must accept.
NAME = re.compile(r"\w[\w .-]*")


class Scan(NamedTuple):
    """A volume of S axial slices, from bottom to top and face up, with C channels."""

    # Real numbers (S, C, H, W). Integers from 0 to 255 are kept, and other values are stretched.
    images: Any
    # Class indices (S, H, W).
    masks: Any
    # Distances in mm between slices, rows and columns, None if unknown.
    spacing: Sequence[float] | None = None
    # Rising numbers (S,), None for 1, 2, 3, ...
    slice_number: Sequence[int] | None = None
    # None for the volume's name without its date.
    patient: str | None = None
    # Remarks on the volume for the user, one line each.
    notes: Sequence[str] = ()


class Reader(Protocol):
    """Protocol of the readers of a cohort. An instance is used from several processes.

    A registered class is constructed without arguments. It may also have an attribute `patients`, a
    mapping from the name of a volume to its patient. The patient is then known even for a volume
    that cannot be read.
    """

    @property
    def channels(self) -> Sequence[str]:
        """Return the names of the channels."""

    @property
    def classes(self) -> Sequence[str]:
        """Return the names of the classes, background first."""

    def volumes(self, source: Path) -> Iterable[str]:
        """Return the names of the volumes in the folder `source`, in any order."""

    def read(self, source: Path, volume: str) -> Scan:
        """Return one volume. Any exception becomes a fault of that volume, by name."""


@dataclass(frozen=True)
class Reading:
    """Settings of `prepare` for reading the source, with the same names as in PrepareConfig."""

    reader: str | None = None
    sequences: Mapping[str, str] = field(default_factory=dict)
    images: str | None = None
    mask: str | None = None
    channels: Sequence[str] | None = None
    classes: Mapping[str, Any] = field(default_factory=dict)
    onto: str | None = None
    spacing: float | None = None
    # Height and width.
    size: Sequence[int] | None = None


def check_images(images: np.ndarray, channels: Sequence[str]) -> None:
    """Raise DataError unless `images` are finite numbers (S, C, H, W) of these channels."""
    shape = images.shape
    fits = images.ndim == 4 and shape[0] > 0 and shape[1] == len(channels)
    fits = fits and all(0 < side <= LARGEST for side in shape[2:])
    rule = f"must be (slices, {len(channels)} channels, height, width), sides up to {LARGEST}"
    require(fits, f"images of shape {shape}: {rule}")
    require(images.dtype.kind in "buif", f"images are {images.dtype}: must be real numbers")
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        slice_, channel = np.argwhere(~np.isfinite(images))[0][:2]
        place = f"first in its slice {slice_ + 1}"
        raise DataError(f"{channels[channel]} holds values that are not finite, {place}")


def check_masks(masks: np.ndarray, images: np.ndarray, classes: Sequence[str]) -> None:
    """Raise DataError unless `masks` are class indices (S, H, W) that fit images (S, C, H, W)."""
    expected = (images.shape[0], *images.shape[2:])
    rule = f"must be {expected} for images of shape {images.shape}"
    require(masks.shape == expected, f"masks of shape {masks.shape}: {rule}")
    require(masks.dtype.kind in "buif", f"masks are {masks.dtype}: must be class indices")
    wrong = [
        f"{value:g}" for value in np.unique(masks).tolist() if value not in range(len(classes))
    ]
    rule = f"must be class indices, 0 to {len(classes) - 1} ({', '.join(classes)})"
    require(
        not wrong, f"mask values {', '.join(wrong[:6])}{', ...' if len(wrong) > 6 else ''}: {rule}"
    )


def require(condition: bool, rule: str) -> None:
    """Raise DataError with the text `rule` unless `condition` is True."""
    if not condition:
        raise DataError(rule)


def list_some(names: Iterable[object], most: int = 6) -> str:
    """Return the first `most` names in one text, with the number of further names."""
    texts = list(map(str, names))
    remaining = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + remaining
