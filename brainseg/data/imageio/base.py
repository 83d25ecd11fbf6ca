"""Protocol `ImageVolume` of the readers of single images, and shared checks of sizes and values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from brainseg.core.errors import DataError
from brainseg.data.imageio.grid import Grid

# Voxels, such as 1024 slices of 512 x 512. They take 2 GB while they are scaled to eight bits.
LARGEST_VOLUME = 2**28
# Millimetres, from microscopy of a specimen to the thickest slice of a localizer.
SMALLEST_SIDE, LARGEST_SIDE = 0.005, 100.0
# Degrees from perpendicular. A gantry is tilted by at most 30 degrees.
LARGEST_SHEAR = 45.0


class ImageVolume(Protocol):
    """Protocol of a three-dimensional image, in one file or in the files of one DICOM series."""

    @property
    def files(self) -> Sequence[Path]:
        """Return every file that the voxels depend on."""

    @property
    def names(self) -> Sequence[str]:
        """Return the names that select this volume, such as file, folder, description or UID."""

    @property
    def notes(self) -> Sequence[str]:
        """Return remarks on how the image is read, one line each."""

    @property
    def grid(self) -> Grid:
        """Return the grid that the header gives. Raises DataError naming the file."""

    def read(self) -> np.ndarray:
        """Return finite real numbers (i, j, k), rescaled as the header says. Raises DataError."""


def check_volume(shape: Sequence[int], place: object) -> None:
    """Raise DataError if the header asks for no voxels, or for more than `LARGEST_VOLUME`."""
    # Python integers cannot overflow, as the product of NumPy's integers could.
    voxels = 1
    for side in shape:
        voxels *= max(0, int(side))
    if not 0 < voxels <= LARGEST_VOLUME:
        size = " x ".join(map(str, shape))
        raise DataError(
            f"{place}: its header asks for {size} voxels; at most {LARGEST_VOLUME:,} are read"
        )


def check_finite(voxels: np.ndarray, place: object) -> None:
    """Raise DataError naming the number of NaN and infinite values, if there are any."""
    if voxels.dtype.kind == "f" and (count := voxels.size - int(np.isfinite(voxels).sum())):
        raise DataError(
            f"{place}: {count:,} of {voxels.size:,} values are NaN or infinite; "
            "replace them, for example with numpy.nan_to_num"
        )


def is_plausible(sides: np.ndarray) -> bool:
    """Return True if a scan can have voxels with these sides in mm."""
    return bool(((sides >= SMALLEST_SIDE) & (sides <= LARGEST_SIDE)).all())


def volume_index(volume: int | None, count: int, place: object) -> int:
    """Return the index of the volume to read, from 0, in a file of `count` volumes.

    `volume` is the number in the request, from 1, or None. Raises DataError naming `place`.
    """
    if count == 1 and volume not in (None, 1):
        raise DataError(f"{place}: holds one volume, and no volume {volume}; leave volume out")
    if count > 1 and volume is None:
        raise DataError(
            f"{place}: holds {count} volumes (a series over time, or several contrasts); "
            f"choose one with volume=N, from 1 to {count}"
        )
    if volume is not None and not 1 <= volume <= count:
        raise DataError(f"{place}: holds no volume {volume}; choose one from 1 to {count}")
    return (volume or 1) - 1


def spans_volume(affine: np.ndarray) -> bool:
    """Return True if an affine is finite and its columns enclose a volume."""
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not sides.all():
        return False
    return bool(abs(np.linalg.det(affine[:3, :3] / sides)) > 0.1)


def check_shear(affine: np.ndarray, place: object) -> str:
    """Return a note if the axes are not perpendicular, "" if they are.

    Raises DataError naming `place` for axes too far from perpendicular.
    """
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    off = float(np.degrees(np.arcsin(min(1.0, np.abs(cosines.T @ cosines - np.eye(3)).max()))))
    if off > LARGEST_SHEAR:
        raise DataError(
            f"{place}: its axes are {off:.0f} degrees from perpendicular; "
            f"at most {LARGEST_SHEAR:g} are read; resample it to a straight grid"
        )
    if off < 0.5:
        return ""
    return (
        f"axes are {off:.1f} degrees from perpendicular: slices are read as stored, not resampled"
    )
