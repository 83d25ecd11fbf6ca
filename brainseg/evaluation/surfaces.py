"""Distances between the surfaces of two masks: HD95 and the normalised surface Dice (NSD).

Nikolov et al. 2021, "Clinically applicable segmentation of head and neck anatomy", JMIR 23(7). The
length of a surface is its number of edge voxels, as in MONAI's `compute_surface_dice` without
subvoxels, with which the tests compare. MONAI itself is not used here, because its import takes
several seconds at the end of each run.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Distance up to which an edge voxel counts as correct, in mm, or in pixels without a spacing.
TOLERANCE = 2.0
# In plane the slices are this far apart, so that the nearest edge pixel lies in the same slice
# wherever that slice has any.
FAR = 1e9


class SurfaceScores(NamedTuple):
    """The scores of the surfaces of a predicted and a true mask."""

    # 95th percentile of the distances within slices, in mm or pixels. NaN if no slice has both.
    hd95: float
    # Share of the edge voxels of both masks within `TOLERANCE` of the other mask's edge.
    nsd: float
    # 95th percentile of the distances in 3-D, in mm. NaN for an empty mask or an unknown spacing.
    hd95_3d: float


def score_surfaces(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float] | None = None
) -> SurfaceScores:
    """Return the surface scores of bool (S, H, W), with `spacing` (z, y, x) in mm.

    If the spacing is known, NSD is measured in 3-D. If it is None or has a NaN, NSD is measured
    within slices, and an edge pixel in a slice where the other mask is empty counts as wrong. NSD
    is 1 if both masks are empty, and 0 if one of them is.

    HD95 is the larger of the two directions' 95th percentiles (Huttenlocher et al. 1993 with
    percentile). In plane it is pooled over the slices where both masks are non-empty, and for a
    single slice it equals MONAI's `compute_hausdorff_distance`. An edge voxel has one of its
    neighbours by face outside the mask, or lies on the image's border.
    """
    if not prediction.any() or not truth.any():
        return SurfaceScores(math.nan, float(prediction.any() == truth.any()), math.nan)
    masks = np.stack([prediction, truth])
    # The cost of erosion grows with the volume, so the masks are cropped to their bounding box.
    extents = [np.flatnonzero(masks.any(axis=axes)) for axes in ((0, 2, 3), (0, 1, 3), (0, 1, 2))]
    masks = masks[:, *(slice(extent[0], extent[-1] + 1) for extent in extents)]
    sides = np.full(3, math.nan) if spacing is None else np.asarray(spacing, np.float64)
    in_plane = sides[1:] if np.isfinite(sides[1:]).all() else np.ones(2)
    distances = _surface_distances(masks, (FAR, *in_plane), is_3d=False)
    hd95 = _percentile95([part[part < FAR / 2] for part in distances])
    if not np.isfinite(sides).all():
        return SurfaceScores(hd95, _share_within_tolerance(distances), math.nan)
    distances = _surface_distances(masks, sides, is_3d=True)
    return SurfaceScores(hd95, _share_within_tolerance(distances), _percentile95(distances))


def _surface_distances(
    masks: np.ndarray, spacing: Sequence[float] | np.ndarray, is_3d: bool
) -> list[np.ndarray]:
    """Return the distances of the edge voxels of either mask to the nearest edge of the other.

    `masks` (2, S, H, W) are the prediction and the truth. The edges are those of a volume, or those
    of each slice.
    """
    from scipy.ndimage import binary_erosion, generate_binary_structure
    from scipy.spatial import KDTree

    neighbours = generate_binary_structure(3, 1) if is_3d else generate_binary_structure(2, 1)[None]
    predicted, true = (
        np.argwhere(mask & ~binary_erosion(mask, neighbours)) * spacing for mask in masks
    )
    return [KDTree(true).query(predicted)[0], KDTree(predicted).query(true)[0]]


def _percentile95(distances: Sequence[np.ndarray]) -> float:
    """Return the larger 95th percentile of the two directions, or NaN without a distance."""
    if not all(len(part) for part in distances):
        return math.nan
    return max(float(np.percentile(part, 95)) for part in distances)


def _share_within_tolerance(distances: Sequence[np.ndarray]) -> float:
    return float((np.concatenate(distances) <= TOLERANCE).mean())
