"""Case of a reader, with the files of one volume that are brought onto one grid."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from brainseg.core.errors import DataError
from brainseg.data.imageio.base import ImageVolume
from brainseg.data.imageio.grid import Grid
from brainseg.data.imageio.open import open_image
from brainseg.data.intensity import to_uint8
from brainseg.data.readers.base import Scan, check_images, list_some
from brainseg.data.readers.labels import Labels, map_labels
from brainseg.data.readers.regrid import axial_grid, count_outside, resample_onto
from brainseg.data.volume import main_channel


class ImageFile(NamedTuple):
    """File of a sequence, or the volume with number `volume`, from 1, of a file with several."""

    path: Path
    volume: int | None = None

    def open(self) -> ImageVolume:
        """Return the image without reading its voxels. Raises DataError naming the file."""
        return open_image(self.path, self.volume)


@dataclass(frozen=True)
class Case:
    """Files of one volume by sequence, and its mask.

    `faults` list ambiguous images, and `mask_faults` a missing or ambiguous mask. A scan without a
    mask can still be segmented.
    """

    name: str
    patient: str
    images: Mapping[str, ImageFile]
    mask: ImageFile | None = None
    faults: tuple[str, ...] = ()
    mask_faults: tuple[str, ...] = ()


@dataclass
class CaseReader:
    """Reader of a list of cases.

    `onto` names the sequence to whose grid the others are resampled. With None, other grids are
    refused.
    """

    cases: list[Case]
    channels: Sequence[str]
    labels: Labels = field(default_factory=Labels)
    onto: str | None = None
    notes: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    # The file that defines the meaning of the values in the masks.
    labels_file: Path | None = None
    # Function from the pixels of each class to the final names of the classes, and notes.
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
        """Return the final names of the classes, and notes, from the pixels of each class."""
        return self.rename(pixels) if self.rename else (tuple(self.classes), [])


def read_case(case: Case, channels: Sequence[str], labels: Labels, onto: str | None = None) -> Scan:
    """Return axial slices of all channels and the mask, on the grid of `onto` or else of FLAIR.

    FLAIR stands in for a missing sequence. Raises DataError for a missing or unreadable file, and
    for different grids if `onto` is None.
    """
    main = channels[main_channel(channels)]
    missing = [name for name in channels if name not in case.images]
    # Only FLAIR may stand in for a sequence, because `describe` reports copies of FLAIR alone.
    faults = [*case.faults, *case.mask_faults]
    if (missing and main != "FLAIR") or main in missing:
        faults.append(f"no {', '.join(missing)}; only FLAIR can stand in for another sequence")
    if case.mask is None:
        faults.append("no mask")
    if onto is not None and onto not in case.images:
        faults.append(f"no {onto}, onto which the others are resampled")
    if faults or case.mask is None:
        raise DataError("; ".join(faults))
    volumes = {name: case.images[name].open() for name in channels if name in case.images}
    reference = Reference(
        onto or main, case.images[onto or main].path, volumes[onto or main].grid, onto is not None
    )
    notes = _notes_of(volumes)
    if reference.grid.plane != "axial":
        notes.append(
            f"{reference.name} was acquired in {reference.grid.plane} planes, "
            "and axial slices are cut across them"
        )
    slices = {}
    for name, volume in volumes.items():
        is_resampled = reference.differs(volume.grid, case.images[name].path)
        axial = volume.grid.to_axial(volume.read())
        if is_resampled:
            axial = resample_onto(axial, axial_grid(volume.grid), axial_grid(reference.grid))
            notes.append(
                f"{name} is resampled onto the grid of {reference.name}, by linear interpolation"
            )
        check_images(axial[:, None], [name])
        slices[name] = to_uint8(axial[:, None])
    mask = _read_mask(case.mask, labels, reference, notes)
    images = np.concatenate([slices.get(name, slices.get(main)) for name in channels], axis=1)
    return Scan(images, mask, reference.grid.axial_spacing, patient=case.patient, notes=notes)


class Reference(NamedTuple):
    """Sequence on whose grid all files of a case must lie, or to whose grid they are resampled."""

    name: str
    path: Path
    grid: Grid
    may_resample: bool

    def differs(self, grid: Grid, path: Path) -> bool:
        """Return True if the voxels of a file lie at other positions.

        The order of the axes does not matter, because all volumes are brought into the same order.
        Raises DataError for other positions unless they may be resampled.
        """
        difference = axial_grid(self.grid).difference(axial_grid(grid))
        if not difference or self.may_resample:
            return bool(difference)
        has_same_axes = self.grid.axcodes == grid.axcodes
        difference = (
            self.grid.difference(grid) if has_same_axes else f"{difference}, as axial slices"
        )
        remedy = f"onto={self.name} resamples it, if its header is right"
        raise DataError(f"{path}: its grid is not that of {self.path.name}: {difference}; {remedy}")


def _read_mask(
    file: ImageFile, labels: Labels, reference: Reference, notes: list[str]
) -> np.ndarray:
    """Return class indices uint8 (S, H, W) on the grid of the reference.

    Raises DataError naming the file.
    """
    volume = file.open()
    is_resampled = reference.differs(volume.grid, file.path)
    voxels = volume.read()
    try:
        indices = map_labels(volume.grid.to_axial(voxels), labels)
    except DataError as error:
        raise DataError(f"{file.path}: {error}") from error
    if not is_resampled:
        return indices
    source, target = axial_grid(volume.grid), axial_grid(reference.grid)
    outside, tumour = count_outside(indices, source, target), np.count_nonzero(indices)
    if tumour and outside == tumour:
        rule = f"the whole mask lies outside of {reference.name}"
        raise DataError(f"{file.path}: {rule}; it belongs to another scan, or its header is wrong")
    notes.append(f"the mask is resampled onto the grid of {reference.name}, by nearest neighbour")
    if outside:
        notes.append(
            f"{outside:,} of {tumour:,} voxels of the mask lie outside of {reference.name} "
            "and are lost"
        )
    return resample_onto(indices, source, target, nearest=True)


def _notes_of(volumes: Mapping[str, ImageVolume]) -> list[str]:
    """Return each different note of the images once, with the names of its sequences."""
    names_by_note: dict[str, list[str]] = {}
    for name, volume in volumes.items():
        for note in volume.notes:
            # In layouts with one file per case, the number of the volume follows from the layout.
            if not note.startswith("volume ") or not note.endswith(" of the file"):
                names_by_note.setdefault(note, []).append(name)
    return [f"{list_some(names)}: {note}" for note, names in names_by_note.items()]
