"""Resampling of a volume onto the grid of another, with SimpleITK."""

from typing import Any

import numpy as np
from nibabel import orientations
from nibabel.affines import apply_affine

from brainseg.data.imageio.grid import AXIAL, Grid

# ITK's axes point to the left, to the back and to the head.
TO_LPS = np.diag([-1.0, -1.0, 1.0])


def axial_grid(grid: Grid) -> Grid:
    """Return the grid of the axial slices (S, H, W) that `grid.to_axial` returns."""
    transform = orientations.ornt_transform(grid.orientation, AXIAL)
    order = np.argsort(transform[:, 0])
    i, j, k = (grid.shape[axis] for axis in order)
    return Grid((i, j, k), grid.affine @ orientations.inv_ornt_aff(transform, grid.shape))


def resample_onto(
    volume: np.ndarray, source: Grid, target: Grid, nearest: bool = False
) -> np.ndarray:
    """Return a volume (i, j, k) of grid `source` on grid `target`, linear unless `nearest`.

    Voxels outside of the source are zero. Integers are rounded and keep their type.
    """
    import SimpleITK as sitk

    resampler = sitk.ResampleImageFilter()
    # Worker processes are forked, and ITK's pool of threads does not survive a fork.
    resampler.SetNumberOfThreads(1)
    resampler.SetReferenceImage(_image(np.zeros(target.shape, np.uint8), target))
    resampler.SetInterpolator(sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear)
    image = _image(volume if nearest else volume.astype(np.float32), source)
    resampled = sitk.GetArrayFromImage(resampler.Execute(image)).transpose()
    if not nearest and volume.dtype.kind in "ui":
        resampled = np.rint(resampled)
    return resampled if volume.dtype.kind == "f" else resampled.astype(volume.dtype)


def count_outside(indices: np.ndarray, source: Grid, target: Grid) -> int:
    """Return the number of nonzero voxels of `source` whose centres lie outside of `target`."""
    to_target = np.linalg.inv(target.affine) @ source.affine
    voxels = apply_affine(to_target, np.argwhere(indices))
    # A voxel extends half a side from its centre.
    inside = (voxels >= -0.5) & (voxels <= np.array(target.shape) - 0.5)
    return int((~inside.all(axis=1)).sum())


def _image(volume: np.ndarray, grid: Grid) -> Any:
    """Return a SimpleITK image of a volume (i, j, k)."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.transpose()))
    image.SetSpacing(grid.spacing)
    image.SetDirection((TO_LPS @ grid.affine[:3, :3] / grid.spacing).ravel().tolist())
    image.SetOrigin((TO_LPS @ grid.affine[:3, 3]).tolist())
    return image
