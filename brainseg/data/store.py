"""The HDF5 file of a cohort, with checksums that detect damaged bits.

The file is written once by `store_writer`. N is the number of slices, V of volumes, C of channels,
K of classes.

    images         (N, C, H, W) uint8     as in the source, sorted by volume name and slice number
    masks          (N, 1, H, W) uint8     class index, compressed
    slice_number   (N,) int32             number of the slice in the source
    tumour_pixels  (N,) int32             number of pixels of classes above 0
    volumes        (V,) UTF-8             name of the volume's folder
    patients       (V,) UTF-8             name of the volume's folder without its date
    first_slice    (V + 1,) int64         rows first_slice[v] to first_slice[v + 1] are volume v
    low, high      (V, C) float32         10th and 99th percentile of all pixels of the volume, with
                                          input = clip((image - low) / (high - low), 0, 1)
    copies         (V, C) uint8           1 if the sequence is missing and the channel copies FLAIR
    head_median    (V, C) float32         median of the head's pixels
    head_box       (V, 4) int32           rows and columns of the head: first, end, first, end
    spacing        (V, 3) float32         mm between slices, rows and columns, NaN if unknown
    channels       (C,) UTF-8             names of the sequences
    classes        (K,) UTF-8             names by class index

Files of earlier versions lack head_median and head_box, and can be used without them. The
attributes of the file are format, schema and fingerprint. If slices are not stored as they were
in the source, the attribute preparation contains reader, settings and notes as JSON.

Every dataset has Fletcher-32 checksums, and libver="latest" adds checksums to the metadata. Images
are not compressed. gzip would halve their size, but reading would take ten times and writing twenty
times as long (measured on the 61 real patients).
"""

import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from brainseg.core.errors import DataError, shorten_error
from brainseg.data.volume import digest, fingerprint, renamed_patients

FORMAT, SCHEMA = np.bytes_("brainseg"), 1
OPEN = "is open for writing in another program, or was not closed"
FOREIGN = "not a file that brainseg.prepare made"
REMEDY = "make it again with python -m brainseg.prepare"
# Type of every dataset. Text consists of bytes of a fixed length.
TYPES = {
    "images": "u1",
    "masks": "u1",
    "slice_number": "i4",
    "tumour_pixels": "i4",
    "first_slice": "i8",
    "low": "f4",
    "high": "f4",
    "copies": "u1",
    "spacing": "f4",
    "volumes": "S",
    "patients": "S",
    "channels": "S",
    "classes": "S",
}
# Datasets that files of earlier versions do not have.
LATER_TYPES = {"head_median": "f4", "head_box": "i4"}
# Errors of h5py for damaged files. None of 90,000 damaged files raised another error.
DAMAGE_ERRORS = (OSError, KeyError, ValueError, RuntimeError)


def part_of(file: h5py.File, name: str, remedy: str = REMEDY) -> h5py.Dataset:
    """Return the dataset `name` of the file.

    Raises DataError if the dataset is not in this file. HDF5 can also refer to other files, or to
    nothing.
    """
    part, link = file[name], file.get(name, getlink=True)
    if (
        not isinstance(part, h5py.Dataset)
        or not isinstance(link, h5py.HardLink)
        or part.is_virtual
        or part.external
    ):
        raise DataError(f"{file.filename}: {name} is not a dataset of this file; {remedy}")
    return part


def is_open_elsewhere(path: str | Path) -> bool:
    """Return True if a program has the file open for writing, or was stopped before it closed it.

    From version 3 on, HDF5 stores this in the lowest bit of the byte after the signature, the
    version and two sizes.
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(12)
    except OSError:
        return False
    return (
        len(start) == 12
        and start[:8] == b"\x89HDF\r\n\x1a\n"
        and start[8] >= 3
        and bool(start[11] & 1)
    )


def is_store(path: str | Path) -> bool:
    """Return True if `write_store` made the file, in any schema version."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return _has_format(file)
    except DAMAGE_ERRORS:
        return False


def _has_format(file: h5py.File) -> bool:
    """Return True if the file has the format attribute of brainseg."""
    # The attribute of another program with this name may be an array.
    value = file.attrs.get("format")
    return isinstance(value, bytes) and value == FORMAT


class SliceStore:
    """Slices and properties of a cohort, whether they are in a file or in memory.

    N is the number of slices, V of volumes, C of channels. The arrays have the shapes and types of
    the datasets of the file, but for names, which are lists of text.
    """

    # Where the slices come from, for messages.
    path: Path
    # SHA-256 of the content.
    fingerprint: str
    # (N, C, H, W)
    shape: tuple[int, ...]
    slice_number: np.ndarray
    tumour_pixels: np.ndarray
    first_slice: np.ndarray
    low: np.ndarray
    high: np.ndarray
    copies: np.ndarray
    spacing: np.ndarray
    # None in a file of an earlier version.
    head_median: np.ndarray | None
    head_box: np.ndarray | None
    volumes: list[str]
    patients: list[str]
    channels: list[str]
    classes: list[str]

    def images(self, start: int, stop: int) -> np.ndarray:
        """Return the rows start to stop of the images, (n, C, H, W) uint8.

        Raises DataError naming volume and slice if they are damaged.
        """
        return self._rows("images", start, stop)

    def masks(self, start: int, stop: int) -> np.ndarray:
        """Return the rows start to stop of the masks, (n, 1, H, W) uint8 class index.

        Raises DataError naming volume and slice if they are damaged.
        """
        return self._rows("masks", start, stop)

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows of the images or the masks. Raises IndexError for rows that do not exist."""
        raise NotImplementedError

    def _check_rows(self, name: str, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(
                f"rows {start} to {stop} of {name}: {self.path} has rows 0 to {self.shape[0]}"
            )

    def rows_of(self, volume: str) -> tuple[int, int]:
        """Return the first row of a volume and the row after its last row.

        Raises ValueError if there is no such volume.
        """
        index = self.volumes.index(volume)
        return int(self.first_slice[index]), int(self.first_slice[index + 1])

    def volume_of(self, row: int) -> int:
        """Return the index of the volume that a row belongs to."""
        return int(np.searchsorted(self.first_slice, row, side="right")) - 1


class Store(SliceStore):
    """The HDF5 file, opened for reading.

    Small arrays are read when the file is opened, and pixels are read on demand. A store can be
    pickled and used after a fork, because each process opens the file itself. Raises DataError
    naming the file if it is not a prepared file, has another schema version, or is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._handle: h5py.File | None = None
        self._process = 0
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file; {REMEDY}")
        try:
            self._read_header(self._file())
        except DAMAGE_ERRORS as error:
            self.close()
            if isinstance(error, DataError):
                raise
            if self.path.is_file() and is_open_elsewhere(self.path):
                raise DataError(f"{self.path}: {OPEN}; close that program, or {REMEDY}") from error
            raise DataError(
                f"{self.path}: damaged, or {FOREIGN} ({_reason(error)}); {REMEDY}"
            ) from error

    def _read_header(self, file: h5py.File) -> None:
        """Read all datasets but the pixels. Raises DataError if they are not consistent."""
        if not _has_format(file):
            raise DataError(f"{self.path}: {FOREIGN}; {REMEDY}")
        if (schema := file.attrs["schema"]) != SCHEMA:
            rule = f"schema version {schema}, but this version of brainseg reads {SCHEMA}"
            raise DataError(f"{self.path}: {rule}; {REMEDY}")
        self._check_parts(file)
        self.fingerprint = bytes(file.attrs["fingerprint"]).decode()
        self.preparation: str = bytes(file.attrs.get("preparation", b"")).decode()
        self.shape = file["images"].shape
        self.slice_number = file["slice_number"][()]
        self.tumour_pixels = file["tumour_pixels"][()]
        self.first_slice = file["first_slice"][()]
        self.low = file["low"][()]
        self.high = file["high"][()]
        self.spacing = file["spacing"][()]
        self.copies = file["copies"][()].astype(bool)
        self.head_median, self.head_box = (
            file[name][()] if name in file else None for name in LATER_TYPES
        )
        self.volumes, self.patients, self.channels, self.classes = (
            [name.decode() for name in file[key][()]]
            for key in ("volumes", "patients", "channels", "classes")
        )
        self._check_shapes(file)

    def _check_parts(self, file: h5py.File) -> None:
        """Raise DataError unless each dataset is in this file and has its type."""
        later = {name: kind for name, kind in LATER_TYPES.items() if name in file}
        for name, kind in (TYPES | later).items():
            part = part_of(file, name)
            if part.dtype.kind != "S" if kind == "S" else part.dtype != kind:
                raise DataError(
                    f"{self.path}: {name} is {part.dtype}, must be {np.dtype(kind)}; {REMEDY}"
                )
        images = file["images"]
        if images.ndim != 4 or images.id.get_storage_size() < math.prod(images.shape):
            size = images.id.get_storage_size()
            raise DataError(
                f"{self.path}: images of shape {images.shape} in {size} bytes; {REMEDY}"
            )
        # This shape is checked here because `_check_shapes` comes after `slice_number` is read.
        if (rows := file["slice_number"].shape) != images.shape[:1]:
            raise DataError(
                f"{self.path}: slice_number has shape {rows}, must have {images.shape[:1]}; "
                f"{REMEDY}"
            )

    def _check_shapes(self, file: h5py.File) -> None:
        """Raise DataError unless shapes and values of the datasets are consistent.

        A file without damage can still be inconsistent.
        """
        slices, channels, height, width = self.shape
        volumes = len(self.volumes)
        expected = {
            "images": (slices, channels, height, width),
            "masks": (slices, 1, height, width),
            "slice_number": (slices,),
            "tumour_pixels": (slices,),
            "first_slice": (volumes + 1,),
            "patients": (volumes,),
            "low": (volumes, channels),
            "high": (volumes, channels),
            "copies": (volumes, channels),
            "spacing": (volumes, 3),
            "channels": (channels,),
            "head_median": (volumes, channels),
            "head_box": (volumes, 4),
        }
        for name, shape in expected.items():
            if (name in TYPES or name in file) and file[name].shape != shape:
                raise DataError(
                    f"{self.path}: {name} has shape {file[name].shape}, must have {shape}; {REMEDY}"
                )
        first = self.first_slice
        if first[0] != 0 or first[-1] != slices or (np.diff(first) <= 0).any():
            raise DataError(f"{self.path}: first_slice must rise from 0 to {slices}; {REMEDY}")
        self._check_head_properties(height, width)
        names = [*self.volumes, *self.patients, *self.channels, *self.classes]
        if (
            not all(name.isprintable() for name in names)
            or not np.isfinite(self.low).all()
            or not np.isfinite(self.high).all()
        ):
            raise DataError(
                f"{self.path}: a name cannot be printed, or a percentile is not finite; {REMEDY}"
            )

    def _check_head_properties(self, height: int, width: int) -> None:
        """Raise DataError unless the medians of heads are finite and their boxes in the image.

        A file of an earlier version has neither, and passes.
        """
        is_finite = self.head_median is None or np.isfinite(self.head_median).all()
        box = np.zeros((0, 4), int) if self.head_box is None else self.head_box
        is_inside = all(
            (first >= 0).all() and (first < end).all() and (end <= size).all()
            for first, end, size in ((box[:, 0], box[:, 1], height), (box[:, 2], box[:, 3], width))
        )
        if not is_finite or not is_inside:
            raise DataError(
                f"{self.path}: head_median is not finite, or head_box is not in the image; {REMEDY}"
            )

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        self._check_rows(name, start, stop)
        try:
            return self._file()[name][start:stop]
        except DAMAGE_ERRORS as error:
            # Reading the rows again one by one raises the error of the damaged slice.
            for row in range(start, stop) if stop - start > 1 else ():
                self._rows(name, row, row + 1)
            place = (
                f"slice {self.slice_number[start]} of {self.volumes[self.volume_of(start)]}"
                if stop > start
                else "rows"
            )
            raise DataError(
                f"{self.path}: damaged at {name} of {place} ({_reason(error)}); {REMEDY}"
            ) from error

    def verify(self) -> None:
        """Read all data and raise DataError if they do not have the fingerprint.

        Fletcher-32 cannot detect words of 0x0000 that have become 0xFFFF, or the reverse, but the
        fingerprint does.
        """
        digests = []
        bounds = zip(
            self.volumes,
            self.spacing,
            self.first_slice[:-1].tolist(),
            self.first_slice[1:].tolist(),
            strict=True,
        )
        for name, spacing, start, stop in bounds:
            slices = zip(
                self.slice_number[start:stop],
                self.images(start, stop),
                self.masks(start, stop)[:, 0],
                strict=True,
            )
            digests.append(digest(name, slices, spacing))
        renamed = renamed_patients(self.volumes, self.patients)
        if fingerprint(digests, self.channels, self.classes, renamed) != self.fingerprint:
            raise DataError(f"{self.path}: the content does not have its fingerprint; {REMEDY}")

    def _file(self) -> h5py.File:
        """Return the file handle of this process."""
        # A handle that was inherited through a fork shares its file position with the parent
        # process, so each process opens its own handle.
        if self._handle is None or self._process != os.getpid():
            self.close()
            self._handle, self._process = h5py.File(self.path, "r", locking=False), os.getpid()
        return self._handle

    def close(self) -> None:
        """Close the file handle, which the next read opens again."""
        if self._handle is not None:
            self._handle.close()
        self._handle = None

    def __getstate__(self) -> dict[str, Any]:
        # h5py handles cannot be pickled.
        return self.__dict__ | {"_handle": None}

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _reason(error: BaseException) -> str:
    """Return the first 200 characters of the error's message on one line, or its type."""
    return shorten_error(error) or type(error).__name__
