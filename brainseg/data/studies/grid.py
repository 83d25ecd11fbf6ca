"""Where the voxels of a NIfTI or DICOM volume lie in the patient, as SimpleITK says it; and how SimpleITK is asked.

Axes here are SimpleITK's: (x, y, z) of the array, x fastest; a patient's are left, posterior, superior, in mm.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from brainseg.errors import DataError

PLANES = ("sagittal", "coronal", "axial")  # by the patient's axis that a stack of slices runs along
PIXELS = ("8-bit unsigned integer", "8-bit signed integer", "16-bit unsigned integer", "16-bit signed integer",
          "32-bit unsigned integer", "32-bit signed integer", "32-bit float", "64-bit float")  # fmt: skip


class Grid(NamedTuple):
    """Array and place of a volume; equal grids give one voxel one index."""

    size: tuple[int, ...]  # voxels
    spacing: tuple[float, ...]  # mm
    origin: tuple[float, ...]  # mm, the centre of the first voxel
    direction: tuple[float, ...]  # 3 x 3 by rows: its columns are the array's axes in the patient

    @classmethod
    def of(cls, image: Any) -> "Grid":
        """That of a SimpleITK image, or of a reader that has read a header."""
        return cls(tuple(image.GetSize()), tuple(image.GetSpacing()), tuple(image.GetOrigin()), tuple(image.GetDirection()))

    @property
    def plane(self) -> str:
        """The plane that its slices lie in, oblique ones by the nearest."""
        return PLANES[int(np.abs(np.reshape(self.direction, (3, 3))[:, 2]).argmax())]

    def place(self, image: Any) -> Any:
        """The image, put on this grid."""
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image

    def difference(self, other: "Grid") -> str:
        """In what two grids differ by more than rounding (a twentieth of a voxel); "" if in nothing."""
        tolerance = 0.05 * min(self.spacing)
        if self.size != other.size:
            return f"{' x '.join(map(str, other.size))} voxels instead of {' x '.join(map(str, self.size))}"
        for name, within in (("spacing", tolerance / max(self.size)), ("origin", tolerance), ("direction", 1e-3)):
            mine, theirs = getattr(self, name), getattr(other, name)
            if not np.allclose(mine, theirs, rtol=0, atol=within):
                return f"{name} {_shown(theirs)} instead of {_shown(mine)}"
        return ""


def header(path: object, kind: str) -> Any:
    """A SimpleITK reader that has read the file's header, `kind` being NiftiImageIO or GDCMImageIO. Raises DataError naming the file."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO(kind)
    reader.SetFileName(str(path))
    with asking(path):
        reader.ReadImageInformation()
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        raise DataError(f"{path}: {reader.GetDimension()} dimensions, {reader.GetNumberOfComponents()} values a voxel; must be 3 and 1")
    pixel = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())
    if pixel not in PIXELS:
        raise DataError(f"{path}: voxels are {pixel}; must be real numbers")
    return reader


@contextmanager
def asking(path: object) -> Iterator[None]:
    """Turn what SimpleITK raises into a DataError of one line, and silence what its libraries write to stderr beside it."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    except RuntimeError as error:  # with source file and line before the reason
        reason = " ".join(str(error).split()).rpartition("ITK ERROR: ")[2]
        raise DataError(f"{path}: cannot be read ({reason.rpartition('): ')[2][:200]})") from error
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _shown(numbers: tuple[float, ...]) -> str:
    return f"({', '.join(f'{number:g}' for number in numbers)})"
