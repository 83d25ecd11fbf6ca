"""Writer of masks and probabilities as NIfTI on the grid of the source."""

import gzip
from pathlib import Path

import nibabel
import numpy as np

from brainseg.core.files import writing
from brainseg.data.imageio.grid import Grid
from brainseg.data.imageio.nifti_header import Header


def write_nifti(path: Path, voxels: np.ndarray, grid: Grid, source: Header | None = None) -> Path:
    """Write an array (i, j, k) as .nii.gz on the grid of its source, and return the path.

    `source` is the header of a NIfTI file. The codes, matrices and units of its sform and qform are
    copied unchanged. Without it, sform and qform hold the grid's affine. Raises OSError.
    """
    header = nibabel.Nifti1Header() if source is None else _copy_of(source)
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(voxels.dtype)
    if source is None:
        _set_forms(header, grid)
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    padding = bytes(int(header.single_vox_offset) - header.sizeof_hdr)
    little_endian = voxels.astype(voxels.dtype.newbyteorder("<"), copy=False)
    content = header.binaryblock + padding + little_endian.tobytes(order="F")
    with writing(path) as temporary:
        # mtime=0 leaves the time out, so the file's bytes depend on header and voxels alone.
        temporary.write_bytes(gzip.compress(content, 6, mtime=0))
    return path


def _copy_of(source: Header) -> Header:
    """Return a little-endian header of a single file with the position and units of `source`."""
    single = nibabel.Nifti2Header if source.sizeof_hdr == 540 else nibabel.Nifti1Header
    swapped = source.as_byteswapped("<")
    header, blank = single(swapped.binaryblock, "<", check=False), single(endianness="<")
    # These fields describe the values of the source, not the values of a mask.
    for field in (
        "scl_slope",
        "scl_inter",
        "cal_max",
        "cal_min",
        "intent_code",
        "intent_name",
        "intent_p1",
        "intent_p2",
        "intent_p3",
        "descrip",
        "aux_file",
        "dim_info",
    ):
        header[field] = blank[field]
    header["descrip"] = b"brainseg"
    return header


def _set_forms(header: Header, grid: Grid) -> None:
    """Set sform and qform to the grid."""
    header.set_xyzt_units("mm")
    code = 1 if grid.orientation_known else 0
    header.set_sform(grid.affine, code=code)
    axes = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    if np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        header.set_qform(grid.affine, code=code)
    else:
        # A qform is a rotation and cannot represent a sheared grid.
        header.set_zooms(grid.spacing)
        header["qform_code"] = 0
