"""Recognition of a source's layout by the names of its files, which are not opened."""

from collections import Counter
from pathlib import Path

from brainseg.core.errors import RequestError
from brainseg.data.folder import Folder
from brainseg.data.naming import printable
from brainseg.data.readers import bids, brats, nnunet
from brainseg.data.readers.base import Reading
from brainseg.data.readers.guess import guess_patterns
from brainseg.data.readers.patterns import IMAGE_SUFFIXES, list_files, suffix_of
from brainseg.data.tree import Tree, collect_folders

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
NIFTI = "reader=nifti sequences.FLAIR='*_flair.nii.gz' mask='*_seg.nii.gz'"
IMAGES = "reader=images images='images/{patient}_{slice}.png' mask='masks/{patient}_{slice}.png'"
DICOM = "convert the DICOM series to NIfTI, as with dcm2niix, and use reader=nifti"


def recognise_layout(source: Path, reading: Reading | None = None) -> str:
    """Return the name of the reader that fits a source and the settings.

    The setting `images`, for example, belongs to one reader. Raises RequestError, with a summary of
    the files, if no reader fits.
    """
    reading = reading or Reading()
    if is_kaggle(source):
        return "kaggle_3m"
    if nnunet.is_dataset(source):
        return "nnunet"
    if reading.images is not None:
        return "images"
    if reading.sequences:
        pictures = [
            text for text in map(str, reading.sequences.values()) if text.lower().endswith(PICTURES)
        ]
        return "images" if pictures else "bids" if bids.is_dataset(source) else "nifti"
    if bids.is_dataset(source):
        return "bids"
    if brats.is_dataset(source):
        return "brats"
    paths = list_files(source)
    if guess_patterns([path for path in paths if path.lower().endswith(IMAGE_SUFFIXES)])[0]:
        return "nifti"
    # The report of kaggle_3m shows how the names of slices differ from those of the public set.
    if any(path.lower().endswith((".tif", ".tiff")) for path in paths):
        return "kaggle_3m"
    raise RequestError(f"source={source}: no patient found: {_describe(paths)}")


def is_kaggle(source: Path) -> bool:
    """Return True if a folder holds a slice with its own name, or the source cannot be listed."""
    top, tree = Folder(source), Tree()
    collect_folders(top, top, tree)
    return bool(tree.patients or top.faults)


def _describe(paths: list[str]) -> str:
    """Return a summary of a source's files, and the settings that would read them, in one line."""
    if not paths:
        return "the folder holds no files; name the folder that holds the patients"
    counts = Counter(suffix_of(path) for path in paths)
    kinds = ", ".join(
        f"{count} {suffix or 'without a suffix'}" for suffix, count in counts.most_common(4)
    )
    examples = ", ".join(map(printable, paths[:3]))
    text = f"its layout is not recognised; it holds {kinds}, such as {examples}"
    return f"{text}; {_remedy(paths)}"


def _remedy(paths: list[str]) -> str:
    """Return the settings that would read the most frequent kind of file."""
    volumes = sum(path.lower().endswith(IMAGE_SUFFIXES) for path in paths)
    pictures = sum(path.lower().endswith(PICTURES) for path in paths)
    dicom = sum(path.lower().endswith((".dcm", ".ima")) for path in paths)
    best = max(volumes, pictures, dicom)
    if not best:
        return "docs/own_data.md lists the layouts that are read"
    if best == dicom:
        return DICOM
    return f"give patterns, as {NIFTI if best == volumes else IMAGES}"
