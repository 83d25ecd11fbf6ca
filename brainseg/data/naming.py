"""Names of system files, images and slices in a cohort."""

import re
from pathlib import Path

# Finder, Explorer, archivers and network drives create these in every folder. Reports leave them
# out, because no user created them.
SYSTEM = (
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "__macosx",
    "$recycle.bin",
    "system volume information",
    "@eadir",
)
IMAGES = (
    ".tif",
    ".tiff",
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".gif",
    ".webp",
    ".dcm",
    ".nii",
    ".nii.gz",
    ".nrrd",
    ".mha",
    ".npy",
)
SLICE = re.compile(r"(?P<volume>.+)_(?P<number>[0-9]+)(?P<mask>_mask)?\.tiff?", re.IGNORECASE)


def is_system(name: str) -> bool:
    """Return True for hidden files and folders and for those of an operating system."""
    return name.startswith(".") or name.casefold() in SYSTEM


def is_image(name: str) -> bool:
    """Return True if the file name has the suffix of an image format."""
    return name.casefold().endswith(IMAGES)


def printable(name: str) -> str:
    r"""Return a printable form of the name.

    Bytes that are not UTF-8 become escapes such as `\udcfc`.
    """
    return name if name.isprintable() else ascii(name)


def describe_misnamed(folder: Path, names: list[str], has_slices: bool) -> list[str]:
    """Return a fault for each misnamed image, or one fault if all bear another folder's name.

    `names` are the images of the folder whose name does not match the folder. `has_slices` is True
    if the folder also contains images with matching names.
    """
    if not names:
        return []
    matches = [SLICE.fullmatch(name) for name in names]
    prefixes = {match["volume"] if match else "" for match in matches}
    if not has_slices and len(prefixes) == 1 and "" not in prefixes:
        (prefix,) = prefixes
        remedy = f"rename the folder to {prefix}, or the files after the folder"
        if (folder.parent / prefix).exists():
            remedy = (
                f"the folder {prefix} is there too: remove the copy, or rename its files after "
                "the folder"
            )
        return [
            f"{folder.name}: its images are named {printable(prefix)}_<number>.tif, not "
            f"after the folder; {printable(remedy)}"
        ]
    rule = (
        f"an image that is named neither {folder.name}_<number>.tif nor "
        f"{folder.name}_<number>_mask.tif"
    )
    return [
        f"{folder.name}/{printable(name)}: {rule}; rename it, or move it out of the source"
        for name in names
    ]
