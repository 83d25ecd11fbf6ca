"""Studies of NIfTI and DICOM sequences: turned to axial slices with the face up, as the public set's, and the mask turned back."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from brainseg.data.reader import Scan
from brainseg.data.studies import dicom, nifti
from brainseg.data.studies.grid import Grid
from brainseg.data.studies.study import check_sequences, compose
from brainseg.data.volume import main_channel
from brainseg.errors import DataError, check

AXIAL = "LPS"  # x to the patient's left, y to the back, z to the head: a slice seen from below, face up
Series = nifti.Nifti | dicom.Dicom


@dataclass
class ImageStudy:
    """Sequences on one grid, by name; the mask is NIfTI on that grid, for DICOM, too."""

    name: str
    channels: Sequence[str]
    sequences: Mapping[str, Series]
    notes: Sequence[str]
    grids: list[Grid] = field(default_factory=list)  # the source's and the axial one, known once it is read

    @property
    def files(self) -> Sequence[Path]:
        return [path for series in self.sequences.values() for path in series.files]

    @property
    def given(self) -> Sequence[str]:
        return list(self.sequences)

    def read(self) -> Scan:
        import SimpleITK as sitk

        pixels: dict[str, np.ndarray] = {}
        for name, series in self.sequences.items():
            image = series.read()
            if image.GetSize() != series.grid.size:
                raise DataError(f"{self.name}: {name} has {image.GetSize()} voxels, and its header said {series.grid.size}")
            axial = sitk.DICOMOrient(image, AXIAL)
            self.grids = self.grids or [Grid.of(image), Grid.of(axial)]
            pixels[name] = sitk.GetArrayFromImage(axial)
        slices, spacing = self.grids[1].size[2], self.grids[1].spacing
        main = next(iter(self.sequences.values()))
        is_known = slices > 1 and (not isinstance(main, dicom.Dicom) or main.volume.grid.spacing_known)
        return Scan(compose(pixels, self.channels), None, spacing[::-1] if is_known else None)  # a slice alone has no thickness for sure

    def write(self, folder: Path, mask: np.ndarray, probability: np.ndarray | None, several: bool) -> list[Path]:
        written = [nifti.write(folder / f"{self.name}_mask.nii.gz", self._turned_back(mask))]
        for output in range(probability.shape[1] if probability is not None else 0):
            assert probability is not None
            suffix = f"_{output}" if several else ""  # one file a class
            image = self._turned_back(np.ascontiguousarray(probability[:, output]))
            written.append(nifti.write(folder / f"{self.name}_probability{suffix}.nii.gz", image))
        return written

    def _turned_back(self, array: np.ndarray) -> Any:
        """An array (S, H, W) of axial slices as an image on the source's grid."""
        import SimpleITK as sitk

        source, axial = self.grids
        code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(source.direction)
        image = sitk.DICOMOrient(axial.place(sitk.GetImageFromArray(array)), code)
        assert image.GetSize() == source.size, "what was turned one way comes back the other"
        return source.place(image)


def find(name: str, series: Sequence[Series], sequences: Mapping[str, str], channels: Sequence[str]) -> ImageStudy:
    """The study in a folder: what `sequences` names, else what bears a channel's name, else the one that is there.

    Raises RequestError where that is not one series a sequence; DataError for what the headers say against it.
    """
    listed = "; ".join(" | ".join(one.names) for one in series[:12]) + ("; ..." if len(series) > 12 else "")
    check(bool(series), "input", name, "holds no slices, NIfTI files or DICOM series that can be read")
    if sequences:
        check_sequences(list(sequences), channels)
        chosen = {channel: _named(wanted, series, f"sequences.{channel}", listed) for channel, wanted in sequences.items()}
        return _study(name, chosen, channels)
    if len(series) == 1:
        check_alone(" ".join(series[0].names), name, channels)
        return _study(name, {channels[main_channel(channels)]: series[0]}, channels)
    by_name = {channel: [one for one in series if plain(channel) in plain(" ".join(one.names))] for channel in channels}
    clear = {channel: found[0] for channel, found in by_name.items() if len(found) == 1}
    sure = len(clear) == len(series) and len({id(one) for one in clear.values()}) == len(series)
    check(sure, "input", name, f"{len(series)} series, and it is not clear which is {', '.join(channels)}: {listed}",
          f"say so of each, as {' '.join(f'sequences.{channel}=NAME' for channel in channels)}; one left out counts as missing")
    return _study(name, clear, channels)


def check_alone(bears: str, shown: object, channels: Sequence[str]) -> None:
    """Refuse a file or series alone that is named after another sequence than the one it would be taken for. Raises RequestError."""
    words = f" {' '.join(re.findall('[a-z0-9]+', bears.lower()))} "
    named = [one for one in channels if f" {' '.join(re.findall('[a-z0-9]+', one.lower()))} " in words]
    main = channels[main_channel(channels)]
    check(not named or main in named, "input", shown, f"would be taken for {main}, and is named after {' and '.join(named)}",
          f"give {main}, alone or with the others, as [{','.join(channels)}]; null stands for a missing one")


def of_paths(name: str, paths: Mapping[str, Path], channels: Sequence[str]) -> ImageStudy:
    """The study of one file or folder a sequence. Raises as `find`."""
    return _study(name, {channel: _of_path(path) for channel, path in paths.items()}, channels)


def in_folder(path: Path) -> list[Series]:
    """NIfTI files in a folder, and DICOM series in it or below."""
    files = sorted(file for file in path.iterdir() if file.name.endswith(nifti.SUFFIXES) and file.is_file())
    return [*(nifti.Nifti(file) for file in files), *dicom.series_in(path)]


def _of_path(path: Path) -> Series:
    if path.is_dir():
        found = in_folder(path)
        check(len(found) == 1, "input", path, f"holds {len(found)} series; must be one where a folder stands for a sequence")
        return found[0]
    return nifti.Nifti(path) if path.name.endswith(nifti.SUFFIXES) else dicom.of_file(path)


def _study(name: str, chosen: Mapping[str, Series], channels: Sequence[str]) -> ImageStudy:
    check_sequences(list(chosen), channels)
    ordered = {channel: chosen[channel] for channel in channels if channel in chosen}
    different = len({one.files for one in ordered.values()}) == len(ordered)
    check(different, "input", name, f"two of {', '.join(ordered)} are the same file", "leave a missing sequence out")
    (first, series), *others = ordered.items()
    for other, one in others:
        away = series.grid.difference(one.grid)
        check(not away, "input", name, f"{other} and {first} lie on different grids ({away})", "resample them to one, as by registration")
    notes = [] if series.grid.plane == "axial" else [f"{series.grid.plane} slices: the network has seen axial ones"]
    if isinstance(series, dicom.Dicom):
        notes += ["DICOM: the mask is a NIfTI file on the same grid", *series.notes]
    return ImageStudy(name, channels, ordered, notes)


def _named(wanted: str, series: Sequence[Series], setting: str, listed: str) -> Series:
    """The one series that is called so, or has this in its name."""
    exact = [one for one in series if wanted.lower() in (name.lower() for name in one.names)]
    found = exact or [one for one in series if any(wanted.lower() in name.lower() for name in one.names)]
    check(len(found) == 1, setting, wanted, f"fits {len(found)} of the series; must fit one", f"there are: {listed}")
    return found[0]


def plain(text: str) -> str:
    """Letters and digits alone, in lower case, in which channels and names of files are compared."""
    return "".join(character for character in text.lower() if character.isalnum())
