"""First bytes of files, and the formats that are recognised by them but not read."""

from pathlib import Path

# Place in the file, bytes at this place, name of the format, remedy.
UNREADABLE = (
    (0, b"CDF", "MINC", "convert it to NIfTI with mnc2nii or nibabel"),
    (
        0,
        b"\x89HDF\r\n\x1a\n",
        "HDF5",
        "save one sequence as NIfTI, for example with h5py and nibabel",
    ),
    (
        0,
        b"\x93NUMPY",
        "a NumPy array without a position",
        "give it to brainseg.segment, or save it as NIfTI",
    ),
    (0, b"PK", "a zip archive", "unpack it, and give what is in it"),
    (0, b"MATLAB 5.0", "MATLAB", "save one sequence as NIfTI, with niftiwrite or nibabel"),
    (
        0,
        b"\x89PNG",
        "PNG, a single picture",
        "save the slices as one TIFF stack, or the scan as NIfTI",
    ),
    (
        0,
        b"\xff\xd8\xff",
        "JPEG, a single picture",
        "save the slices as one TIFF stack, or the scan as NIfTI",
    ),
    (0, b"GIF8", "GIF, a picture", "save the slices as one TIFF stack, or the scan as NIfTI"),
    (0, b"BM", "BMP, a single picture", "save the slices as one TIFF stack, or the scan as NIfTI"),
    (0, b"%PDF", "PDF", "give the scan itself, as DICOM or NIfTI"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it, and give what is in it"),
    (0, b"Rar!", "a RAR archive", "unpack it, and give what is in it"),
    (257, b"ustar", "a tar archive", "unpack it, and give what is in it"),
    (0, b"\x28\xb5\x2f\xfd", "packed with zstd", "unpack it with unzstd"),
    (0, b"\xfd7zXZ", "packed with xz", "unpack it with unxz"),
)
BY_SUFFIX = {
    ".mnc": ("MINC", "convert it to NIfTI with mnc2nii or nibabel"),
    ".mat": ("MATLAB", "save one sequence as NIfTI, with niftiwrite or nibabel"),
    ".npz": (
        "NumPy arrays without a position",
        "give one to brainseg.segment, or save it as NIfTI",
    ),
    ".pt": ("weights of a network", "give them as checkpoint, and a scan as input"),
    ".par": ("Philips PAR/REC", "convert it to NIfTI with dcm2niix or nibabel"),
    ".rec": ("Philips PAR/REC", "convert it to NIfTI with dcm2niix or nibabel"),
    ".head": ("AFNI", "convert it to NIfTI with 3dAFNItoNIFTI"),
    ".brik": ("AFNI", "convert it to NIfTI with 3dAFNItoNIFTI"),
    ".mif": ("MRtrix", "convert it to NIfTI with mrconvert"),
    ".mih": ("MRtrix", "convert it to NIfTI with mrconvert"),
    ".v": ("ECAT", "convert it to NIfTI with nibabel"),
    ".vtk": ("VTK", "save it as NIfTI or MetaImage"),
}
# MINC 2 and MATLAB 7.3 are HDF5 files; weights and NumPy's archives are zip archives.
CONTAINERS = ("HDF5", "a zip archive")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# The length of the header, 348, in both byte orders.
ANALYZE = (b"\x5c\x01\0\0", b"\0\0\x01\x5c")


def unreadable_reason(path: Path, start: bytes) -> tuple[str, str]:
    """Return the name of a file's unreadable format and the remedy, "" and "" if it is unknown."""
    for offset, mark, name, remedy in UNREADABLE:
        if start[offset : offset + len(mark)] == mark:
            # The suffix tells which format is stored in a container.
            if name in CONTAINERS:
                return BY_SUFFIX.get(path.suffix.lower(), (name, remedy))
            return name, remedy
    if start[:4] in ANALYZE and len(start) >= 348:
        return (
            "Analyze 7.5, which does not distinguish left from right",
            "convert it to NIfTI with nibabel, and check the sides",
        )
    name, remedy = BY_SUFFIX.get(path.suffix.lower(), ("", ""))
    return name, remedy
