"""Layouts of one's own: a reader is a class that lists the volumes of a folder and reads one; all else is checked and done here.

    class Mine:                                         registered under the entry-point group `brainseg.readers`
        channels = ("T1", "FLAIR")                      any number
        classes = ("background", "oedema", "core")      by class index; two or more
        def volumes(self, source): ...                  names
        def read(self, source, volume): ...             a `Scan`

A patient is a volume's name without its date (`_YYYYMMDD`), and no split parts two volumes of one patient. A sequence that is
missing in a volume is to be filled with its FLAIR, as in the public set: it is then found and reported.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from brainseg.data.intensity import to_uint8
from brainseg.data.layout import LARGEST_NUMBER, Folder
from brainseg.data.source import Cohort, Show, compare_sizes, in_processes
from brainseg.data.source import scan as scan_kaggle_3m
from brainseg.data.tiff import LARGEST
from brainseg.data.volume import UNKNOWN, describe, digest
from brainseg.errors import DataError, check
from brainseg.extensions import extension, registered

Scanner = Callable[[str | Path, int | None, Show | None], Cohort]
READERS: dict[str, Scanner] = {"kaggle_3m": scan_kaggle_3m}
NAME = re.compile(r"\w[\w .-]*")  # of a channel or class: it becomes part of a metric's name, which MLflow must take


class Scan(NamedTuple):
    """One volume of S axial slices, from bottom to top and face up, with C channels: so `predict` shows them to the network."""

    images: Any  # (S, C, H, W) array of real numbers; whole numbers from 0 to 255 are kept, others stretched to them (`to_uint8`)
    masks: Any  # (S, H, W) array of class indices
    spacing: Sequence[float] | None = None  # mm between slices, rows and columns; None: unknown
    slice_number: Sequence[int] | None = None  # (S,), rising; None: 1, 2, 3, ...


class Reader(Protocol):
    """What a layout must say; made without arguments, used from several processes."""

    channels: Sequence[str]
    classes: Sequence[str]  # class 0 is the background

    def volumes(self, source: Path) -> Iterable[str]:
        """Names of the volumes in the folder `source`, in any order."""

    def read(self, source: Path, volume: str) -> Scan:
        """One of them. Whatever it raises becomes a fault of that volume, by name."""


def scanner(name: str) -> Scanner:
    """What `reader=name` stands for: called with the source it verifies every volume. Raises RequestError."""
    if name in READERS:
        return READERS[name]
    found = extension("brainseg.readers", name)
    known = ", ".join([*READERS, *registered("brainseg.readers")])
    check(found is not None, "reader", name, "no such reader", f"known: {known}; docs/extending.md says how to add one")
    return partial(scan, _made(name, found))


def _made(name: str, found: Any) -> Reader:
    """An instance of the class that a package registered, if it is a reader."""
    try:
        reader = found()
        channels, classes = list(reader.channels), list(reader.classes)
    except Exception as error:  # someone's own code
        check(False, "reader", name, f"{found!r} is no reader ({type(error).__name__}: {error})", "see Reader in brainseg/data/reader.py")
    for what, names, least in (("channels", channels, 1), ("classes", classes, 2)):
        right = least <= len(names) <= 256 and len(set(names)) == len(names)
        right = right and all(isinstance(one, str) and NAME.fullmatch(one) for one in names)
        check(right, f"reader {name}, {what}", names, f"must be {least} or more different names of letters, digits, space, _ . -")
    for method in ("volumes", "read"):
        check(callable(getattr(reader, method, None)), "reader", name, f"has no method {method}", "see Reader in brainseg/data/reader.py")
    return reader


def scan(reader: Reader, source: str | Path, workers: int | None = None, show: Show | None = None) -> Cohort:
    """Read and verify every volume in so many processes (None: one a core); faults are gathered, none is raised."""
    top = Folder(Path(source))
    folders = [Folder(top.path / name) for name in _names(reader, top)]
    verified = in_processes(partial(verify, reader), folders, workers)
    folders = list(show(verified, len(folders)) if show else verified)
    compare_sizes(folders)
    return Cohort(top, folders, partial(load, reader), tuple(reader.channels), tuple(reader.classes))


def _names(reader: Reader, top: Folder) -> list[str]:
    """The volumes' names, sorted; what is wrong with them goes to the faults of `top`."""
    try:
        names = sorted(map(str, reader.volumes(top.path)))
    except Exception as error:  # someone's own code
        top.faults.append(f"{top.path}: its volumes cannot be listed: {_reason(error)}")
        return []
    odd = [name for name in names if not name.isprintable() or Path(name).name != name]
    twice = sorted({name for name in names if names.count(name) > 1})
    top.faults += [f"{name!a}: no name for a volume: it must be printable and without a slash" for name in odd]
    top.faults += [f"{name}: listed more than once" for name in twice]
    if not names:
        top.faults.append(f"{top.path}: {type(reader).__name__} finds no volume there")
    return [] if odd or twice else names


def verify(reader: Reader, folder: Folder) -> Folder:
    """Read a volume once: adds its faults, its size and, if there is no fault, its description."""
    name = folder.path.name
    try:
        numbers, images, masks, spacing = _read(reader, folder)
    except DataError as error:
        folder.faults.append(f"{name}: {error}")
        return folder
    folder.sizes[0] = images.shape[2:]
    folder.volume = describe(name, zip(numbers, images, masks, strict=True), reader.channels, spacing)
    return folder


def load(reader: Reader, folder: Folder) -> tuple[np.ndarray, np.ndarray]:
    """Images (S, C, H, W) and class indices (S, 1, H, W), uint8, of a verified volume. Raises DataError if it has changed since."""
    volume = folder.volume
    assert volume is not None, "only a verified volume without faults can be loaded"
    numbers, images, masks, spacing = _read(reader, folder)
    if digest(volume.name, zip(numbers, images, masks, strict=True), spacing) != volume.digest:
        raise DataError(f"{folder.path}: changed while it was being read; start again")
    return images, masks[:, None]


def _read(reader: Reader, folder: Folder) -> tuple[list[int], np.ndarray, np.ndarray, Sequence[float]]:
    """Slice numbers, images (S, C, H, W) and masks (S, H, W), both uint8, and spacing. Raises DataError naming what is wrong."""
    try:
        one = Scan(*reader.read(folder.path.parent, folder.path.name))
        images, masks = np.asarray(one.images), np.asarray(one.masks)
        spacing = UNKNOWN if one.spacing is None else tuple(map(float, one.spacing))
        numbers = list(range(1, len(images) + 1)) if one.slice_number is None else [int(number) for number in one.slice_number]
    except Exception as error:  # someone's own code, and whatever the libraries raise that it reads files with
        raise DataError(f"cannot be read: {_reason(error)}") from error
    check_images(images, reader.channels)
    _check_masks(masks, images, reader.classes)
    fits = len(numbers) == len(images) and numbers == sorted(set(numbers)) and numbers[0] >= 0 and numbers[-1] <= LARGEST_NUMBER
    _require(fits, f"slice numbers {numbers[:5]}...: must rise, one a slice, from 0 or more up to {LARGEST_NUMBER}")
    whole = len(spacing) == 3 and (spacing is UNKNOWN or all(0 < side < 1e6 for side in spacing))
    _require(whole, f"spacing {spacing}: must be three lengths in mm (slices, rows, columns), or None")
    return numbers, to_uint8(images), masks.astype(np.uint8), spacing


def check_images(images: np.ndarray, channels: Sequence[str]) -> None:
    """Raise DataError unless `images` are finite numbers (S, C, H, W) of these channels, of no impossible size."""
    shape = images.shape
    right = images.ndim == 4 and shape[0] > 0 and shape[1] == len(channels) and all(0 < side <= LARGEST for side in shape[2:])
    _require(right, f"images of shape {shape}: must be (slices, {len(channels)} channels, height, width), sides up to {LARGEST}")
    _require(images.dtype.kind in "buif", f"images are {images.dtype}: must be real numbers")
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        slice_, channel = np.argwhere(~np.isfinite(images))[0][:2]
        raise DataError(f"{channels[channel]} holds values that are not finite, first in its slice {slice_ + 1}")


def _check_masks(masks: np.ndarray, images: np.ndarray, classes: Sequence[str]) -> None:
    expected = (images.shape[0], *images.shape[2:])
    _require(masks.shape == expected, f"masks of shape {masks.shape}: must be {expected} for images of shape {images.shape}")
    _require(masks.dtype.kind in "buif", f"masks are {masks.dtype}: must be class indices")
    values = np.unique(masks)
    wrong = [f"{value:g}" for value in values.tolist() if value not in range(len(classes))]
    rule = f"must be class indices, 0 to {len(classes) - 1} ({', '.join(classes)})"
    _require(not wrong, f"mask values {', '.join(wrong[:6])}{', ...' if len(wrong) > 6 else ''}: {rule}")


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise DataError(rule)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
