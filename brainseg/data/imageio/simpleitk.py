"""Reader of NRRD and MetaImage with SimpleITK, in one file or with voxels in a second file.

The text header is read here, too, for two reasons. SimpleITK assumes 1 mm and the patient's axes
where a header gives none, and it allocates any size that a header asks for.
"""

import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

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

# Bytes at the start of a file in which the text header must end.
LONGEST_HEADER = 2**16
# Upper limit of the compression ratio of deflate.
LARGEST_COMPRESSION_RATIO = 1100
NRRD, METAIMAGE = "NrrdImageIO", "MetaImageIO"
VOXELS_IN = {NRRD: ("data file", "datafile"), METAIMAGE: ("elementdatafile",)}
SPACING_IN = {NRRD: ("spacings", "space directions"), METAIMAGE: ("elementspacing", "elementsize")}
ORIENTATION_IN = {NRRD: ("space",), METAIMAGE: ("transformmatrix", "rotation", "orientation")}
# SimpleITK's axes point to the left, to the back and to the head.
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class ItkVolume:
    """An `ImageVolume` of a file, or of its volume with number `volume`, from 1."""

    path: Path
    # SimpleITK's name of the format.
    reader: str
    volume: int | None = None

    @cached_property
    def files(self) -> Sequence[Path]:
        """Return the header and, if there is one, the file of voxels. Raises DataError."""
        return tuple(dict.fromkeys((self.path, self._voxel_path)))

    @property
    def names(self) -> Sequence[str]:
        return (self.path.name,)

    @cached_property
    def fields(self) -> Mapping[str, str]:
        """Return the values of the text header by field, in lower case. Raises DataError."""
        try:
            with open(self.path, "rb") as file:
                start = file.read(LONGEST_HEADER)
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror}") from error
        lines = re.split(rb"\r?\n\r?\n", start)[0] if self.reader == NRRD else start
        fields: dict[str, str] = {}
        for line in lines.decode("latin-1").splitlines():
            name, _, value = line.partition(":" if self.reader == NRRD else "=")
            fields.setdefault(name.strip().lower(), value.strip().lstrip("="))
            # The voxels may follow this field, which is always the last.
            if name.strip().lower() == "elementdatafile":
                break
        return fields

    @cached_property
    def header(self) -> Any:
        """Return a SimpleITK reader after it has read the header. Raises DataError."""
        import SimpleITK as sitk

        reader = sitk.ImageFileReader()
        reader.SetImageIO(self.reader)
        reader.SetFileName(str(self.path))
        with translating_errors(self.path):
            reader.ReadImageInformation()
        if reader.GetDimension() not in (3, 4):
            raise DataError(
                f"{self.path}: has {reader.GetDimension()} dimensions; must have 3 or 4"
            )
        if reader.GetNumberOfComponents() != 1:
            raise DataError(
                f"{self.path}: holds {reader.GetNumberOfComponents()} values in each voxel "
                "(colours or vectors); save the grey values of one sequence"
            )
        return reader

    @cached_property
    def grid(self) -> Grid:
        """Return the grid that the header gives. Raises DataError naming the file."""
        header = self.header
        i, j, k, *extra_sides = header.GetSize()
        check_volume((i, j, k), self.path)
        volume_index(self.volume, math.prod(extra_sides), self.path)
        if self._type.kind not in "iuf":
            raise DataError(f"{self.path}: voxels are {self._type}; must be real numbers")
        self._check_length(math.prod(header.GetSize()))
        dimension = header.GetDimension()
        direction = np.reshape(header.GetDirection(), (dimension, dimension))[:3, :3]
        affine = np.eye(4)
        affine[:3, :3] = direction * header.GetSpacing()[:3]
        affine[:3, 3] = header.GetOrigin()[:3]
        affine = TO_RAS @ affine
        if not spans_volume(affine):
            raise DataError(
                f"{self.path}: its header maps voxels to no volume; set its directions anew"
            )
        check_shear(affine, self.path)
        spacing = " ".join(self.fields.get(name, "") for name in SPACING_IN[self.reader])
        has_spacing = bool(spacing.strip()) and "nan" not in spacing.lower()
        has_spacing = has_spacing and is_plausible(np.linalg.norm(affine[:3, :3], axis=0))
        has_orientation = any(name in self.fields for name in ORIENTATION_IN[self.reader])
        return Grid((i, j, k), affine, has_spacing, has_orientation)

    @property
    def notes(self) -> Sequence[str]:
        """Return a line for the user on each assumption about the image.

        These are shear, an unknown voxel size, an unknown orientation and the choice of a volume.
        Raises DataError.
        """
        notes = [check_shear(self.grid.affine, self.path)]
        if not self.grid.spacing_known:
            notes.append("the header gives no usable size of a voxel: no volume in millilitres")
        if not self.grid.orientation_known:
            notes.append(
                "the header does not say how the head lies: axes to the left, back and head are "
                "assumed, left and right may be exchanged"
            )
        if self.volume is not None:
            notes.append(f"volume {self.volume} of the file")
        return tuple(filter(None, notes))

    def read(self) -> np.ndarray:
        """Return finite real numbers (i, j, k). Raises DataError."""
        import SimpleITK as sitk

        expected, reader = self.grid.shape, self.header
        if reader.GetDimension() == 4:
            reader.SetExtractSize([*expected, 0])
            reader.SetExtractIndex([0, 0, 0, (self.volume or 1) - 1])
        with translating_errors(self.path):
            voxels = sitk.GetArrayFromImage(reader.Execute()).transpose()
        if voxels.shape != expected:
            raise DataError(f"{self.path}: changed since its header was read; start again")
        check_finite(voxels, self.path)
        return voxels

    @cached_property
    def _type(self) -> np.dtype:
        """Return the type of a voxel."""
        import SimpleITK as sitk

        # SimpleITK has no table of types, so an image of one voxel is made.
        return sitk.GetArrayFromImage(sitk.Image([1, 1, 1], self.header.GetPixelIDValue())).dtype

    @cached_property
    def _voxel_path(self) -> Path:
        """Return the file that holds the voxels. Raises DataError if there are several."""
        name = next((self.fields[key] for key in VOXELS_IN[self.reader] if key in self.fields), "")
        if name.lower() in ("", "local"):
            return self.path
        if name.upper().startswith("LIST") or "%" in name:
            raise DataError(
                f"{self.path}: its voxels lie in several files; save the image as one file"
            )
        voxel_path = self.path.parent / name
        if Path(name).name != name:
            raise DataError(
                f"{self.path}: its voxels lie in another folder, {name}; put the file beside it"
            )
        if not voxel_path.is_file():
            raise DataError(f"{self.path}: its file of voxels, {name}, is missing")
        return voxel_path

    def _check_length(self, voxels: int) -> None:
        """Raise DataError if the file of voxels is too short for what the header asks for."""
        encoding = self.fields.get("encoding", "raw").lower()
        # The length of numbers written as text is unknown.
        if (
            encoding in ("ascii", "text", "txt", "hex")
            or self.fields.get("binarydata", "").lower() == "false"
        ):
            return
        needed = voxels * self._type.itemsize
        is_packed = encoding != "raw" or self.fields.get("compresseddata", "").lower() == "true"
        # The exact length of compressed voxels is unknown before they are unpacked.
        largest_size = self._voxel_path.stat().st_size * (
            LARGEST_COMPRESSION_RATIO if is_packed else 1
        )
        if largest_size < needed:
            raise DataError(
                f"{self.path}: truncated: its header asks for {needed:,} bytes, more than "
                f"{self._voxel_path.name} holds; copy or download it again"
            )


@contextmanager
def translating_errors(place: object) -> Iterator[None]:
    """Turn SimpleITK's exceptions into a DataError of one line, and silence its stderr."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    sys.stderr.flush()
    # Libraries in C++ write to the file descriptor, which sys.stderr does not control.
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    except RuntimeError as error:
        rule = "damaged, truncated or not of this format"
        raise DataError(f"{place}: cannot be read: {rule}; copy or download it again") from error
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)
