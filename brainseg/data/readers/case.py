"""A case: the files of one volume in formats that store a whole volume per file, brought onto one grid."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from brainseg.data.imageio.base import ImageVolume
from brainseg.data.imageio.grid import Grid
from brainseg.data.imageio.open import open_image
from brainseg.data.readers.base import Scan, check_images, list_some, to_uint8
from brainseg.data.readers.labels import Labels, map_labels
from brainseg.data.readers.regrid import count_outside, resample_onto
from brainseg.data.volume import main_channel
from brainseg.errors import DataError


class ImageFile(NamedTuple):
    """One sequence: a file, or one volume of a file that holds several, counted from 1."""

    path: Path
    volume: int | None = None

    def open(self) -> ImageVolume:
        """Return the image, its header not yet read. Raises DataError naming the file."""
        return open_image(self.path, self.volume)


@dataclass(frozen=True)
class Case:
    """Files of one volume by sequence, and of its mask; `faults` say what is missing or ambiguous."""

    name: str
    patient: str
    images: Mapping[str, ImageFile]
    mask: ImageFile | None = None
    faults: tuple[str, ...] = ()


@dataclass
class CaseReader:
    """Reader of the cases that a listing has found.

    `onto` names the sequence whose grid the others are resampled to; None refuses other grids.
    """

    cases: list[Case]
    channels: Sequence[str]
    labels: Labels = field(default_factory=Labels)
    onto: str | None = None
    notes: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    rename: Callable[[np.ndarray], tuple[tuple[str, ...], list[str]]] | None = None

    def __post_init__(self) -> None:
        self._by_name = {case.name: case for case in self.cases}

    @property
    def classes(self) -> Sequence[str]:
        """Return the names of the classes, background first."""
        return self.labels.classes

    @property
    def patients(self) -> Mapping[str, str]:
        """Return the patient of each volume."""
        return {case.name: case.patient for case in self.cases}

    def volumes(self, source: Path) -> Iterable[str]:
        """Return the names of the cases."""
        return [case.name for case in self.cases]

    def read(self, source: Path, volume: str) -> Scan:
        """Return one case on one grid as axial slices. Raises DataError naming the file."""
        return read_case(self._by_name[volume], self.channels, self.labels, self.onto)

    def name_classes(self, pixels: np.ndarray) -> tuple[tuple[str, ...], list[str]]:
        """Return the final names of the classes, from the pixels of each, and notes."""
        return self.rename(pixels) if self.rename else (tuple(self.classes), [])


def read_case(case: Case, channels: Sequence[str], labels: Labels, onto: str | None = None) -> Scan:
    """Return axial slices of all channels and the mask, on the grid of `onto`, else of FLAIR, else of the first file.

    FLAIR stands in for a missing sequence. Raises DataError for a missing or unreadable file, and where
    grids differ and `onto` is None.
    """
    main = channels[main_channel(channels)]
    missing = [name for name in channels if name not in case.images]
    faults = [*case.faults]
    if (missing and main != "FLAIR") or main in missing:
        faults.append(f"no {', '.join(missing)}; only FLAIR can stand in for another sequence")
    if case.mask is None:
        faults.append("no mask")
    if onto is not None and onto not in case.images:
        faults.append(f"no {onto}, onto which the others are resampled")
    if faults or case.mask is None:
        raise DataError("; ".join(faults))
    volumes = {name: case.images[name].open() for name in channels if name in case.images}
    reference = onto or main
    grid, notes = volumes[reference].grid, _notes_of(volumes)
    if grid.plane != "axial":
        notes.append(f"{reference} was acquired in {grid.plane} planes; axial slices are cut across them")
    slices = {}
    for name, volume in volumes.items():
        array = volume.read()
        if difference := grid.difference(volume.grid):
            path = case.images[name].path
            _refuse_grid(path, case.images[reference].path, difference, onto is None, reference)
            array = resample_onto(array, volume.grid, grid)
            notes.append(f"{name} is resampled onto the grid of {reference}, by linear interpolation")
        axial = grid.to_axial(array)[:, None]
        check_images(axial, [name])
        slices[name] = to_uint8(axial)
    mask, lost = _read_mask(case.mask, grid, labels, case.images[reference].path, reference, onto is None)
    images = np.concatenate([slices.get(name, slices.get(main)) for name in channels], axis=1)
    return Scan(images, mask, grid.axial_spacing, patient=case.patient, notes=[*notes, *lost])


def _read_mask(
    file: ImageFile, grid: Grid, labels: Labels, main: Path, reference: str, strict: bool
) -> tuple[np.ndarray, list[str]]:
    """Return class indices uint8 (S, H, W) of a mask on `grid`, and notes. Raises DataError."""
    volume, notes = file.open(), []
    try:
        indices = map_labels(volume.read(), labels)
    except DataError as error:
        text = str(error)
        raise DataError(text if str(file.path) in text else f"{file.path}: {text}") from error
    if difference := grid.difference(volume.grid):
        _refuse_grid(file.path, main, difference, strict, reference)
        outside, whole = count_outside(indices, volume.grid, grid), np.count_nonzero(indices)
        if whole and outside == whole:
            raise DataError(f"{file.path}: the whole mask lies outside of {reference}; it belongs to another scan")
        indices = resample_onto(indices, volume.grid, grid, nearest=True)
        notes.append(f"the mask is resampled onto the grid of {reference}, by nearest neighbour")
        if outside:
            notes.append(f"{outside:,} of {whole:,} voxels of the mask lie outside of {reference} and are lost")
    return grid.to_axial(indices), notes


def _refuse_grid(path: Path, main: Path, difference: str, strict: bool, reference: str) -> None:
    """Raise DataError about a file whose grid differs, unless it may be resampled."""
    if strict:
        remedy = f"onto={reference} resamples it, if its header is right"
        raise DataError(f"{path}: its grid is not that of {main.name}: {difference}; {remedy}")


def _notes_of(volumes: Mapping[str, ImageVolume]) -> list[str]:
    """Return the notes of all images, each text once, with the sequences that it concerns."""
    concerned: dict[str, list[str]] = {}
    for name, volume in volumes.items():
        for note in volume.notes:
            # That a file of several volumes is read volume by volume is what the layout says.
            if not note.startswith("volume ") or not note.endswith(" of the file"):
                concerned.setdefault(note, []).append(name)
    return [f"{list_some(names)}: {note}" for note, names in concerned.items()]
