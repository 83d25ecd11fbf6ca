"""Cases of TIFF slices in one folder per patient, as in the public set, perhaps with masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainseg.core.errors import DataError, check
from brainseg.data.cases.tiff_stack import write_mask, write_probability
from brainseg.data.imageio.tiff import read_mask, read_slice
from brainseg.data.intensity import to_uint8
from brainseg.data.readers.base import Scan
from brainseg.data.readers.kaggle_layout import Folder, find_files, find_folders
from brainseg.data.volume import CHANNELS


@dataclass
class KaggleCase:
    """A patient's slices `<volume>_<n>.tif`. Masks are written as `<volume>_<n>_mask.tif`."""

    folder: Folder
    channels: Sequence[str] = CHANNELS

    @property
    def name(self) -> str:
        return self.folder.path.name

    @property
    def files(self) -> Sequence[Path]:
        return [*self.folder.slices.values(), *self.folder.masks.values()]

    @property
    def assignment(self) -> Mapping[str, str]:
        return dict.fromkeys(self.channels, "in every slice")

    @property
    def voxel_millilitres(self) -> float | None:
        return None

    @property
    def notes(self) -> Sequence[str]:
        with_mask = len(self.folder.masks)
        note = f"masks of {with_mask} of {len(self.folder.slices)} slices: not scored"
        return [*self.folder.warnings, *([note] if 0 < with_mask < len(self.folder.slices) else [])]

    def read(self) -> Scan:
        slices, masks = self.folder.slices, self.folder.masks
        images = _stack([read_slice(path, len(CHANNELS)) for path in slices.values()], self.name)
        # Masks of only some slices cannot give a score of the volume.
        is_scored = len(masks) == len(slices)
        truth = (
            _stack([read_mask(path) for path in masks.values()], self.name) if is_scored else None
        )
        if truth is not None and truth.shape[1:] != images.shape[2:]:
            raise DataError(
                f"{self.name}: masks of {_size(truth.shape[1:])} pixels, "
                f"slices of {_size(images.shape[2:])}"
            )
        return Scan(to_uint8(images), truth, None, list(slices))

    def write(
        self, folder: Path, mask: np.ndarray, probability: np.ndarray | None, is_multiclass: bool
    ) -> list[Path]:
        written = []
        for row, path in enumerate(self.folder.slices.values()):
            written.append(
                write_mask(folder / f"{path.stem}_mask.tif", mask[row : row + 1], is_multiclass)
            )
        if probability is not None:
            written.append(write_probability(folder / f"{self.name}_probability.tif", probability))
        return written


def find_patients(path: Path, channels: Sequence[str]) -> list[KaggleCase]:
    """Return the patients below `path`, or the patient whose folder it is.

    The list is empty for another layout. Raises RequestError for faulty files.
    """
    path = path.absolute()
    patient = Folder(path)
    find_files(patient, path.parent, need_masks=False)
    top = Folder(path)
    # The folder is a patient itself if it contains slices that are named after the folder.
    is_patient = patient.slices or patient.masks
    candidates = [patient] if is_patient else find_folders(top, need_masks=False)
    folders = [folder for folder in candidates if folder.slices or folder.masks]
    if not folders:
        return []
    faults = [fault for folder in (top, *candidates) for fault in folder.faults]
    more = f", and {len(faults) - 1} more faults" if len(faults) > 1 else ""
    check(
        not faults,
        "input",
        path,
        f"{faults[0] if faults else ''}{more}",
        "repair or remove the files",
    )
    fits = set(channels) <= set(CHANNELS)
    check(
        fits,
        "input",
        path,
        f"such slices hold {', '.join(CHANNELS)}; the checkpoint needs {', '.join(channels)}",
        "give one file per sequence, as input=[A,B]",
    )
    return [KaggleCase(folder) for folder in folders]


def _stack(slices: list[np.ndarray], name: str) -> np.ndarray:
    """Return slices as one array. Raises DataError for different sizes or types."""
    sizes = sorted({pixels.shape[-2:] for pixels in slices})
    if len(sizes) > 1:
        raise DataError(
            f"{name}: slices of {' and '.join(map(_size, sizes))} pixels; must be of one size"
        )
    if len({pixels.dtype for pixels in slices}) > 1:
        raise DataError(f"{name}: slices of 8 and of 16 bits; must be of one type")
    return np.stack(slices)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"
