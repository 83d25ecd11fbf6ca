"""NIfTI: one file a sequence. The header is judged first; a file that ends too early is refused, SimpleITK would read zeros."""

import errno
import gzip
import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from brainseg.data.studies.grid import Grid, asking, header
from brainseg.data.studies.study import check_volume
from brainseg.errors import DataError
from brainseg.files import writing

SUFFIXES = (".nii", ".nii.gz")
CHUNK = 2**20  # bytes unpacked at a time
HEADER = 352  # bytes before the first voxel, at least


@dataclass(frozen=True)
class Nifti:
    """One sequence in one file."""

    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    @property
    def names(self) -> tuple[str, ...]:
        """By which a request may mean it."""
        return (self.path.name,)

    @cached_property
    def grid(self) -> Grid:
        """Where it lies, from a header that its bytes cover. Raises DataError."""
        reader = header(self.path, "NiftiImageIO")
        check_volume(reader.GetSize(), self.path)
        try:
            start, bits = max(HEADER, int(float(reader.GetMetaData("vox_offset")))), int(reader.GetMetaData("bitpix"))
        except (RuntimeError, ValueError, OverflowError) as error:
            raise DataError(f"{self.path}: its header does not say where the voxels are") from error
        check_whole(self.path, start + math.prod(reader.GetSize()) * bits // 8)
        return Grid.of(reader)

    def read(self) -> Any:
        """The SimpleITK image. Raises DataError."""
        import SimpleITK as sitk

        with asking(self.path):
            return sitk.ReadImage(str(self.path), imageIO="NiftiImageIO")


def check_whole(path: Path, needed: int) -> None:
    """Raise DataError unless the file, unpacked, holds so many bytes; no more than these are unpacked."""
    size = path.stat().st_size
    if path.name.endswith(".gz"):
        size = 0
        try:
            with gzip.open(path) as file:
                while size < needed + CHUNK and (part := len(file.read(CHUNK))):  # to the end, where the checksum is
                    size += part
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path}: truncated or damaged ({error})") from error
    if size < needed:
        raise DataError(f"{path}: truncated: {size:,} of the {needed:,} bytes that its header asks for")


def write(path: Path, image: Any) -> Path:
    """Write a SimpleITK image, packed. Raises OSError, which SimpleITK does not on a full disk: the file is read again."""
    import SimpleITK as sitk

    with writing(path) as temporary:
        try:
            with asking(path):
                sitk.WriteImage(image, str(temporary), useCompression=True, imageIO="NiftiImageIO")
            check_whole(temporary, sitk.GetArrayViewFromImage(image).nbytes)
        except DataError as error:
            raise OSError(errno.ENOSPC, "could not be written whole; is the disk full?", str(path)) from error
    return path
