"""Writes the HDF5 file of a cohort, whose parts are listed in `store`: all of it or, on a full disk, nothing but an error."""

import errno
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np

from brainseg.core.files import remove_stale, target, writing
from brainseg.data.store import FORMAT, SCHEMA
from brainseg.data.volume import CHANNELS, CLASSES, Volume, fingerprint, renamed_patients

HELD = 2**24  # bytes of pixels that HDF5 holds back before it writes them, in both datasets
SMALL, SMALL_ROW = (
    16_384,
    1024,
)  # bytes that suffice for all but the pixels: of a file, and of each slice


def write_store(
    path: str | Path,
    volumes: Sequence[Volume],
    pixels: Iterable[tuple[np.ndarray, np.ndarray]],
    channels: Sequence[str] = CHANNELS,
    classes: Sequence[str] = CLASSES,
    preparation: str = "",
) -> None:
    """Write the file atomically; its bytes depend on the arguments alone.

    `volumes` are sorted by name; `pixels` gives images (S, C, H, W) and masks (S, 1, H, W), uint8, of each in turn.
    `preparation` says in JSON how the source was read.
    """
    remove_stale(path)  # a killed process leaves as much as the file takes, hidden
    small = SMALL + SMALL_ROW * sum(volume.shape[0] for volume in volumes)
    with writing(path) as temporary:
        _check_room(path, volumes)
        with temporary.open("wb") as file:  # while HDF5 is not there yet
            _reserve(file.fileno(), small)
        with h5py.File(
            temporary, "w", libver="latest", locking=False, rdcc_nbytes=HELD // 2
        ) as file:
            reserved = _reserve(file.id.get_vfd_handle(), small)
            first_slice = _write_header(file, volumes, channels, classes)
            if preparation:
                file.attrs["preparation"] = np.bytes_(preparation.encode())
            images, masks, written = file["images"], file["masks"], 0
            for start, stop, (image, mask) in zip(
                first_slice[:-1], first_slice[1:], pixels, strict=True
            ):
                size = image.nbytes + mask.nbytes
                needed = file.id.get_filesize() + small + round(1.01 * (min(written, HELD) + size))
                reserved = _reserve(file.id.get_vfd_handle(), needed, reserved)
                images[start:stop] = image
                masks[start:stop] = mask
                written += size
            file.flush()
            end = file.id.get_filesize()
        os.truncate(
            temporary, min(end, temporary.stat().st_size)
        )  # what was reserved and not needed


def _write_header(
    file: h5py.File, volumes: Sequence[Volume], channels: Sequence[str], classes: Sequence[str]
) -> np.ndarray:
    """Write all but the pixels and make room for those; returns `first_slice`."""
    file.attrs["format"], file.attrs["schema"] = FORMAT, SCHEMA
    renamed = renamed_patients(
        (volume.name for volume in volumes), (volume.patient for volume in volumes)
    )
    file.attrs["fingerprint"] = np.bytes_(
        fingerprint((volume.digest for volume in volumes), channels, classes, renamed)
    )
    _, count, height, width = volumes[0].shape
    first_slice = np.cumsum([0, *(volume.shape[0] for volume in volumes)], dtype=np.int64)
    small = {
        "slice_number": np.concatenate([volume.slice_number for volume in volumes]),
        "tumour_pixels": np.concatenate([volume.tumour_pixels for volume in volumes]),
        "first_slice": first_slice,
        "low": np.stack([volume.low for volume in volumes]),
        "high": np.stack([volume.high for volume in volumes]),
        "copies": np.stack([volume.copies for volume in volumes]).astype(np.uint8),
        "spacing": np.array([volume.spacing for volume in volumes], np.float32),
        "volumes": fixed_length([volume.name for volume in volumes]),
        "patients": fixed_length([volume.patient for volume in volumes]),
        "channels": fixed_length(channels),
        "classes": fixed_length(classes),
    }
    for name, array in small.items():
        file.create_dataset(name, data=array, chunks=array.shape, fletcher32=True)
    rows = int(first_slice[-1])
    file.create_dataset(
        "images",
        (rows, count, height, width),
        np.uint8,
        chunks=(1, count, height, width),
        fletcher32=True,
    )
    file.create_dataset(
        "masks",
        (rows, 1, height, width),
        np.uint8,
        chunks=(1, 1, height, width),
        compression=1,
        fletcher32=True,
    )
    return first_slice


def _check_room(path: str | Path, volumes: Sequence[Volume]) -> None:
    """Refuse at once what the disk has no room for: images as they are, and 2 % for all else."""
    needed, free = (
        int(1.02 * sum(math.prod(volume.shape) for volume in volumes)),
        shutil.disk_usage(target(path).absolute().parent).free,
    )
    if needed > free:
        full = os.strerror(errno.ENOSPC)
        raise OSError(
            errno.ENOSPC,
            f"{full}: needs {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free",
            str(path),
        )


def _reserve(descriptor: int, size: int, before: int = 0) -> int:
    """Let the disk promise a file of `size` bytes, and return how many it has promised; raises OSError if it cannot.

    HDF5 cannot close a file that it could not write, and crashes the interpreter at its end: so it must not be HDF5 that finds the
    disk full. No promise is to be had on macOS, and none that counts from a file system that never writes in place, as ZFS.
    """
    if size > before and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, before, size - before)
        except OSError as error:
            if error.errno not in (
                errno.EOPNOTSUPP,
                errno.EINVAL,
            ):  # the file system knows no promises
                raise
    return max(size, before)


def fixed_length(values: Sequence[str]) -> np.ndarray:
    """Strings of fixed length: those of variable length lie outside the chunks, where nothing checks them."""
    encoded = [value.encode() for value in values]
    return np.array(encoded, h5py.string_dtype("utf-8", max(map(len, encoded))))
