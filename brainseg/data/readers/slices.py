"""Reader of the volumes of pictures, whose slices are sorted by number."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from brainseg.core.errors import DataError
from brainseg.data.readers.base import Scan, list_some, require
from brainseg.data.readers.labels import Labels, map_labels
from brainseg.data.readers.pictures import read_indices, read_picture

MASK = "mask"
# Paths relative to the source by sequence (or images or mask), and by slice number.
Files = dict[str, dict[int, list[str]]]


@dataclass
class SliceReader:
    """Reader of pictures. `colour` is True if the channels are the colours of one picture."""

    # Files by the name of the volume.
    files: dict[str, Files]
    patients: Mapping[str, str]
    channels: Sequence[str]
    labels: Labels
    colour: bool
    notes: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    @property
    def classes(self) -> Sequence[str]:
        """Return the names of the classes, background first."""
        return self.labels.classes

    def volumes(self, source: Path) -> Iterable[str]:
        """Return the names of the volumes."""
        return list(self.files)

    def read(self, source: Path, volume: str) -> Scan:
        """Return the slices of a volume by number.

        Raises DataError naming files that are missing or unreadable.
        """
        files = self.files[volume]
        # FLAIR stands in for a missing sequence, as in the public set.
        names = [name if name in files or "FLAIR" not in files else "FLAIR" for name in self._kinds]
        _check_complete(files, dict.fromkeys([*names, MASK]))
        # After this check, the masks and all sequences have the same slice numbers.
        numbers = sorted(files[MASK])
        masks = [read_indices(source / files[MASK][number][0]) for number in numbers]
        pictures = [
            [read_picture(source / files[name][number][0], self.colour) for name in names]
            for number in numbers
        ]
        paths = [files[names[0]][number][0] for number in numbers]
        sizes = [picture.shape[1:] for slice_ in pictures for picture in slice_]
        for path, slice_, mask in zip(paths, pictures, masks, strict=True):
            shapes = {picture.shape[1:] for picture in slice_}
            require(
                shapes == {mask.shape},
                f"{path}: {_size(slice_[0].shape[1:])} pixels; its mask has {_size(mask.shape)}",
            )
        require(
            len(set(sizes)) == 1,
            f"slices of {list_some(sorted(map(_size, set(sizes))))} pixels; all need one size",
        )
        try:
            indices = map_labels(np.stack(masks), self.labels)
        except DataError as error:
            raise DataError(_explain_jpeg(str(error), files[MASK][numbers[0]][0])) from error
        images = np.stack([np.concatenate(slice_) for slice_ in pictures])
        return Scan(images, indices, None, numbers, self.patients[volume])

    @property
    def _kinds(self) -> Sequence[str]:
        """Return the keys of the images in the files of a volume."""
        return ("images",) if self.colour else self.channels


def _check_complete(files: Files, names: Iterable[str]) -> None:
    """Raise DataError unless each slice has exactly one file of each kind."""
    faults = []
    numbers = sorted({number for slices in files.values() for number in slices})
    for name in names:
        slices = files.get(name, {})
        missing = [number for number in numbers if number not in slices]
        faults += [f"no {name} of slices {list_some(missing)}"] if missing else []
        double = [paths for paths in slices.values() if len(paths) > 1]
        faults += [f"several files are one slice: {list_some(paths, 3)}" for paths in double]
    require(not faults, "; ".join(faults))


def _explain_jpeg(text: str, path: str) -> str:
    """Return `text`, an error about the values of a mask, with the remedy in front for a JPEG."""
    if not path.lower().endswith((".jpg", ".jpeg")):
        return text
    return "JPEG changes the values of masks; save them as PNG, from the originals; " + text


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
