"""Choice of the reader of an image file by the file's first bytes and its name.

To add a format, write a subclass of `ImageVolume`, and add a branch to `open_image`.
"""

from pathlib import Path

from brainseg.core.errors import DataError
from brainseg.data.imageio import dicom, first_bytes, mgh, nifti, nifti_header, simpleitk
from brainseg.data.imageio.base import ImageVolume
from brainseg.data.imageio.streams import check_length, read_start

METAIMAGE, NRRD, MGH = (".mha", ".mhd"), (".nrrd", ".nhdr"), (".mgh", ".mgz", ".mgh.gz")
# Suffixes of the image files in a folder. The header of a pair stands for both files.
SUFFIXES = (".nii", ".nii.gz", ".nii.bz2", ".hdr", ".hdr.gz", *METAIMAGE, *NRRD, *MGH)
READ = "read are NIfTI, DICOM, NRRD, MetaImage, MGZ and TIFF"


def open_image(path: str | Path, volume: int | None = None) -> ImageVolume:
    """Return the image in a file, without reading its voxels.

    `volume` is the number, from 1, of the volume to read from a file that holds several. Raises
    DataError naming the file if there is no such file, or if no reader knows its content.
    """
    path = Path(path)
    start, name = read_start(path, 540), path.name.lower()
    if not start:
        raise DataError(f"{path}: is empty; copy or download it again")
    if nifti_header.header_class_of(start):
        return nifti.NiftiVolume(path, volume)
    if start[128:132] == b"DICM":
        return dicom.open_file(path, volume)
    if start[:4] == b"NRRD":
        return simpleitk.ItkVolume(path, simpleitk.NRRD, volume)
    if name.endswith(METAIMAGE):
        return simpleitk.ItkVolume(path, simpleitk.METAIMAGE, volume)
    if name.endswith(MGH):
        return mgh.MghVolume(path, volume)
    if name.endswith(".img") and nifti_header.has_header_beside(path):
        return nifti.NiftiVolume(path, volume)
    if start[:4] in first_bytes.TIFF:
        raise DataError(
            f"{path}: a TIFF file, which has no position in the patient; save it as NIfTI"
        )
    kind, remedy = first_bytes.unreadable_reason(path, start)
    if kind:
        raise DataError(f"{path}: this format is not read ({kind}); {remedy}")
    if start[:4] in first_bytes.ANALYZE:
        raise DataError(f"{path}: truncated within its header; copy or download it again")
    if nifti_header.has_suffix(path):
        # The first bytes of a damaged compressed file may be anything. Unpacking shows the damage.
        check_length(path, 1)
        raise DataError(f"{path}: not a NIfTI file, whatever its name says; {READ}")
    if name.endswith(NRRD):
        raise DataError(f"{path}: not an NRRD file, whatever its name says; {READ}")
    # Old DICOM files have no mark at byte 128, so any other file may be DICOM.
    return dicom.open_file(path, volume)
