"""DICOM: the files of one series are one sequence. Headers are judged first: only plain pixels, each with its bytes, reach the decoder."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from brainseg.data.studies.grid import Grid, asking, header
from brainseg.data.studies.study import check_volume
from brainseg.errors import DataError

DESCRIPTION, BITS = "0008|103e", "0028|0100"
UNEVEN = 0.1  # share of the spacing by which slices may be off their places


@dataclass(frozen=True)
class Dicom:
    """One sequence: a series' files, from one end of the stack to the other, or one file of many frames."""

    files: tuple[Path, ...]
    names: tuple[str, ...]  # subfolder, description, UID: by which a request may mean it

    @cached_property
    def grid(self) -> Grid:
        """Where it lies. Raises DataError for slices that do not make up one volume, or are not whole."""
        grids = [_plain(path) for path in self.files]
        first = grids[0]
        check_volume((*first.size[:2], sum(grid.size[2] for grid in grids)), self.files[0].parent)
        if len(grids) == 1:
            return first
        for path, grid in zip(self.files, grids, strict=True):
            if away := first._replace(size=(*first.size[:2], 1)).difference(grid._replace(origin=first.origin)):
                raise DataError(f"{path}: not a slice of the same stack as {self.files[0].name}: {away}")
        return Grid((*first.size[:2], len(grids)), (*first.spacing[:2], self._step(grids)), first.origin, first.direction)

    def _step(self, grids: Sequence[Grid]) -> float:
        """mm from slice to slice, if it is the same everywhere."""
        normal = np.reshape(grids[0].direction, (3, 3))[:, 2]
        moved = np.array([grid.origin for grid in grids]) - grids[0].origin
        steps = np.diff(moved @ normal)
        where, step = self.files[0].parent, float(np.median(steps))
        if steps.min() < 1e-3:
            raise DataError(f"{where}: several slices at one place; one series must be one volume (echoes and phases apart)")
        if np.ptp(steps) > UNEVEN * step:
            apart = f"{steps.min():.2f} to {steps.max():.2f} mm"
            raise DataError(f"{where}: slices are {apart} apart; one is missing, or they are unevenly spaced")
        if np.abs(moved - np.outer(moved @ normal, normal)).max() > 0.5 * min(grids[0].spacing[:2]):
            raise DataError(f"{where}: the stack is sheared (a tilted gantry); resample it to a straight one")
        return step

    def read(self) -> Any:
        """The SimpleITK image. Raises DataError."""
        import SimpleITK as sitk

        with asking(self.files[0].parent):
            return sitk.ReadImage([str(path) for path in self.files] if len(self.files) > 1 else str(self.files[0]), imageIO="GDCMImageIO")


def series_in(folder: Path) -> list[Dicom]:
    """Every series in a folder and the folders below it; other files are passed over."""
    import SimpleITK as sitk

    found = []
    for path, below, files in os.walk(folder):
        below.sort()
        with asking(path):
            for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(path) if files else ():
                names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(path, uid)
                found.append(of_files([Path(name) for name in names], str(Path(path).relative_to(folder)), uid))
    return found


def of_files(files: Sequence[Path], folder: str = ".", uid: str = "") -> Dicom:
    """A series of these files. Raises DataError if the first is no DICOM."""
    reader = header(files[0], "GDCMImageIO")
    text = reader.GetMetaData(DESCRIPTION).strip() if reader.HasMetaDataKey(DESCRIPTION) else ""
    names = [name for name in ("" if folder == "." else folder, text, uid) if name]
    return Dicom(tuple(files), tuple(name if name.isprintable() else ascii(name) for name in names) or (files[0].name,))


def _plain(path: Path) -> Grid:
    """The grid of one file, if its pixels lie there as they are. Raises DataError."""
    reader = header(path, "GDCMImageIO")
    size = reader.GetSize()
    check_volume(size, path)
    try:
        bits = int(reader.GetMetaData(BITS))
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{path}: its header does not say how many bits a pixel has") from error
    needed, held = int(np.prod(size, dtype=object)) * bits // 8, path.stat().st_size
    if held < needed:
        asked = f"{held:,} of the {needed:,} bytes that {size[0]} x {size[1]} x {size[2]} pixels of {bits} bits take"
        raise DataError(f"{path}: {asked}: compressed or truncated; store it uncompressed (gdcmconv --raw)")
    return Grid.of(reader)
