"""A case, which has one image for each sequence and gets one mask.

Axes are S slices from bottom to top, C channels, H and W height and width, and K outputs of the
network. For every orientation of the source, `read` returns axial slices with the face up, as in
the public dataset, and `write` puts the mask back on the source's grid.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from brainseg.core.errors import DataError, check
from brainseg.data.imageio.base import ImageVolume
from brainseg.data.imageio.grid import Grid
from brainseg.data.imageio.nifti import NiftiVolume
from brainseg.data.imageio.nifti_writer import write_nifti
from brainseg.data.intensity import to_uint8
from brainseg.data.readers.base import Scan, check_images


class InputCase(Protocol):
    """Protocol of the cases of `predict`. Headers are checked, and voxels are not yet read."""

    @property
    def name(self) -> str:
        """Return the name of the folder of results."""

    @property
    def channels(self) -> Sequence[str]:
        """Return the names of the channels that `read` returns."""

    @property
    def notes(self) -> Sequence[str]:
        """Return remarks for the user, one line each."""

    @property
    def files(self) -> Sequence[Path]:
        """Return every file that a prediction and its score depend on."""

    @property
    def assignment(self) -> Mapping[str, str]:
        """Return the source of each sequence in words, in the order of the files."""

    @property
    def voxel_millilitres(self) -> float | None:
        """Return the volume of a voxel, None if unknown. Raises DataError."""

    def read(self) -> Scan:
        """Return images uint8 (S, C, H, W), masks (S, H, W) or None, spacing in mm or None.

        Raises DataError, OSError.
        """

    def write(
        self, folder: Path, mask: np.ndarray, probability: np.ndarray | None, is_multiclass: bool
    ) -> list[Path]:
        """Write class indices uint8 (S, H, W) and an optional probability float32 (S, K, H, W).

        `is_multiclass` is True for more than one foreground class. Returns the written files.
        Raises OSError.
        """


@dataclass
class ImageCase:
    """A case of image files by sequence, all on one grid. Its mask is a NIfTI file on that grid."""

    name: str
    channels: Sequence[str]
    volumes: Mapping[str, ImageVolume]
    notes: Sequence[str]

    @property
    def files(self) -> Sequence[Path]:
        return [path for volume in self.volumes.values() for path in volume.files]

    @property
    def assignment(self) -> Mapping[str, str]:
        return {channel: describe_volume(volume) for channel, volume in self.volumes.items()}

    @property
    def grid(self) -> Grid:
        return next(iter(self.volumes.values())).grid

    @property
    def voxel_millilitres(self) -> float | None:
        # The header of a single slice rarely holds its thickness, so its volume is unknown.
        has_volume = self.grid.spacing_known and min(self.grid.shape) > 1
        return self.grid.voxel_millilitres if has_volume else None

    def read(self) -> Scan:
        axial = {}
        for channel, volume in self.volumes.items():
            voxels = volume.read()
            # The file may have been replaced since its header was read.
            if voxels.shape != self.grid.shape:
                raise DataError(
                    f"{volume.files[0]}: its header gave {self.grid.shape} voxels; start again"
                )
            axial[channel] = self.grid.to_axial(voxels)
        has_spacing = self.voxel_millilitres is not None
        spacing = self.grid.axial_spacing if has_spacing else None
        return Scan(compose(axial, self.channels), None, spacing)

    def write(
        self, folder: Path, mask: np.ndarray, probability: np.ndarray | None, is_multiclass: bool
    ) -> list[Path]:
        written = [self._write(folder / f"{self.name}_mask.nii.gz", mask)]
        for output in range(probability.shape[1] if probability is not None else 0):
            assert probability is not None
            suffix = f"_{output}" if is_multiclass else ""
            path = folder / f"{self.name}_probability{suffix}.nii.gz"
            written.append(self._write(path, probability[:, output]))
        return written

    def _write(self, path: Path, slices: np.ndarray) -> Path:
        first = next(iter(self.volumes.values()))
        header = first.stored_header if isinstance(first, NiftiVolume) else None
        return write_nifti(path, self.grid.from_axial(slices), self.grid, header)


def make_case(name: str, volumes: Mapping[str, ImageVolume], channels: Sequence[str]) -> ImageCase:
    """Return the case of one image for each sequence. Raises RequestError, DataError."""
    check_sequences(list(volumes), channels)
    ordered = {channel: volumes[channel] for channel in channels if channel in volumes}
    for (channel, first), (other, second) in itertools.combinations(ordered.items(), 2):
        is_same = not {path.resolve() for path in first.files}.isdisjoint(
            path.resolve() for path in second.files
        )
        # Two volumes of one file may be two sequences.
        is_same = is_same and _number_of(first) == _number_of(second)
        rule = f"{channel} and {other} are the same file"
        check(not is_same, "input", describe_volume(first), rule, "leave a missing sequence out")
    (first_channel, first), *remaining = ordered.items()
    for channel, volume in remaining:
        difference = first.grid.difference(volume.grid)
        rule = f"{channel} and {first_channel} lie on different grids ({difference})"
        remedy = "resample them to one grid, as registration does"
        check(not difference, "input", describe_volume(volume), rule, remedy)
    notes = [
        f"{channel}: {note}" if remaining else note
        for channel, volume in ordered.items()
        for note in volume.notes
    ]
    if first.grid.plane != "axial":
        notes.append(f"{first.grid.plane} slices: the network was trained on axial slices")
    if not isinstance(first, NiftiVolume):
        notes.append("the mask is a NIfTI file on the same grid")
    return ImageCase(name, channels, ordered, notes)


def compose(sequences: Mapping[str, np.ndarray], channels: Sequence[str]) -> np.ndarray:
    """Return images uint8 (S, C, H, W) from one array (S, H, W) for each sequence.

    FLAIR stands in for a missing sequence, as in the public dataset. Each sequence is scaled to
    eight bits by itself, as in `prepare`. Raises DataError for values that are not finite.
    """
    scaled = {}
    for name, images in sequences.items():
        check_images(images[:, None], [name])
        scaled[name] = to_uint8(images[:, None])
    return np.concatenate([scaled.get(name, scaled.get("FLAIR")) for name in channels], axis=1)


def check_sequences(names: Sequence[str], channels: Sequence[str]) -> None:
    """Raise RequestError for an unknown sequence, or for a missing one without a substitute."""
    known_names = ", ".join(channels)
    for name in names:
        rule = "the checkpoint knows no such sequence"
        check(name in channels, "sequences", name, rule, f"known: {known_names}")
    is_complete = "FLAIR" in names or set(channels) <= set(names)
    rule = f"the checkpoint needs {known_names}, and only FLAIR can stand in for another"
    check(
        is_complete, "input", ", ".join(names), rule, "give FLAIR at least, as sequences.FLAIR=FILE"
    )


def _number_of(volume: ImageVolume) -> int:
    """Return the number of a volume among the volumes of its file, from 1."""
    # A DICOM object has `number`, and files of other formats have `volume`.
    return getattr(volume, "number", None) or getattr(volume, "volume", None) or 1


def describe_volume(volume: ImageVolume) -> str:
    """Return a volume's file, or its folder with its description and the number of files."""
    if not volume.files:
        return "an image in memory"
    if len(volume.files) == 1 or isinstance(volume, NiftiVolume):
        return str(volume.files[0])
    names = [name for name in volume.names if not name.replace(".", "").isdigit()]
    details = [*names[:2], f"{len(volume.files)} files"]
    return f"{volume.files[0].parent} ({', '.join(details)})"
