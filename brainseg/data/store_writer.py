"""Writing of the HDF5 file of a cohort, in the format of `store`.

On a full disk no file is written, and an error is raised.
"""

import errno
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np

from brainseg.core.files import remove_stale, resolve_link, writing
from brainseg.data.store import FORMAT, SCHEMA
from brainseg.data.volume import CHANNELS, CLASSES, Volume, fingerprint, renamed_patients

# Bytes of pixels that HDF5 buffers before it writes them, in both datasets together.
BUFFER_BYTES = 2**24
# Bytes that suffice for all but the pixels, for each file and for each slice.
SMALL, SMALL_ROW = 16_384, 1024


def write_store(
    path: str | Path,
    volumes: Sequence[Volume],
    pixels: Iterable[tuple[np.ndarray, np.ndarray]],
    channels: Sequence[str] = CHANNELS,
    classes: Sequence[str] = CLASSES,
    preparation: str = "",
) -> None:
    """Write the file atomically, with bytes that depend on the arguments alone.

    `volumes` are sorted by name. `pixels` yields images (S, C, H, W) and masks (S, 1, H, W), both
    uint8, of each volume in this order. `preparation` describes in JSON how the source was read.
    Raises OSError if the disk is full.
    """
    # A killed process leaves a hidden file that may be as large as the complete file.
    remove_stale(path)
    small = SMALL + SMALL_ROW * sum(volume.shape[0] for volume in volumes)
    with writing(path) as temporary:
        _check_room(path, volumes)
        # The space for the first writes of HDF5 is reserved before HDF5 opens the file.
        with temporary.open("wb") as file:
            _reserve(file.fileno(), small)
        with h5py.File(
            temporary, "w", libver="latest", locking=False, rdcc_nbytes=BUFFER_BYTES // 2
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
                # Pixels that HDF5 has buffered are not yet part of the size of the file.
                needed = (
                    file.id.get_filesize()
                    + small
                    + round(1.01 * (min(written, BUFFER_BYTES) + size))
                )
                reserved = _reserve(file.id.get_vfd_handle(), needed, reserved)
                images[start:stop] = image
                masks[start:stop] = mask
                written += size
            file.flush()
            end = file.id.get_filesize()
        # The file ends where HDF5 stopped writing, without the rest of the reserved space.
        os.truncate(temporary, min(end, temporary.stat().st_size))


def _write_header(
    file: h5py.File, volumes: Sequence[Volume], channels: Sequence[str], classes: Sequence[str]
) -> np.ndarray:
    """Write all datasets but the pixels, create empty datasets for these, return `first_slice`."""
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
        "head_median": np.stack([volume.head_median for volume in volumes]),
        "head_box": np.stack([volume.head_box for volume in volumes]),
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
    """Raise OSError if the disk has too little space for the images and 2 % for all other data."""
    needed = int(1.02 * sum(math.prod(volume.shape) for volume in volumes))
    free = shutil.disk_usage(resolve_link(path).absolute().parent).free
    if needed > free:
        full = os.strerror(errno.ENOSPC)
        raise OSError(
            errno.ENOSPC,
            f"{full}: needs {needed / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free",
            str(path),
        )


def _reserve(descriptor: int, size: int, reserved: int = 0) -> int:
    """Reserve disk space for a file of `size` bytes and return the number of reserved bytes.

    `reserved` is the number of bytes that earlier calls reserved. Raises OSError if the disk has
    too little space. HDF5 cannot close a file that it could not write, and then crashes the
    interpreter at its end. The full disk must therefore be detected before HDF5 writes. macOS
    cannot reserve space, and a file system that never writes in place, such as ZFS, does not
    guarantee it.
    """
    if size > reserved and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, reserved, size - reserved)
        except OSError as error:
            # These two errors mean that the file system cannot reserve space.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    return max(size, reserved)


def fixed_length(values: Sequence[str]) -> np.ndarray:
    """Return the strings with a fixed length.

    HDF5 stores strings of variable length outside of the chunks, where no checksum covers them.
    """
    encoded = [value.encode() for value in values]
    return np.array(encoded, h5py.string_dtype("utf-8", max(map(len, encoded))))
