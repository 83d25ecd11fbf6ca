"""Verifies a folder of slices, lists everything that is wrong with it at once, and reads its volumes; the layout is in `layout.py`."""

import ctypes
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np

from brainseg.core.errors import DataError
from brainseg.data.imageio.tiff import read_mask, read_slice
from brainseg.data.intensity import to_uint8
from brainseg.data.readers.fit import crop_or_pad
from brainseg.data.readers.kaggle_layout import Folder, find_folders
from brainseg.data.stored_pixels import read_plain_pixels
from brainseg.data.volume import (
    CHANNELS,
    CLASSES,
    Slice,
    Volume,
    compute_volume_stats,
    digest,
    fingerprint,
    renamed_patients,
)

Item = TypeVar("Item")
Result = TypeVar("Result")
Show = Callable[
    [Iterable[Folder], int], Iterable[Folder]
]  # wraps the results, of which there will be so many, in a progress bar


@dataclass(frozen=True)
class Cohort:
    """A source as found and verified; usable when there are no `faults`."""

    top: Folder  # the source itself: what concerns no volume
    folders: list[Folder]  # sorted by name
    load: Callable[
        [Folder], tuple[np.ndarray, np.ndarray]
    ]  # images (S, C, H, W) and masks (S, 1, H, W) of a verified volume
    channels: Sequence[str] = field(default=CHANNELS)
    classes: Sequence[str] = field(default=CLASSES)  # background first
    notes: Sequence[str] = ()  # what a reader did to the volumes; among the warnings, too

    def _all(self, kind: str) -> list[str]:
        return [line for folder in (self.top, *self.folders) for line in getattr(folder, kind)]

    @property
    def faults(self) -> list[str]:
        return self._all("faults")

    @property
    def warnings(self) -> list[str]:
        return self._all("warnings")

    @property
    def ignored(self) -> list[str]:
        return self._all("ignored")

    @property
    def volumes(self) -> list[Volume]:
        return [folder.volume for folder in self.folders if folder.volume]

    @property
    def fingerprint(self) -> str:
        volumes = self.volumes
        renamed = renamed_patients(
            (volume.name for volume in volumes), (volume.patient for volume in volumes)
        )
        return fingerprint(
            (volume.digest for volume in volumes), self.channels, self.classes, renamed
        )

    @property
    def faulty_patients(self) -> list[str]:
        return sorted({folder.patient for folder in self.folders if folder.faults})

    def without(self, patients: Iterable[str]) -> "Cohort":
        """This cohort less every volume of these patients."""
        left_out = set(patients)
        return replace(
            self, folders=[folder for folder in self.folders if folder.patient not in left_out]
        )


def scan(
    source: str | Path,
    workers: int | None = None,
    show: Show | None = None,
    size: Sequence[int] | None = None,
) -> Cohort:
    """Verify every file below `source` in `workers` processes (None: one per core). Faults are gathered, none is raised.

    Slices are cut or padded to `size`, height and width, where it is given.
    """
    top = Folder(Path(source))
    found = find_folders(top)
    verified = in_processes(partial(verify, size=size), found, workers)
    folders = list(show(verified, len(found)) if show else verified)
    compare_sizes(folders)
    return Cohort(top, folders, partial(load, size=size))


def verify(folder: Folder, size: Sequence[int] | None = None) -> Folder:
    """Read every slice and mask of a volume once: add its faults, sizes and, if there is no fault, its description."""
    volume = compute_volume_stats(folder.path.name, _read(folder, size)) if folder.slices else None
    folder.volume = None if folder.faults else volume
    return folder


def load(folder: Folder, size: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return images (S, C, H, W) and class indices (S, 1, H, W), uint8, of a verified volume.

    Raises DataError if the volume has changed since it was verified.
    """
    volume = folder.volume
    assert volume is not None, "only a verified volume without faults can be loaded"
    images = np.zeros(volume.shape, np.uint8)
    masks = np.zeros((volume.shape[0], 1, *volume.shape[2:]), np.uint8)
    again = Folder(folder.path, folder.slices, folder.masks, unread=folder.unread)
    # What lies at known places in the files has the size that it was stored with.
    located = [partial(read_plain_pixels, folder, volume.shape)] if size is None else []
    for read in (*located, partial(_read, again, size)):
        slices = read()
        if len(slices) != len(images) or any(
            image.shape != images.shape[1:] for _, image, _ in slices
        ):
            continue
        for row, (_, image, mask) in enumerate(slices):
            images[row], masks[row, 0] = image, mask
        if (
            digest(volume.name, zip(volume.slice_number, images, masks[:, 0], strict=True))
            == volume.digest
        ):
            return images, masks
    raise DataError(f"{folder.path}: changed while it was being read; start again")


def _read(folder: Folder, size: Sequence[int] | None) -> list[Slice]:
    """Return the sound slices of a volume by number, at `size`, and add what is wrong with the others to its faults.

    Slices of 16 bits are stretched to eight together, because their scale is that of the volume.
    """
    slices: list[Slice] = []
    for number, path in folder.slices.items():
        read_image = partial(read_slice, channels=len(CHANNELS), offsets=folder.offsets)
        image = _attempt(read_image, path, folder)
        mask = _attempt(
            partial(read_mask, offsets=folder.offsets), folder.masks.get(number), folder
        )
        if image is not None:
            folder.sizes[number] = image.shape[1:] if size is None else tuple(size)
        if image is None or mask is None:
            continue
        if mask.shape != image.shape[1:]:
            name = f"{folder.path.name}/{folder.masks[number].name}"
            folder.faults.append(
                f"{name}: {_size(mask.shape)} pixels; its slice has {_size(image.shape[1:])}"
            )
            continue
        if size is not None:
            pixels = np.count_nonzero(mask)
            image, mask = crop_or_pad(image, size), crop_or_pad(mask, size)
            if lost := pixels - np.count_nonzero(mask):
                place = f"{folder.path.name}/{path.name}"
                folder.warnings.append(
                    f"{place}: size={_size(tuple(size))} cuts off {lost:,} of {pixels:,} mask pixels"
                )
        slices.append((number, image, mask))
    if all(image.dtype == np.uint8 for _, image, _ in slices):
        return slices
    types = sorted({str(image.dtype) for _, image, _ in slices})
    if len(types) > 1:
        fault = f"slices of types {' and '.join(types)}; all slices of a volume must have one type"
        folder.faults.append(f"{folder.path.name}: {fault}")
    if len(types) > 1 or len({image.shape for _, image, _ in slices}) > 1:
        return []  # slices of several sizes are named by `compare_sizes`
    stretched = to_uint8(np.stack([image for _, image, _ in slices]))
    return [
        (number, image, mask) for image, (number, _, mask) in zip(stretched, slices, strict=True)
    ]


def _attempt(
    read: Callable[[Path], np.ndarray], path: Path | None, folder: Folder
) -> np.ndarray | None:
    if path is None or path in folder.unread:
        return None
    try:
        return read(path)
    except DataError as error:
        folder.faults.append(str(error).removeprefix(f"{folder.path.parent}{os.sep}"))
        return None


def compare_sizes(folders: list[Folder]) -> None:
    """A file holds slices of one size: the cohort's most frequent one. Any other is a fault."""
    counts = Counter(size for folder in folders for size in folder.sizes.values())
    if len(counts) < 2:
        return
    usual = max(counts, key=lambda size: (counts[size], size))
    remedy = (
        f"size={usual[0] if usual[0] == usual[1] else list(usual)} cuts or pads them at the centre"
    )
    rule = f"most of the cohort has {_size(usual)}; all slices must have one size; {remedy}"
    for folder in folders:
        odd = {number: size for number, size in folder.sizes.items() if size != usual}
        name = folder.path.name
        if len(odd) > 1 and len(odd) == len(folder.sizes) and len(set(odd.values())) == 1:
            folder.faults.append(
                f"{name}: all slices have {_size(next(iter(odd.values())))} pixels; {rule}"
            )
        else:
            files = {number: f"{name}/{path.name}" for number, path in folder.slices.items()}
            folder.faults += [
                f"{files.get(number, name)}: {_size(size)} pixels; {rule}"
                for number, size in odd.items()
            ]
        folder.volume = None if odd else folder.volume


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int | None
) -> Iterator[Result]:
    """`map` in so many processes (None: one a core; 1: in this one), with the results in order."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    workers = min(workers or cores, len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    # Fork takes 10 ms where spawn takes the imports again; the workers touch neither threads nor HDF5.
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, context, _begin_worker) as pool:
        try:
            yield from pool.map(function, items)
        except (BrokenProcessPool, MemoryError) as error:  # the system kills who asks for too much
            raise DataError(
                f"workers={workers}: a process was lost, perhaps for want of memory; lower workers"
            ) from error


def _begin_worker() -> None:
    """Ctrl-C is the parent's to handle; and on Linux a worker whose parent was killed ends too, instead of waiting for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"
