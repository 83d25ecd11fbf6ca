"""Headers of NIfTI-1 and NIfTI-2, and the two files of a pair of .hdr and .img."""

from pathlib import Path

import nibabel
from nibabel.wrapstruct import WrapStructError

from brainseg.core.errors import DataError
from brainseg.data.imageio.streams import read_start

# Headers of NIfTI-2 are a subclass.
Header = nibabel.Nifti1Header
PAIR = {".hdr": ".img", ".img": ".hdr"}


def read_header(path: Path) -> Header:
    """Return the header of a NIfTI-1 or NIfTI-2 file, without any correction. Raises DataError."""
    start = read_start(path, 540)
    header_class = header_class_of(start)
    if header_class is None:
        raise DataError(f"{path}: not a NIfTI file; its first bytes are no NIfTI header")
    try:
        return header_class(start[: header_class.sizeof_hdr], check=False)
    except WrapStructError as error:
        raise DataError(
            f"{path}: truncated within its header; copy or download it again"
        ) from error


def header_class_of(start: bytes) -> type[Header] | None:
    """Return the header class of a file with these first bytes, None if it is no NIfTI file."""
    if start[344:347] in (b"n+1", b"ni1"):
        return nibabel.Nifti1Header
    if start[4:7] in (b"n+2", b"ni2"):
        return nibabel.Nifti2Header
    return None


def has_suffix(path: Path) -> bool:
    """Return True if a file has the suffix of NIfTI in any case, compressed or not."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".bz2")
    return name.endswith((".nii", *PAIR))


def has_header_beside(path: Path) -> bool:
    """Return True if an .img file has a NIfTI header beside it."""
    try:
        return header_class_of(read_start(partner(path), 540)) is not None
    except DataError:
        return False


def pair_suffix(path: Path) -> str:
    """Return .hdr or .img in lower case, also for .hdr.gz, and "" for a single file."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".bz2")
    return name[-4:] if name[-4:] in PAIR else ""


def partner(path: Path) -> Path:
    """Return the other file of a pair, with its suffix in any case. Raises DataError."""
    stem = path.name[: path.name.lower().rindex(pair_suffix(path))]
    partner_name = stem + PAIR[pair_suffix(path)]
    for other in sorted(path.parent.iterdir()):
        if other.name.lower().removesuffix(".gz").removesuffix(".bz2") == partner_name.lower():
            return other
    raise DataError(f"{path}: the other half of the pair, {partner_name}, is not beside it")
