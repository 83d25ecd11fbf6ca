"""Position of a volume in the patient, and its reorientation to axial slices.

Conventions are nibabel's. A volume is an array indexed (i, j, k). Its affine maps a voxel index to
millimetres along the patient's left-to-right, posterior-to-anterior and inferior-to-superior axes
(RAS+).

The network takes axial slices, an array (S, H, W). S runs from bottom to top, H from the patient's
front to the back, and W from the patient's right to the left. The face then points up, and the
patient's left is at the right of the picture, as in the public dataset.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from nibabel import orientations

# Planes by the patient's axis that the slices are stacked along.
PLANES = ("sagittal", "coronal", "axial")
# Orientation of the array that the network takes.
AXIAL = orientations.axcodes2ornt(("S", "P", "L"))


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and position of a volume. Two equal grids give each voxel the same index.

    `spacing_known` is False if the header gives no usable voxel size. Distances are then in pixels,
    and no volume is given in millilitres. `orientation_known` is False if the header does not say
    how the array's axes lie in the patient.
    """

    # Number of voxels along (i, j, k).
    shape: tuple[int, int, int]
    # Matrix (4, 4) float64 from voxel index to RAS+ millimetres.
    affine: np.ndarray
    spacing_known: bool = True
    orientation_known: bool = True

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """Return the distance between neighbouring voxels along (i, j, k) in millimetres."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @cached_property
    def voxel_millilitres(self) -> float:
        """Return the volume of a voxel in millilitres."""
        # The determinant is also correct for sheared voxels, which are smaller than the product of
        # their sides.
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    @cached_property
    def orientation(self) -> np.ndarray:
        """Return nibabel's array (3, 2) of the nearest patient axis of each axis, and its sign."""
        return orientations.io_orientation(self.affine)

    @property
    def axcodes(self) -> str:
        """Return the directions of the axes as letters, such as RAS or LPI."""
        return "".join(orientations.aff2axcodes(self.affine))

    @property
    def plane(self) -> str:
        """Return the plane of the acquired slices, which are stacked along the coarsest axis."""
        # A volume with equal sides counts as stacked along its last axis.
        coarsest = int(np.argmax(self.spacing)) if np.ptp(self.spacing) > 0.01 else 2
        return PLANES[int(self.orientation[coarsest, 0])]

    @property
    def axial_spacing(self) -> tuple[float, float, float] | None:
        """Return the distances of axial slices, rows and columns in mm, None if unknown."""
        if not self.spacing_known:
            return None
        transform = orientations.ornt_transform(self.orientation, AXIAL)
        by_axis = np.empty(3)
        by_axis[transform[:, 0].astype(int)] = self.spacing
        slices, rows, columns = by_axis
        return float(slices), float(rows), float(columns)

    def to_axial(self, volume: np.ndarray) -> np.ndarray:
        """Return a volume (i, j, k) as axial slices (S, H, W), reordered without interpolation."""
        transform = orientations.ornt_transform(self.orientation, AXIAL)
        return np.ascontiguousarray(orientations.apply_orientation(volume, transform))

    def from_axial(self, slices: np.ndarray) -> np.ndarray:
        """Return axial slices (S, H, W) as a volume (i, j, k), the inverse of `to_axial`."""
        transform = orientations.ornt_transform(AXIAL, self.orientation)
        return np.ascontiguousarray(orientations.apply_orientation(slices, transform))

    def difference(self, other: "Grid") -> str:
        """Return the difference of `other` from this grid in words, "" if both are equal.

        Positions may differ by a twentieth of a voxel.
        """
        if self.shape != other.shape:
            size, expected = (" x ".join(map(str, grid.shape)) for grid in (other, self))
            return f"{size} voxels instead of {expected}"
        # The affines are linear, so the largest distance between two voxels is at a corner.
        corners = np.array(np.meshgrid(*[(0, side - 1) for side in self.shape])).reshape(3, -1)
        corners = np.vstack([corners, np.ones(corners.shape[1])])
        distance = np.linalg.norm(((other.affine - self.affine) @ corners)[:3], axis=0).max()
        # A distance of NaN counts as a difference.
        is_equal = distance <= 0.05 * min(self.spacing)
        return "" if is_equal else f"a corner lies {distance:.3g} mm away"
