"""What the readers of single images share: an `ImageVolume` is one sequence, judged by its header and not yet read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from brainseg.data.imageio.grid import Grid


class ImageVolume(Protocol):
    """One three-dimensional image in one file, or in the files of one DICOM series."""

    @property
    def files(self) -> Sequence[Path]:
        """Return every file that the voxels depend on."""

    @property
    def names(self) -> Sequence[str]:
        """Return the names by which a request may select this volume: file, folder, series description, UID."""

    @property
    def notes(self) -> Sequence[str]:
        """Return what a user should know about how the image is read, one line each."""

    @property
    def grid(self) -> Grid:
        """Return the grid as the header gives it. Raises DataError naming the file."""

    def read(self) -> np.ndarray:
        """Return finite real numbers (i, j, k), rescaled as the header says. Raises DataError naming the file."""
