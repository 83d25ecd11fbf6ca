"""Patients of a folder of DICOM series, a study each, told apart by PatientID and StudyInstanceUID."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from brainseg.core.errors import DataError, RequestError, check
from brainseg.data.cases.assignment import assign
from brainseg.data.cases.case_study import FaultyCase
from brainseg.data.cases.cohort import check_name, refuse_faulty
from brainseg.data.cases.study import InputCase, make_case
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
    """Return a study per patient of the DICOM series below `path`, an empty list for one patient.

    `list_images` returns the images in a folder, and lines on what is left aside. Raises
    RequestError if the folders do not tell the patients apart, or if no patient can be read.
    """
    groups: dict[tuple[str, ...], list[DicomVolume]] = {}
    for image in images:
        if isinstance(image, DicomVolume):
            groups.setdefault(image.images[0].series[:2], []).append(image)
    if len(groups) < 2:
        return []
    # Some tools replace the study's UID series by series: then one patient's names must be clear.
    is_one_patient = len({patient for patient, *_ in groups}) == 1
    if (sequences or is_one_patient) and _is_assigned(path, images, sequences, channels):
        return []
    studies = [
        _study_of(folder, sequences, channels, list_images)
        for folder in _folders_of(path, list(groups.values()))
    ]
    refuse_faulty(path, studies)
    return studies


def _is_assigned(
    path: Path, images: Sequence[ImageVolume], sequences: Mapping[str, str], channels: Sequence[str]
) -> bool:
    """Return True if it is clear which of all series is which sequence."""
    try:
        assign(str(path), images, sequences, channels)
    except RequestError:
        return False
    return True


def _folders_of(path: Path, groups: Sequence[Sequence[DicomVolume]]) -> list[Path]:
    """Return the subfolder of each group. Raises RequestError unless each has one of its own."""
    folders = [
        {Path(os.path.relpath(file, path)).parts[0] for each in group for file in each.files}
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
        "give each a subfolder of its own, or give one of them",
    )
    return [path / name for name in sorted(names)]


def _study_of(
    folder: Path, sequences: Mapping[str, str], channels: Sequence[str], list_images: ListImages
) -> InputCase:
    """Return the study of one patient's folder, a `FaultyCase` if it cannot be assigned."""
    check_name(folder.name)
    # The headers are read once more, so that each patient has its own lines on other files.
    images, left_aside = list_images(folder)
    try:
        study = make_case(folder.name, assign(str(folder), images, sequences, channels), channels)
    except (DataError, RequestError) as error:
        return FaultyCase(folder.name, channels, str(error), {"": images[0].files[0]})
    study.notes = [*study.notes, *(f"left aside: {line}" for line in left_aside)]
    return study
