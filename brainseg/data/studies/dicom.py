"""DICOM volumes, read by `brainseg.data.imageio.dicom`, as the SimpleITK images of a study."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brainseg.data.imageio.dicom import DicomVolume, find_series, open_file
from brainseg.data.studies.grid import Grid


@dataclass(frozen=True)
class Dicom:
    """One sequence: a volume of a DICOM series, or of one file."""

    volume: DicomVolume
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files of the volume."""
        return tuple(self.volume.files)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names by which a request may select the volume."""
        return tuple(self.volume.names)

    @property
    def grid(self) -> Grid:
        """Return the grid in SimpleITK's LPS axes. Raises DataError."""
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.volume.grid.affine
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        direction = (affine[:3, :3] / spacing).ravel().tolist()
        return Grid(self.volume.grid.shape, tuple(spacing.tolist()), tuple(affine[:3, 3].tolist()), tuple(direction))

    def read(self) -> Any:
        """Return the SimpleITK image. Raises DataError."""
        import SimpleITK as sitk

        return self.grid.place(sitk.GetImageFromArray(np.ascontiguousarray(self.volume.read().transpose(2, 1, 0))))


def series_in(folder: Path) -> list[Dicom]:
    """Return the volumes of every series in `folder` and below it; notes name the files left aside."""
    volumes, lines = find_series(folder)
    return [Dicom(volume, (*volume.notes, *lines)) for volume in volumes]


def of_file(path: Path) -> Dicom:
    """Return the volume in one file. Raises DataError."""
    volume = open_file(path)
    return Dicom(volume, tuple(volume.notes))
