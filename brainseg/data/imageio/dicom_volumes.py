"""Volumes of a DICOM series, from frames grouped by geometry and then by their attributes.

A series may hold a localizer's three orientations, several echoes, time points or b-values. Frames
at different places make up one volume, even if their attributes differ. If several frames lie at
one place, their attributes decide which volume each of them belongs to.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from brainseg.core.errors import DataError
from brainseg.data.imageio.dicom_frames import ATTRIBUTES, Frame
from brainseg.data.imageio.grid import PLANES

# Millimetres along the normal of the slices.
SAME_PLACE = 0.01
# Number of orientations and sizes in one series, such as a localizer.
MOST_GEOMETRIES = 32


@dataclass(frozen=True)
class FrameGroup:
    """Frames of one volume."""

    frames: Sequence[Frame]
    # The difference from other volumes of the series in words, "" if there are no others.
    detail: str = ""
    # The reason why the frames cannot be one volume, "" if they can.
    problem: str = ""


def split_series(frames: Sequence[Frame], instances: Mapping[Frame, str]) -> list[FrameGroup]:
    """Return the volumes of a series, sorted by the attributes that distinguish them.

    `instances` holds the UID of the file of each frame. Raises DataError for more orientations and
    sizes than a localizer has.
    """
    by_geometry = _by_geometry(frames)
    groups = []
    for stack_frames in by_geometry:
        volumes = _by_attributes(stack_frames, instances)
        label = geometry_name(stack_frames[0]) if len(by_geometry) > 1 else ""
        most = max((len(volume.frames) for volume in volumes if not volume.problem), default=0)
        for volume in volumes:
            detail = ", ".join(filter(None, (label, volume.detail)))
            problem, count = volume.problem, len(volume.frames)
            if count < most and not problem:
                problem = (
                    f"the volume with {detail} has {count} slices, and another of its series {most}"
                )
            groups.append(FrameGroup(volume.frames, detail, problem))
    return groups


def geometry_name(frame: Frame) -> str:
    """Return the plane and the size of a frame, such as "sagittal 256 x 256"."""
    size = f"{frame.shape[0]} x {frame.shape[1]}"
    normal = normal_of(frame)
    return size if normal is None else f"{PLANES[int(np.argmax(np.abs(normal)))]} {size}"


def normal_of(frame: Frame) -> np.ndarray | None:
    """Return the unit vector (3,) across a frame in LPS, None without an orientation."""
    if frame.orientation is None:
        return None
    return np.cross(frame.orientation[:3], frame.orientation[3:])


def _by_geometry(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Return frames grouped by size, orientation and pixel spacing, up to rounding errors."""
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            if _have_one_geometry(group[0], frame):
                group.append(frame)
                break
        else:
            groups.append([frame])
        if len(groups) > MOST_GEOMETRIES:
            where = frame.path.parent
            raise DataError(
                f"{where}: a series of more than {MOST_GEOMETRIES} orientations and sizes"
            )
    return groups


def _have_one_geometry(first: Frame, second: Frame) -> bool:
    """Return True if both frames could be slices of one stack."""
    if first.shape != second.shape:
        return False
    for values, other_values, tolerance in (
        (first.orientation, second.orientation, 1e-3),
        (first.spacing, second.spacing, 1e-3 * max(first.spacing or (1.0,))),
    ):
        if (values is None) != (other_values is None):
            return False
        if values is not None and other_values is not None:
            pairs = zip(values, other_values, strict=True)
            if any(abs(value - other) > tolerance for value, other in pairs):
                return False
    return True


def _by_attributes(frames: Sequence[Frame], instances: Mapping[Frame, str]) -> list[FrameGroup]:
    """Return the volumes among frames of one geometry."""
    places = _places(frames)
    groups = [FrameGroup(frames)]
    for label, value_of in _separators(frames).items():
        groups = [part for group in groups for part in _separate(group, places, label, value_of)]
    return [part for group in groups for part in _by_order(group, places, instances)]


def _places(frames: Sequence[Frame]) -> dict[Frame, int]:
    """Return a number per frame, equal for frames that lie at one place along the normal."""
    normal = normal_of(frames[0])
    if normal is None or any(frame.position is None for frame in frames):
        return {frame: number for number, frame in enumerate(frames)}
    heights = np.array([frame.position for frame in frames]) @ normal
    order = np.argsort(heights, kind="stable")
    numbers = np.concatenate([[0], np.cumsum(np.diff(heights[order]) > SAME_PLACE)])
    return {frames[index]: int(number) for index, number in zip(order, numbers, strict=True)}


def _separators(frames: Sequence[Frame]) -> dict[str, Callable[[Frame], str]]:
    """Return functions of a frame whose values may distinguish volumes, by label."""

    def attribute(label: str) -> Callable[[Frame], str]:
        return lambda frame: frame.attributes.get(label, "")

    shared = os.path.commonpath([frame.path.parent for frame in frames])
    by_label = {label: attribute(label) for label, *_ in ATTRIBUTES}
    by_label["folder"] = lambda frame: os.path.relpath(frame.path.parent, shared)
    # Each single slice is a file, so only the files of multi-frame objects may be volumes.
    by_label["file"] = lambda frame: frame.path.name if frame.is_multiframe else ""
    return by_label


def _separate(
    group: FrameGroup, places: Mapping[Frame, int], label: str, value_of: Callable[[Frame], str]
) -> list[FrameGroup]:
    """Return the parts of a group by one attribute, or the group if nothing is separated."""
    by_place = defaultdict(list)
    by_value = defaultdict(list)
    for frame in group.frames:
        by_place[places[frame]].append(value_of(frame))
        by_value[value_of(frame)].append(frame)
    most = max(map(len, by_place.values()))
    # An attribute of each slice, such as its time, has more values than frames at one place.
    if len(by_value) > most or all(len(set(values)) == 1 for values in by_place.values()):
        return [group]
    parts = []
    for value in sorted(by_value, key=_numeric_key):
        detail = ", ".join(filter(None, (group.detail, f"{label} {value or 'unknown'}")))
        parts.append(FrameGroup(by_value[value], detail))
    return parts


def _by_order(
    group: FrameGroup, places: Mapping[Frame, int], instances: Mapping[Frame, str]
) -> list[FrameGroup]:
    """Return the volumes among frames that no attribute separates, or the group's problem."""
    by_place = defaultdict(list)
    for frame in group.frames:
        by_place[places[frame]].append(frame)
    counts = {len(repetitions) for repetitions in by_place.values()}
    if counts == {1}:
        return [group]
    is_object = len({frame.path for frame in group.frames}) == 1
    if is_object and len(counts) == 1:
        # The frames of one object have an order, which numbers the volumes.
        ordered = zip(*by_place.values(), strict=True)
        details = (f"{group.detail}, " if group.detail else "") + "repetition"
        return [FrameGroup(part, f"{details} {number}") for number, part in enumerate(ordered, 1)]
    first, second = next(frames for frames in by_place.values() if len(frames) > 1)[:2]
    return [FrameGroup(group.frames, group.detail, _repetition(first, second, instances))]


def _repetition(first: Frame, second: Frame, instances: Mapping[Frame, str]) -> str:
    """Return a message on two frames at one place."""
    if first.path == second.path:
        both = f"frames {first.index + 1} and {second.index + 1} of {first.path}"
    else:
        both = f"{first.path} and {second.path}"
    if first.path != second.path and instances[first] and instances[first] == instances[second]:
        return f"{both} are two copies of one slice (equal SOP Instance UIDs). Remove one of them"
    return f"{both} lie at one place, and nothing in their headers tells two volumes apart"


def _numeric_key(value: str) -> tuple[bool, float, str]:
    """Return a key that sorts "9 ms" before "12 ms"."""
    try:
        return False, float(value.split(" ")[0]), value
    except ValueError:
        return True, 0.0, value
