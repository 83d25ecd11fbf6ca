"""`open_image`: the reader of an image file, chosen by the file's name and first bytes."""

from pathlib import Path

from brainseg.data.imageio import nifti
from brainseg.data.imageio.base import ImageVolume
from brainseg.data.imageio.streams import read_start
from brainseg.errors import DataError


def open_image(path: str | Path, volume: int | None = None) -> ImageVolume:
    """Return the image in a file, its header not yet read.

    `volume` chooses one volume, counted from 1, of a file that holds several. Raises DataError naming
    the file if there is no such file, or if no reader knows its content.
    """
    path = Path(path)
    start = read_start(path, 540)
    if not start:
        raise DataError(f"{path}: is empty; copy or download it again")
    if nifti.header_class_of(start) or nifti.has_suffix(path):
        return nifti.NiftiVolume(path, volume)
    raise DataError(f"{path}: no reader knows this format; convert it to NIfTI")
