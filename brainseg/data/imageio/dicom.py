"""DICOM with SimpleITK: the files of one series are one sequence, its headers judged first."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from brainseg.data.imageio.base import check_finite, check_volume
from brainseg.data.imageio.grid import Grid
from brainseg.data.imageio.simpleitk import TO_RAS, asking
from brainseg.errors import DataError

DESCRIPTION, BITS = "0008|103e", "0028|0100"
# Share of the spacing by which slices may be off their places.
UNEVEN = 0.1


@dataclass(frozen=True)
class DicomVolume:
    """The files of a series, from one end of the stack to the other, or one file of several frames."""

    files: Sequence[Path]
    names: Sequence[str]
    notes: Sequence[str] = ()

    @cached_property
    def grid(self) -> Grid:
        headers = [_header(path) for path in self.files]
        first = headers[0]
        i, j, frames = first.GetSize()
        check_volume((i, j, max(frames, len(headers))), self.files[0].parent)
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(first.GetDirection(), (3, 3)) * first.GetSpacing()
        affine[:3, 3] = first.GetOrigin()
        if len(headers) == 1:
            return Grid((i, j, frames), TO_RAS @ affine)
        for path, header in zip(self.files, headers, strict=True):
            same = header.GetSize() == first.GetSize() and np.allclose(
                (*header.GetSpacing()[:2], *header.GetDirection()),
                (*first.GetSpacing()[:2], *first.GetDirection()),
                atol=1e-3,
            )
            if not same:
                raise DataError(f"{path}: not a slice of the same stack as {self.files[0].name}")
        affine[:3, 2] = self._step(headers) * np.reshape(first.GetDirection(), (3, 3))[:, 2]
        return Grid((i, j, len(headers)), TO_RAS @ affine)

    def _step(self, headers: Sequence[Any]) -> float:
        """Return the distance between slices in mm. Raises DataError unless it is the same everywhere."""
        normal = np.reshape(headers[0].GetDirection(), (3, 3))[:, 2]
        moved = np.array([header.GetOrigin() for header in headers]) - headers[0].GetOrigin()
        steps = np.diff(moved @ normal)
        where, step = self.files[0].parent, float(np.median(steps))
        if steps.min() < 1e-3:
            raise DataError(f"{where}: several slices at one place; one series must be one volume")
        if np.ptp(steps) > UNEVEN * step:
            apart = f"{steps.min():.2f} to {steps.max():.2f} mm"
            raise DataError(
                f"{where}: slices are {apart} apart; one is missing, or they are unevenly spaced"
            )
        if np.abs(moved - np.outer(moved @ normal, normal)).max() > 0.5 * min(
            headers[0].GetSpacing()[:2]
        ):
            raise DataError(
                f"{where}: the stack is sheared (a tilted gantry); resample it to a straight one"
            )
        return step

    def read(self) -> np.ndarray:
        import SimpleITK as sitk

        files = [str(path) for path in self.files]
        with asking(self.files[0].parent):
            image = sitk.ReadImage(files if len(files) > 1 else files[0], imageIO="GDCMImageIO")
        voxels = sitk.GetArrayFromImage(image).transpose()
        check_finite(voxels, self.files[0].parent)
        return voxels


def find_series(folder: Path) -> tuple[list[DicomVolume], list[str]]:
    """Return every series in a folder and below, and one line for each thing that was left aside."""
    import SimpleITK as sitk

    series = []
    for path, below, files in os.walk(folder):
        below.sort()
        with asking(path):
            uids = sitk.ImageSeriesReader.GetGDCMSeriesIDs(path) if files else ()
        for uid in uids:
            with asking(path):
                names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(path, uid)
            subfolder = str(Path(path).relative_to(folder))
            series.append(_of_files([Path(name) for name in names], subfolder, uid))
    return series, []


def open_file(path: Path) -> DicomVolume:
    """Return the image in one file of DICOM. Raises DataError."""
    return _of_files([path], ".", "")


def _of_files(files: Sequence[Path], subfolder: str, uid: str) -> DicomVolume:
    header = _header(files[0])
    text = header.GetMetaData(DESCRIPTION).strip() if header.HasMetaDataKey(DESCRIPTION) else ""
    names = [name for name in ("" if subfolder == "." else subfolder, text, uid) if name]
    printable = [name if name.isprintable() else ascii(name) for name in names]
    return DicomVolume(tuple(files), tuple(printable) or (files[0].name,))


def _header(path: Path) -> Any:
    """Return a SimpleITK reader of one file, if its pixels lie there as they are. Raises DataError."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    with asking(path):
        reader.ReadImageInformation()
    size = reader.GetSize()
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        raise DataError(f"{path}: not one grey image of slices; save one sequence in grey")
    check_volume(size, path)
    try:
        bits = int(reader.GetMetaData(BITS))
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{path}: its header does not say how many bits a pixel has") from error
    needed, held = int(np.prod(size, dtype=object)) * bits // 8, path.stat().st_size
    if held < needed:
        asked = f"{held:,} of the {needed:,} bytes that its pixels take"
        raise DataError(
            f"{path}: {asked}: compressed or truncated; store it uncompressed (gdcmconv --raw)"
        )
    return reader
