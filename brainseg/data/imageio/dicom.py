"""DICOM volumes of all series below a folder, and of a single file.

Every file's header is read once. Frames are files of one slice, or items of enhanced objects. They
are grouped to series, wherever in the folder they lie, and a series is split into volumes. A fault
of one file is a fault of its series alone. It is raised when that series is read, and other series
can be chosen.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from brainseg.core.errors import DataError
from brainseg.data.imageio.base import check_volume, volume_index
from brainseg.data.imageio.dicom_frames import Frame
from brainseg.data.imageio.dicom_geometry import shear_angle, stack_frames
from brainseg.data.imageio.dicom_header import (
    PARSE_ERRORS,
    ImageFile,
    NonImageFile,
    lenient_parsing,
    read_file,
    read_pixels,
)
from brainseg.data.imageio.dicom_pixels import CONVERT, read_values
from brainseg.data.imageio.dicom_volumes import FrameGroup, split_series
from brainseg.data.imageio.grid import Grid

# Exceptions of pydicom for pixels that it cannot decode.
DECODE_ERRORS = (*PARSE_ERRORS, RuntimeError)


@dataclass(frozen=True, eq=False)
class DicomVolume:
    """An `ImageVolume` of a DICOM series."""

    group: FrameGroup
    # The files that hold the frames. For a damaged series, the files that may hold them.
    images: Sequence[ImageFile]
    names: Sequence[str]
    # Number of the volume in its series, from 1.
    number: int = 1
    # The reason why the series cannot be read, "" if it can.
    problem: str = ""

    @property
    def files(self) -> Sequence[Path]:
        """Return the files of the volume, in the order of their names."""
        return [image.path for image in self.images]

    @property
    def modality(self) -> str:
        """Return the modality, such as MR, or "unknown" if the header gives none."""
        return self.images[0].modality

    @property
    def place(self) -> str:
        """Return the file, or the folder and the description of the series, for messages."""
        if len(self.images) == 1:
            return str(self.images[0].path)
        folder, description = self.images[0].path.parent, self.images[0].description
        return f"{folder}: {description}" if description else str(folder)

    @property
    def notes(self) -> Sequence[str]:
        """Return remarks on how the volume is read, one line each."""
        notes, frames = [self._shear_note], self.group.frames
        if self.modality != "MR":
            notes.append(f"DICOM modality {self.modality}, not MR")
        if any(frame.spacing is None for frame in frames):
            notes.append("DICOM without a pixel spacing: no volume in millilitres")
        elif len(frames) == 1:
            notes.append("one DICOM slice: no volume in millilitres")
        formats = [image.form for image in self.images if image.form]
        if any(form.is_inverted for form in formats):
            notes.append("DICOM with inverted grey values (MONOCHROME1): read with dark as low")
        if any(form.padding for form in formats):
            notes.append("DICOM with padding outside the image: read as background")
        if len({path.parent for path in self.files}) > 1:
            notes.append("the DICOM series is spread over several folders")
        expected = self.images[0].images_in_acquisition
        is_series = len(frames) > 1 and not self.group.detail
        if is_series and expected.isdecimal() and len(frames) < int(expected):
            notes.append(
                f"{len(frames)} slices; the DICOM header says {expected} images in acquisition"
            )
        return [note for note in notes if note]

    @property
    def _shear_note(self) -> str:
        """Return a note on a tilted gantry, "" if slices are straight or cannot be read."""
        try:
            affine = self.grid.affine[:3, :3]
        except DataError:
            # The same error is raised when the volume is used.
            return ""
        tilt = shear_angle(affine[:, 2], np.cross(affine[:, 0], affine[:, 1]))
        if tilt < 0.5:
            return ""
        return f"DICOM slices are sheared by {tilt:.1f} degrees: read as stored, not resampled"

    @cached_property
    def _frames_and_grid(self) -> tuple[Sequence[Frame], Grid]:
        """Return the frames in their order along the normal, and their grid. Raises DataError."""
        for problem in (self.problem, self.group.problem):
            if problem:
                raise DataError(problem)
        if any(image.is_mosaic for image in self.images):
            rule = "a Siemens mosaic, which shows all slices as tiles of one image"
            raise DataError(f"{self.place}: {rule}. {CONVERT}")
        frames = self.group.frames
        check_volume((*frames[0].shape, len(frames)), self.place)
        return stack_frames(frames, self.place)

    @property
    def grid(self) -> Grid:
        """Return the grid, with i along the columns, j along the rows and k along the normal."""
        return self._frames_and_grid[1]

    def read(self) -> np.ndarray:
        """Return values (i, j, k), rescaled frame by frame. Raises DataError naming the file."""
        frames, grid = self._frames_and_grid
        slices = {frame: index for index, frame in enumerate(frames)}
        volume = np.empty(grid.shape[::-1], self._dtype)
        has_padding = any(image.form and image.form.padding for image in self.images)
        padding = np.zeros(volume.shape if has_padding else (0, 0, 0), bool)
        for image in self.images:
            chosen = [frame for frame in image.frames if frame in slices]
            try:
                with lenient_parsing():
                    dataset = read_pixels(image.path)
                    assert image.form is not None, "a file without pixels has a problem"
                    for frame, values, frame_padding in read_values(
                        image.path, dataset, image.form, chosen
                    ):
                        volume[slices[frame]] = values
                        if frame_padding is not None:
                            padding[slices[frame]] = frame_padding
            except DataError:
                raise
            except (OSError, *DECODE_ERRORS) as error:
                if isinstance(error, OSError) and error.strerror:
                    raise DataError(f"{image.path} cannot be read ({error.strerror})") from error
                raise DataError(f"{image.path}: its pixels cannot be decoded. {CONVERT}") from error
        if not np.isfinite(volume).all():
            count = int((~np.isfinite(volume)).sum())
            raise DataError(f"{self.place}: {count:,} voxels are NaN or infinite")
        if padding.any():
            # Padding becomes background, which is 0 or a lower measured value.
            measured = volume[~padding]
            volume[padding] = min(measured.min(), 0) if measured.size else 0
        return volume.transpose(2, 1, 0)

    @property
    def _dtype(self) -> np.dtype:
        """Return the type of all values, which is a float type if any frame is rescaled."""
        stored_type = np.result_type(*(image.form.dtype for image in self.images if image.form))
        if not any(frame.is_rescaled for frame in self.group.frames):
            return stored_type
        # A float32 holds integers of up to 24 bits exactly.
        is_small = stored_type.itemsize <= 2 or stored_type == np.float32
        return np.dtype(np.float32 if is_small else np.float64)


def find_series(folder: Path) -> tuple[list[DicomVolume], list[str]]:
    """Return the volumes of all DICOM series in or below `folder`, and one line per other file.

    Files of one folder that are ignored for the same reason share a line.

    Raises DataError for a folder that cannot be listed.
    """
    by_series: dict[tuple[str, ...], list[ImageFile]] = defaultdict(list)
    damaged, not_read = [], []
    for path in _files_below(folder):
        content = read_file(path)
        if isinstance(content, NonImageFile):
            not_read.append(content)
        elif content is not None and content.problem and not content.series[2]:
            damaged.append(content)
        elif content is not None:
            # Series without a UID are distinguished by their folders.
            by_series[content.series if content.series[2] else (str(path.parent),)].append(content)
    volumes = [
        volume for images in by_series.values() for volume in _volumes_of(images, folder, damaged)
    ]
    problems = [image.problem for image in damaged] + [volume.problem for volume in volumes]
    return volumes, [*_describe_ignored(not_read, folder), *dict.fromkeys(filter(None, problems))]


def open_file(path: Path, volume: int | None = None) -> DicomVolume:
    """Return the volume in a file, or the volume with this number, from 1, among several.

    Raises DataError for a file without an image, for several volumes if `volume` is None, and for a
    number that no volume has.
    """
    content = read_file(path)
    if content is None:
        raise DataError(f"{path} is no DICOM file")
    if isinstance(content, NonImageFile):
        raise DataError(f"{path} is {content.reason}, not an image of a scan")
    if content.problem:
        raise DataError(content.problem)
    volumes = _volumes_of([content], path.parent, [])
    if volume is None and len(volumes) > 1:
        details = "; ".join(
            f"{candidate.number}: {candidate.group.detail}" for candidate in volumes[:12]
        )
        details += "; ..." if len(volumes) > 12 else ""
        remedy = f"choose one with volume=N, from 1 to {len(volumes)}"
        raise DataError(f"{path} holds {len(volumes)} volumes ({details}); {remedy}")
    return volumes[volume_index(volume, len(volumes), path)]


def _files_below(folder: Path) -> list[Path]:
    """Return all regular files below `folder` in a fixed order. Raises DataError."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed ({error.strerror})") from error

    paths = []
    for parent, subfolders, names in os.walk(folder, onerror=refuse):
        # os.walk visits the subfolders in the order of this list.
        subfolders.sort()
        paths += [Path(parent) / name for name in sorted(names)]
    return [path for path in paths if path.is_file()]


def _volumes_of(
    images: Sequence[ImageFile], root: Path, damaged: Sequence[ImageFile]
) -> list[DicomVolume]:
    """Return the volumes of one series, with a problem if a damaged file may belong to it."""
    folders = {image.path.parent for image in images}
    candidates = [*images, *(image for image in damaged if image.path.parent in folders)]
    problem = next((image.problem for image in candidates if image.problem), "")
    instances = {frame: image.instance for image in images for frame in image.frames}
    try:
        groups = split_series(list(instances), instances) if not problem else [FrameGroup(())]
    except DataError as error:
        groups, problem = [FrameGroup(())], str(error)
    volumes = []
    for number, group in enumerate(groups, 1):
        paths = {frame.path for frame in group.frames}
        chosen = [image for image in images if image.path in paths or not paths]
        label = f"volume {number}" if len(groups) > 1 else ""
        names = _names(chosen, root, group.detail, label)
        volumes.append(DicomVolume(group, chosen, names, number, problem))
    return volumes


def _names(images: Sequence[ImageFile], root: Path, detail: str, label: str) -> list[str]:
    """Return the names of a volume: folders, file, description and detail, modality, UID."""
    first = images[0]
    folders = dict.fromkeys(os.path.relpath(image.path.parent, root) for image in images)
    names = [folder for folder in list(folders)[:4] if folder != "."]
    names += [first.path.name] if len(images) == 1 else []
    names += [", ".join(filter(None, (first.description, detail))), label]
    names += [first.modality if first.modality != "MR" else "", first.series[2]]
    return [name if name.isprintable() else ascii(name) for name in names if name]


def _describe_ignored(not_read: Sequence[NonImageFile], root: Path) -> list[str]:
    """Return one line for all files of a folder that are ignored for the same reason."""
    by_reason = defaultdict(list)
    for file in not_read:
        by_reason[file.path.parent, file.reason].append(os.path.relpath(file.path, root))
    lines = []
    for (_, reason), names in by_reason.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"{names[0]}{more}: {reason}")
    return lines
