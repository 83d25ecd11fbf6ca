"""Cohorts of DICOM series, one case per patient, grouped by PatientID and StudyInstanceUID."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from brainseg.core.errors import DataError, RequestError, check
from brainseg.data.cases.assignment import assign_channels
from brainseg.data.cases.cohort import check_name, refuse_faulty
from brainseg.data.cases.cohort_case import FaultyCase
from brainseg.data.cases.input_case import InputCase, make_case
from brainseg.data.imageio.base import ImageVolume
from brainseg.data.imageio.dicom import DicomVolume

ListImages = Callable[[Path], tuple[list[ImageVolume], list[str]]]


def find_patients(
    path: Path,
    images: Sequence[ImageVolume],
    sequences: Mapping[str, str],
    channels: Sequence[str],
    list_images: ListImages,
) -> list[InputCase]:
    """Return one case per patient of the DICOM series below `path`, an empty list for one patient.

    `list_images` returns the images in a folder, and one line per ignored file or group of files.
    Raises RequestError if several patients share a folder, or if no patient can be read.
    """
    groups: dict[tuple[str, ...], list[DicomVolume]] = {}
    for image in images:
        if isinstance(image, DicomVolume):
            groups.setdefault(image.images[0].series[:2], []).append(image)
    if len(groups) < 2:
        return []
    # Some tools give each series of a study a new study UID. The series of one patient are then
    # one case if their names show which is which.
    is_one_patient = len({patient for patient, *_ in groups}) == 1
    if (sequences or is_one_patient) and _is_assigned(path, images, sequences, channels):
        return []
    cases = [
        _make_input_case(folder, sequences, channels, list_images)
        for folder in _folders_of(path, list(groups.values()))
    ]
    refuse_faulty(path, cases)
    return cases


def _is_assigned(
    path: Path, images: Sequence[ImageVolume], sequences: Mapping[str, str], channels: Sequence[str]
) -> bool:
    """Return True if the sequence of every series is clear."""
    try:
        assign_channels(str(path), images, sequences, channels)
    except RequestError:
        return False
    return True


def _folders_of(path: Path, groups: Sequence[Sequence[DicomVolume]]) -> list[Path]:
    """Return the subfolder of each group. Raises RequestError if two groups share a subfolder."""
    folders = [
        {Path(os.path.relpath(file, path)).parts[0] for volume in group for file in volume.files}
        for group in groups
    ]
    names = [name for group in folders for name in group]
    has_own_folders = len(set(names)) == len(names) == len(groups)
    has_own_folders = has_own_folders and all((path / name).is_dir() for name in names)
    rule = f"holds {len(groups)} patients or studies by its DICOM headers, which share folders"
    check(
        has_own_folders,
        "input",
        path,
        rule,
        "move each patient or study into a subfolder of its own, or give the folder of one",
    )
    return [path / name for name in sorted(names)]


def _make_input_case(
    folder: Path, sequences: Mapping[str, str], channels: Sequence[str], list_images: ListImages
) -> InputCase:
    """Return the case in one patient's folder, a `FaultyCase` if its series cannot be assigned."""
    check_name(folder.name)
    # The headers are read once more, so that each case lists only the ignored files of its folder.
    images, ignored = list_images(folder)
    try:
        case = make_case(
            folder.name, assign_channels(str(folder), images, sequences, channels), channels
        )
    except (DataError, RequestError) as error:
        return FaultyCase(folder.name, channels, str(error), {"": images[0].files[0]})
    case.notes = [*case.notes, *(f"ignored: {line}" for line in ignored)]
    return case
