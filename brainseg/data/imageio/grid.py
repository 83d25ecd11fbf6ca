"""Position of a volume in the patient, and its reorientation to axial slices.

Conventions are nibabel's. A volume is an array indexed (i, j, k), and its affine maps a voxel index to
millimetres along the patient's left-to-right, posterior-to-anterior and inferior-to-superior axes (RAS+).

The network sees axial slices: an array (S, H, W) with S from bottom to top, H from the patient's front
to the back and W from the patient's right to the left, so that the face points up and the patient's left
is at the right of the picture, as in the public data set.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from nibabel import orientations

PLANES = ("sagittal", "coronal", "axial")  # by the patient's axis that the slices are stacked along
AXIAL = orientations.axcodes2ornt(("S", "P", "L"))  # of the array that the network sees


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and position of a volume; two equal grids give one voxel the same index.

    `spacing_known` is False if the header gives no usable voxel size: distances are then pixels and no
    volume is given in millilitres. `orientation_known` is False if the header does not say how the
    array's axes lie in the patient.
    """

    shape: tuple[int, int, int]  # voxels along (i, j, k)
    affine: np.ndarray  # (4, 4) float64, voxel index to RAS+ millimetres
    spacing_known: bool = True
    orientation_known: bool = True

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """Return the distance between neighbouring voxels along (i, j, k) in millimetres."""
        return tuple(float(side) for side in np.linalg.norm(self.affine[:3, :3], axis=0))  # type: ignore[return-value]

    @cached_property
    def voxel_millilitres(self) -> float:
        """Return the volume of a voxel; that of a sheared one is smaller than the product of its sides."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    @cached_property
    def orientation(self) -> np.ndarray:
        """Return nibabel's array (3, 2): the patient's axis nearest to each axis, and its sign."""
        return orientations.io_orientation(self.affine)

    @property
    def axcodes(self) -> str:
        """Return the directions of the axes as letters, such as RAS or LPI."""
        return "".join(orientations.aff2axcodes(self.affine))

    @property
    def plane(self) -> str:
        """Return the plane of the acquired slices, which are stacked along the coarsest axis."""
        coarsest = int(np.argmax(self.spacing)) if np.ptp(self.spacing) > 0.01 else 2
        return PLANES[int(self.orientation[coarsest, 0])]

    @property
    def axial_spacing(self) -> tuple[float, float, float] | None:
        """Return the spacing of the axial slices, rows and columns in millimetres, None if unknown."""
        if not self.spacing_known:
            return None
        turned = orientations.ornt_transform(self.orientation, AXIAL)
        by_axis = np.empty(3)
        by_axis[turned[:, 0].astype(int)] = self.spacing
        return tuple(float(side) for side in by_axis)  # type: ignore[return-value]

    def to_axial(self, volume: np.ndarray) -> np.ndarray:
        """Return a volume (i, j, k) as axial slices (S, H, W). Voxels are reordered, never interpolated."""
        turned = orientations.ornt_transform(self.orientation, AXIAL)
        return np.ascontiguousarray(orientations.apply_orientation(volume, turned))

    def from_axial(self, slices: np.ndarray) -> np.ndarray:
        """Return axial slices (S, H, W) as a volume (i, j, k); the inverse of `to_axial`."""
        turned = orientations.ornt_transform(AXIAL, self.orientation)
        return np.ascontiguousarray(orientations.apply_orientation(slices, turned))

    def difference(self, other: "Grid") -> str:
        """Return how `other` differs by more than a twentieth of a voxel; "" if both grids are equal."""
        if self.shape != other.shape:
            return f"{' x '.join(map(str, other.shape))} voxels instead of {' x '.join(map(str, self.shape))}"
        corners = np.array(np.meshgrid(*[(0, side - 1) for side in self.shape])).reshape(3, -1)
        corners = np.vstack([corners, np.ones(corners.shape[1])])
        apart = np.linalg.norm(((other.affine - self.affine) @ corners)[:3], axis=0).max()
        return f"a corner lies {apart:.3g} mm away" if not apart <= 0.05 * min(self.spacing) else ""
