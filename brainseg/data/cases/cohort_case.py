"""Cases of a cohort: readable ones, perhaps with a mask to be scored against, and faulty ones."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from brainseg.core.errors import DataError
from brainseg.data.cases.input_case import ImageCase
from brainseg.data.readers.base import Scan
from brainseg.data.readers.case import ImageFile
from brainseg.data.readers.labels import Labels, map_labels
from brainseg.data.readers.regrid import axial_grid


@dataclass
class CohortCase(ImageCase):
    """An `ImageCase` of a known patient, perhaps with a mask that is read with its images."""

    patient: str
    mask: ImageFile | None = None
    labels: Labels = field(default_factory=Labels)
    # The file that defines the meaning of the values in the mask.
    labels_file: Path | None = None

    @property
    def files(self) -> Sequence[Path]:
        """Return the files of the images, and the files that the score depends on."""
        files = [*super().files]
        if self.mask is not None:
            files += [*self.mask.open().files, *([self.labels_file] if self.labels_file else [])]
        return files

    @property
    def assignment(self) -> Mapping[str, str]:
        """Return the file of each sequence, and the file of the mask under "mask"."""
        mask = {"mask": str(self.mask.path)} if self.mask is not None else {}
        return {**super().assignment, **mask}

    def read(self) -> Scan:
        """Return the images, and the mask as class indices. Raises DataError naming the file.

        If a mask contains values that belong to no class, a note is added instead of the mask.
        """
        scan = super().read()
        masks = self._read_mask(self.mask) if self.mask is not None else None
        return scan._replace(masks=masks, patient=self.patient)

    def _read_mask(self, file: ImageFile) -> np.ndarray | None:
        """Return class indices (S, H, W), or None for unknown values. Raises DataError."""
        volume = file.open()
        # The mask may be stored with another order of axes than the images.
        difference = axial_grid(self.grid).difference(axial_grid(volume.grid))
        if difference:
            rule = (
                f"the mask does not lie on the grid of the images ({difference}, as axial slices)"
            )
            raise DataError(f"{file.path}: {rule}; resample it, or remove it")
        voxels = volume.read()
        if note := _describe_unknown_values(voxels, self.labels):
            # A case may be read more than once, and its note is shown once.
            self.notes = list(dict.fromkeys([*self.notes, note]))
            return None
        try:
            return map_labels(volume.grid.to_axial(voxels), self.labels)
        except DataError as error:
            raise DataError(f"{file.path}: {error}") from error


def _describe_unknown_values(voxels: np.ndarray, labels: Labels) -> str:
    """Return a note on integer values of a mask that belong to no class, "" if there are none."""
    present = np.unique(voxels)
    # Fractions are no labels: `map_labels` raises an error for them.
    integers = [int(value) for value in present if value == np.rint(value)]
    # Masks of one class are stored as 0 and 1, or as 0 and 255.
    allowed = labels.values or ({0, 255} if set(integers) <= {0, 255} else {0, 1})
    if set(integers) <= set(allowed):
        return ""
    values = ",".join(str(value) for value in integers if value)
    return (
        f"not scored: mask with the values {values}, whose classes are unknown; "
        f"name them in prepare, as classes.NAME=[{values}], and score its file with evaluate"
    )


@dataclass
class FaultyCase:
    """A case that cannot be read. `read` raises its problem, so that other cases are segmented."""

    name: str
    channels: Sequence[str]
    problem: str
    paths: Mapping[str, Path]
    notes: Sequence[str] = ()
    voxel_millilitres: float | None = None

    @property
    def files(self) -> Sequence[Path]:
        """Return the files of the case that can be opened."""
        return [path for path in self.paths.values() if os.access(path, os.R_OK)]

    @property
    def assignment(self) -> Mapping[str, str]:
        """Return the file of each sequence."""
        return {channel: str(path) for channel, path in self.paths.items()}

    def read(self) -> Scan:
        """Raise DataError with the problem of the case."""
        raise DataError(self.problem)

    def write(
        self, folder: Path, mask: np.ndarray, probability: np.ndarray | None, is_multiclass: bool
    ) -> list[Path]:
        """Raise DataError, because a case that cannot be read has no mask."""
        raise DataError(self.problem)
