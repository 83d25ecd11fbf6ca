"""Recognition of the layout of a cohort for `predict`, by names alone.

A folder of one patient is no cohort. Its files are assigned to channels by `assignment`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from brainseg.data.imageio.dicom import find_series
from brainseg.data.readers import bids, brats, nifti, nnunet
from brainseg.data.readers.base import Reading
from brainseg.data.readers.case import CaseReader
from brainseg.data.readers.guess import guess_patterns
from brainseg.data.readers.patterns import IMAGE_SUFFIXES, list_files
from brainseg.data.volume import main_channel


def find_reader(
    path: Path, sequences: Mapping[str, str], channels: Sequence[str]
) -> CaseReader | None:
    """Return the reader that lists the cohort below `path`, None if it holds no cohort.

    Raises RequestError for an incomplete dataset, and OSError for a folder that cannot be listed.
    """
    root, part = _nnunet_part(path)
    if part and not sequences:
        return nnunet.make_reader(root, Reading(), part)
    paths = list_files(path, IMAGE_SUFFIXES)
    # Files that lie directly in the folder can belong to a single patient.
    has_direct_files = any("/" not in file for file in paths)
    if sequences:
        return _by_patterns(path, paths, sequences, has_direct_files)
    if bids.is_dataset(path):
        return bids.make_reader(path, Reading(), keeps_rare=True)
    if brats.is_dataset(path):
        reader = brats.make_reader(path, Reading())
        return reader if len(reader.cases) > 1 or not has_direct_files else None
    return _by_guess(path, paths, channels[main_channel(channels)], has_direct_files)


def _nnunet_part(path: Path) -> tuple[Path, str]:
    """Return the folder of dataset.json and "Ts" or "Tr", or "" for another layout.

    For a whole dataset, the images to predict are those in imagesTs, if there are any.
    """
    path = path if path.name else path.absolute()
    if path.name in ("imagesTs", "imagesTr") and (path.parent / nnunet.DESCRIPTION).is_file():
        return path.parent, path.name[-2:]
    if (path / nnunet.DESCRIPTION).is_file():
        for part in ("Ts", "Tr"):
            folder = path / f"images{part}"
            if folder.is_dir() and list_files(folder):
                return path, part
    return path, ""


def _by_patterns(
    path: Path, paths: Sequence[str], sequences: Mapping[str, str], has_direct_files: bool
) -> CaseReader | None:
    """Return a reader for the patterns in `sequences`, None if these name series."""
    texts = list(sequences.values())
    # The description of a DICOM series may contain a star, as T2* does. Such a folder holds no
    # image files of other formats.
    has_wildcards = bool(paths) and any(sign in text for text in texts for sign in "*?{")
    # FLAIR.nii.gz names a file in each patient's folder where no file lies beside those folders.
    are_files = bool(paths) and not has_direct_files
    are_files = are_files and all(text.lower().endswith(IMAGE_SUFFIXES) for text in texts)
    if not has_wildcards and not are_files:
        return None
    if bids.is_dataset(path):
        return bids.make_reader(path, Reading(sequences=sequences), keeps_rare=True)
    return _make_reader(path, sequences, guess_patterns(paths, needs_mask=False)[1])


def _by_guess(
    path: Path, paths: Sequence[str], main: str, has_direct_files: bool
) -> CaseReader | None:
    """Return a reader for patterns guessed from the files' last words, None if unclear."""
    patterns, mask = guess_patterns(paths, needs_mask=False)
    texts = [*patterns.values(), *([mask] if mask else [])]
    if not patterns or (has_direct_files and not all("*" in text for text in texts)):
        return None
    reader = _make_reader(path, patterns, mask)
    file_counts = [len(case.images) + (case.mask is not None) for case in reader.cases]
    # Files of one patient, such as axial_flair and sagittal_t1, share no word that names a case.
    if has_direct_files:
        has_main = all(main in case.images for case in reader.cases)
        return reader if len(file_counts) > 1 and min(file_counts) > 1 and has_main else None
    # Folders such as flair/flair.nii.gz and t1/t1.nii.gz belong to sequences, not to patients.
    if len(patterns) > 1 and max(file_counts) == 1:
        return None
    return None if len(file_counts) == 1 and find_series(path)[0] else reader


def _make_reader(path: Path, patterns: Mapping[str, str], mask: str | None) -> CaseReader:
    """Return a reader of the cases with at least one image that the patterns match."""
    cases, _ = nifti.find_cases(path, patterns, mask)
    # A mask without images is no case to segment.
    return CaseReader([case for case in cases if case.images], tuple(patterns))
