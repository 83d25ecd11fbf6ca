"""Verification and loading of TIFF slices in the `kaggle_3m` layout, with a list of all faults.

`kaggle_layout` finds the files of each volume.
"""

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
# Function that wraps the results, whose number is the second argument, in a progress bar.
Show = Callable[[Iterable[Folder], int], Iterable[Folder]]


@dataclass(frozen=True)
class Cohort:
    """The verified volumes of a source, which can be used if there are no `faults`."""

    # The source itself, with the remarks that concern no volume.
    top: Folder
    # Volumes, sorted by name.
    folders: list[Folder]
    # Function that returns images (S, C, H, W) and masks (S, 1, H, W) of a verified volume.
    load: Callable[[Folder], tuple[np.ndarray, np.ndarray]]
    channels: Sequence[str] = field(default=CHANNELS)
    # Background comes first.
    classes: Sequence[str] = field(default=CLASSES)
    # Changes that a reader made to the volumes. They are also listed in the warnings.
    notes: Sequence[str] = ()

    def _collect_lines(self, kind: str) -> list[str]:
        """Return the lines of one kind about the source and all volumes."""
        return [line for folder in (self.top, *self.folders) for line in getattr(folder, kind)]

    @property
    def faults(self) -> list[str]:
        return self._collect_lines("faults")

    @property
    def warnings(self) -> list[str]:
        return self._collect_lines("warnings")

    @property
    def ignored_files(self) -> list[str]:
        return self._collect_lines("ignored")

    @property
    def volumes(self) -> list[Volume]:
        """Return the volumes without faults."""
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
        """Return the patients of all volumes with faults, sorted."""
        return sorted({folder.patient for folder in self.folders if folder.faults})

    def without(self, patients: Iterable[str]) -> "Cohort":
        """Return the cohort without the volumes of these patients."""
        excluded = set(patients)
        return replace(
            self, folders=[folder for folder in self.folders if folder.patient not in excluded]
        )


def scan_slices(
    source: str | Path,
    workers: int | None = None,
    show: Show | None = None,
    size: Sequence[int] | None = None,
) -> Cohort:
    """Verify every file below `source` in `workers` processes, by default one per core.

    Slices are cropped or padded to `size`, height and width, if it is given. Faults are collected
    in the cohort and not raised.
    """
    top = Folder(Path(source))
    listed_folders = find_folders(top)
    verified = in_processes(partial(verify_slices, size=size), listed_folders, workers)
    folders = list(show(verified, len(listed_folders)) if show else verified)
    compare_sizes(folders)
    return Cohort(top, folders, partial(load, size=size))


def verify_slices(folder: Folder, size: Sequence[int] | None = None) -> Folder:
    """Read all slices and masks of a volume, and add its faults, sizes and statistics.

    A volume with faults gets no statistics.
    """
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
    unverified = Folder(folder.path, folder.slices, folder.masks, unread=folder.unread)
    # Uncompressed pixels at known places are read without the decoder. They have the stored size,
    # so this is impossible with `size`.
    fast_readers = [partial(read_plain_pixels, folder, volume.shape)] if size is None else []
    for read in (*fast_readers, partial(_read, unverified, size)):
        slices = read()
        if len(slices) != len(images) or any(
            image.shape != images.shape[1:] for _, image, _ in slices
        ):
            continue
        for row, (_, image, mask) in enumerate(slices):
            images[row], masks[row, 0] = image, mask
        numbered_slices = zip(volume.slice_number, images, masks[:, 0], strict=True)
        if digest(volume.name, numbered_slices) == volume.digest:
            return images, masks
    raise DataError(f"{folder.path}: changed while it was being read; start again")


def _read(folder: Folder, size: Sequence[int] | None) -> list[Slice]:
    """Return the slices of a volume without faults, at `size`, and add the faults of the others.

    Slices of 16 bits are stretched to eight bits together, because all slices of a volume have the
    same scale.
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
        # A missing or unreadable file has already been reported as a fault.
        if image is None or mask is None:
            continue
        if mask.shape != image.shape[1:]:
            name = f"{folder.path.name}/{folder.masks[number].name}"
            folder.faults.append(
                f"{name}: {_size(mask.shape)} pixels; its slice has {_size(image.shape[1:])}"
            )
            continue
        if size is not None:
            tumour_pixels = np.count_nonzero(mask)
            image, mask = crop_or_pad(image, size), crop_or_pad(mask, size)
            if lost := tumour_pixels - np.count_nonzero(mask):
                place = f"{folder.path.name}/{path.name}"
                folder.warnings.append(
                    f"{place}: size={_size(tuple(size))} cuts off "
                    f"{lost:,} of {tumour_pixels:,} mask pixels"
                )
        slices.append((number, image, mask))
    if all(image.dtype == np.uint8 for _, image, _ in slices):
        return slices
    types = sorted({str(image.dtype) for _, image, _ in slices})
    if len(types) > 1:
        fault = f"slices of types {' and '.join(types)}; all slices of a volume must have one type"
        folder.faults.append(f"{folder.path.name}: {fault}")
    if len(types) > 1 or len({image.shape for _, image, _ in slices}) > 1:
        # `compare_sizes` reports slices of several sizes.
        return []
    stretched = to_uint8(np.stack([image for _, image, _ in slices]))
    return [
        (number, image, mask) for image, (number, _, mask) in zip(stretched, slices, strict=True)
    ]


def _attempt(
    read: Callable[[Path], np.ndarray], path: Path | None, folder: Folder
) -> np.ndarray | None:
    """Return the pixels of a file, or add its fault to `folder` and return None."""
    if path is None or path in folder.unread:
        return None
    try:
        return read(path)
    except DataError as error:
        folder.faults.append(str(error).removeprefix(f"{folder.path.parent}{os.sep}"))
        return None


def compare_sizes(folders: list[Folder]) -> None:
    """Add a fault for every slice whose size is not the most frequent size of the cohort."""
    counts = Counter(size for folder in folders for size in folder.sizes.values())
    if len(counts) < 2:
        return
    # Of two equally frequent sizes, the larger one counts, so the result is always the same.
    usual = max(counts, key=lambda size: (counts[size], size))
    remedy = (
        f"size={usual[0] if usual[0] == usual[1] else list(usual)} cuts or pads them at the centre"
    )
    rule = f"most of the cohort has {_size(usual)}; all slices must have one size; {remedy}"
    for folder in folders:
        odd = {number: size for number, size in folder.sizes.items() if size != usual}
        name = folder.path.name
        # If all slices of a volume have one other size, a single line reports it.
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
    """Yield the results of `function` for `items` in order, computed in `workers` processes.

    None means one process per core, and 1 means this process. Raises DataError for a lost process.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    workers = min(workers or cores, len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    # Fork takes 10 ms, and spawn repeats all imports. Fork is safe here, because the workers touch
    # neither threads nor HDF5.
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, context, _begin_worker) as pool:
        try:
            yield from pool.map(function, items)
        except (BrokenProcessPool, MemoryError) as error:
            # The system kills processes that ask for too much memory.
            raise DataError(
                f"workers={workers}: a process was lost, perhaps for want of memory; lower workers"
            ) from error


def _begin_worker() -> None:
    """Ignore Ctrl-C in a worker, and on Linux end the worker when its parent is killed."""
    # The parent handles Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # 1 is PR_SET_PDEATHSIG. Without it, the worker of a killed parent would wait for ever.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"
