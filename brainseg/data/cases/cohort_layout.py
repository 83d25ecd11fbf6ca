"""Recognition of the cohorts that `predict` reads, by names alone.

A folder of one patient is no cohort: its files are told apart by `assignment`.
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

    Raises RequestError for a dataset that is incomplete, OSError for a folder that cannot be listed.
    """
    root, part = _nnunet_part(path)
    if part and not sequences:
        return nnunet.make(root, Reading(), part)
    paths = list_files(path, IMAGE_SUFFIXES)
    # Files that lie in the folder itself can be those of one patient.
    has_direct_files = any("/" not in each for each in paths)
    if sequences:
        return _by_patterns(path, paths, sequences, has_direct_files)
    if bids.is_dataset(path):
        return bids.make(path, Reading(), keeps_rare=True)
    if brats.is_dataset(path):
        reader = brats.make(path, Reading())
        return reader if len(reader.cases) > 1 or not has_direct_files else None
    return _by_guess(path, paths, channels[main_channel(channels)], has_direct_files)


def _nnunet_part(path: Path) -> tuple[Path, str]:
    """Return the folder of dataset.json, and "Ts" or "Tr", "" for another layout.

    Of a whole dataset the images to predict are those of imagesTs, where there are any.
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
    """Return the reader of the patterns that `sequences` holds, None if they name series."""
    texts = list(sequences.values())
    # A DICOM description may hold a star, too, as T2* does: then no image files lie there.
    has_wildcards = bool(paths) and any(sign in text for text in texts for sign in "*?{")
    # FLAIR.nii.gz names a file in each patient's folder where no file lies beside those folders.
    are_files = bool(paths) and not has_direct_files
    are_files = are_files and all(text.lower().endswith(IMAGE_SUFFIXES) for text in texts)
    if not has_wildcards and not are_files:
        return None
    if bids.is_dataset(path):
        return bids.make(path, Reading(sequences=sequences), keeps_rare=True)
    return _reader_of(path, sequences, guess_patterns(paths, needs_mask=False)[1])


def _by_guess(
    path: Path, paths: Sequence[str], main: str, has_direct_files: bool
) -> CaseReader | None:
    """Return the reader of patterns that the files' last words give, None if they are not clear."""
    patterns, mask = guess_patterns(paths, needs_mask=False)
    texts = [*patterns.values(), *([mask] if mask else [])]
    if not patterns or (has_direct_files and not all("*" in text for text in texts)):
        return None
    reader = _reader_of(path, patterns, mask)
    numbers = [len(case.images) + (case.mask is not None) for case in reader.cases]
    # Files of one patient, such as axial_flair and sagittal_t1, share no word that names a case.
    if has_direct_files:
        has_main = all(main in case.images for case in reader.cases)
        return reader if len(numbers) > 1 and min(numbers) > 1 and has_main else None
    # A folder per sequence, as flair/flair.nii.gz and t1/t1.nii.gz, is no folder per patient.
    if len(patterns) > 1 and max(numbers) == 1:
        return None
    return None if len(numbers) == 1 and find_series(path)[0] else reader


def _reader_of(path: Path, patterns: Mapping[str, str], mask: str | None) -> CaseReader:
    cases, _ = nifti.find_cases(path, patterns, mask)
    # A mask without images is no case to segment.
    return CaseReader([case for case in cases if case.images], tuple(patterns))
