"""Reader of FreeSurfer's MGH and MGZ files with nibabel, compressed or not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader

from brainseg.core.errors import DataError
from brainseg.data.imageio.base import (
    check_finite,
    check_shear,
    check_volume,
    is_plausible,
    spans_volume,
    volume_index,
)
from brainseg.data.imageio.grid import Grid
from brainseg.data.imageio.streams import check_length, read_at, read_start

# Bytes of the header that are read, and the place of the first voxel.
HEADER, FIRST_VOXEL = 90, 284
# Types of voxels by the code in the header.
TYPES = {0: "uint8", 1: "int32", 3: "float32", 4: "int16", 10: "uint16"}


@dataclass(frozen=True)
class MghVolume:
    """An `ImageVolume` of a file, or of its frame with number `volume`, from 1."""

    path: Path
    volume: int | None = None

    @property
    def files(self) -> Sequence[Path]:
        return (self.path,)

    @property
    def names(self) -> Sequence[str]:
        return (self.path.name,)

    @cached_property
    def header(self) -> MGHHeader:
        """Return the header. Raises DataError."""
        # The footer of the file is not read, because it holds no position.
        start = read_start(self.path, HEADER)
        if len(start) < HEADER:
            raise DataError(f"{self.path}: truncated within its header; copy or download it again")
        header = MGHHeader(start, check=False)
        if int(header["type"]) not in TYPES:
            raise DataError(
                f"{self.path}: voxels are of MGH's type {int(header['type'])}, which is not read"
            )
        return header

    @cached_property
    def grid(self) -> Grid:
        """Return the grid that the header gives. Raises DataError naming the file."""
        header = self.header
        *sides, frames = (int(side) for side in header["dims"])
        i, j, k = sides
        check_volume((i, j, k), self.path)
        check_volume((frames,), self.path)
        volume_index(self.volume, frames, self.path)
        check_length(self.path, FIRST_VOXEL + i * j * k * frames * self._type.itemsize)
        affine = np.array(header.get_affine(), np.float64)
        if not spans_volume(affine):
            raise DataError(
                f"{self.path}: its header maps voxels to no volume; set its direction cosines anew"
            )
        check_shear(affine, self.path)
        has_orientation = bool(header["goodRASFlag"])
        spacing_known = has_orientation and is_plausible(np.linalg.norm(affine[:3, :3], axis=0))
        return Grid((i, j, k), affine, spacing_known, has_orientation)

    @property
    def notes(self) -> Sequence[str]:
        """Return remarks on how the image is read, one line each."""
        notes = [check_shear(self.grid.affine, self.path)]
        if not self.grid.orientation_known:
            notes.append(
                "the header does not say how the head lies: FreeSurfer's coronal axes are assumed"
            )
        if self.volume is not None:
            notes.append(f"volume {self.volume} of the file")
        return tuple(filter(None, notes))

    def read(self) -> np.ndarray:
        """Return finite real numbers (i, j, k). Raises DataError."""
        size = math.prod(self.grid.shape) * self._type.itemsize
        content = read_at(self.path, FIRST_VOXEL + ((self.volume or 1) - 1) * size, size)
        voxels = np.frombuffer(content, self._type).reshape(self.grid.shape, order="F")
        check_finite(voxels, self.path)
        return voxels

    @property
    def _type(self) -> np.dtype:
        return np.dtype(TYPES[int(self.header["type"])]).newbyteorder(">")
