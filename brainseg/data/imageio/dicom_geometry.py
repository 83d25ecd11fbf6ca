"""Grid of a DICOM stack, computed from the position of each slice in its header."""

from collections.abc import Sequence

import numpy as np

from brainseg.core.errors import DataError
from brainseg.data.imageio.base import LARGEST_SHEAR
from brainseg.data.imageio.dicom_frames import Frame
from brainseg.data.imageio.dicom_volumes import normal_of
from brainseg.data.imageio.grid import PLANES, Grid

# Largest deviations of a single distance and of a slice's position, as fractions of the usual
# distance between slices.
UNEVEN, DISPLACED = 0.1, 0.25
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def stack_frames(frames: Sequence[Frame], place: str) -> tuple[list[Frame], Grid]:
    """Return the frames in the order of their positions along the normal, and their grid.

    `frames` have one orientation and lie at different places. A tilted gantry gives a sheared grid.
    Raises DataError, naming `place`, for unevenly spaced slices and for slices of unknown position.
    """
    normal = normal_of(frames[0])
    has_positions = normal is not None and all(frame.position is not None for frame in frames)
    if len(frames) == 1:
        return list(frames), _single_slice(frames[0], normal, place)
    if normal is None or not has_positions:
        rule = "the header gives its slices no position and orientation in the patient"
        raise DataError(f"{place}: {rule}, so that their order is unknown")
    positions = np.array([frame.position for frame in frames])
    order = np.argsort(positions @ normal)
    ordered, positions = [frames[index] for index in order], positions[order]
    _check_distances(ordered, np.diff(positions @ normal), place)
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    sides = frames[0].spacing or (1.0, 1.0)
    off = positions - positions[0] - np.outer(range(len(frames)), step)
    along, usual = np.abs(off @ normal).max(), float(step @ normal)
    beside = np.linalg.norm(off - np.outer(off @ normal, normal), axis=1).max()
    if along > DISPLACED * usual or beside > max(0.5 * min(sides), 0.01):
        rule = f"slices lie up to {max(along, beside):.2f} mm off a straight and even stack"
        raise DataError(f"{place}: {rule}. Resample it to an even one")
    if (tilt := shear_angle(step, normal)) > LARGEST_SHEAR:
        raise DataError(
            f"{place}: slices are displaced by {tilt:.0f} degrees. Resample it to a straight one"
        )
    affine = _affine(frames[0], positions[0], step)
    shape = (*frames[0].shape, len(frames))
    return ordered, Grid(shape, affine, spacing_known=frames[0].spacing is not None)


def shear_angle(step: np.ndarray, normal: np.ndarray) -> float:
    """Return the angle in degrees between the step from slice to slice and the normal."""
    cosine = step @ normal / np.linalg.norm(step) / np.linalg.norm(normal)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _single_slice(frame: Frame, normal: np.ndarray | None, place: str) -> Grid:
    """Return the grid of a single slice. Its thickness is not a distance between slices.

    Raises DataError for a slice that is not axial.
    """
    if normal is not None and (axis := int(np.argmax(np.abs(normal)))) != 2:
        rule = f"a single {PLANES[axis]} slice, and the network takes axial slices"
        raise DataError(f"{place}: {rule}. Give the whole series")
    is_placed = normal is not None and frame.position is not None
    step = normal if is_placed and normal is not None else np.array([0.0, 0.0, 1.0])
    affine = _affine(
        frame, np.array(frame.position or (0.0, 0.0, 0.0)), step * (frame.thickness or 1.0)
    )
    return Grid((*frame.shape, 1), affine, spacing_known=False, orientation_known=is_placed)


def _affine(frame: Frame, origin: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return the matrix (4, 4) from voxel index to RAS+ mm, for a step in LPS mm."""
    orientation = frame.orientation or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    sides = frame.spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, 0] = np.multiply(orientation[:3], sides[0])
    affine[:3, 1] = np.multiply(orientation[3:], sides[1])
    affine[:3, 2] = step
    affine[:3, 3] = origin
    return LPS_TO_RAS @ affine


def _check_distances(frames: Sequence[Frame], distances: np.ndarray, place: str) -> None:
    """Raise DataError, naming the slices, unless all distances are about equal."""
    usual = float(np.median(distances))
    furthest = int(np.argmax(np.abs(distances - usual)))
    if abs(distances[furthest] - usual) <= UNEVEN * usual:
        return
    pair = frames[furthest : furthest + 2]
    names = [
        f"frame {frame.index + 1}" if frame.is_multiframe else frame.path.name for frame in pair
    ]
    raise DataError(
        f"{place}: slices are {distances[furthest]:.2f} mm apart between {names[0]} and "
        f"{names[1]}, and {usual:.2f} mm elsewhere. A slice is missing, or they are unevenly "
        "spaced; copy the series again, or save it as NIfTI with even spacing"
    )
