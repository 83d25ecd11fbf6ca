"""The HDF5 file of a cohort: written once by `store_writer`, opened everywhere, and no flipped bit in it passes silently.

    images         (N, C, H, W) uint8     as in the source; N slices sorted by volume name, then slice number
    masks          (N, 1, H, W) uint8     class index, compressed
    slice_number   (N,) int32             tumour_pixels (N,) int32: pixels of class > 0
    volumes        (V,) UTF-8             the volume's folder; patients (V,): that name without its date
    first_slice    (V + 1,) int64         rows first_slice[v] to first_slice[v + 1] are volume v
    low, high      (V, C) float32         10th and 99th percentile of the whole volume; input = clip((image - low) / (high - low), 0, 1)
    copies         (V, C) uint8           1: the channel is a copy of FLAIR, its own sequence is missing
    spacing        (V, 3) float32         mm between slices, rows and columns; NaN unknown
    channels (C,), classes (K,) UTF-8     names; attributes: format, schema, fingerprint
    preparation                           attribute, JSON: reader, settings and notes, where slices are not stored as they were

Every dataset carries Fletcher-32 checksums; libver="latest" adds them to the metadata. Images are left uncompressed: gzip
halves them, but reads ten times and writes twenty times as slowly (measured on the 61 real patients).
"""

import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from brainseg.core.errors import DataError
from brainseg.data.volume import digest, fingerprint, renamed_patients

FORMAT, SCHEMA = np.bytes_("brainseg"), 1
OPEN = "is open for writing in another program, or was not closed"
FOREIGN = "not a file that brainseg.prepare made"
REMEDY = "make it again with python -m brainseg.prepare"
TYPES = {  # of every part; text is bytes of a fixed length
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
DAMAGED = (
    OSError,
    KeyError,
    ValueError,
    RuntimeError,
)  # none of 90,000 damaged files made h5py raise anything else


def part_of(file: h5py.File, name: str, remedy: str = REMEDY) -> h5py.Dataset:
    """The dataset `name`, if it lies in this very file (else DataError): HDF5 can also refer to other files, or to nothing."""
    part, link = file[name], file.get(name, getlink=True)
    if (
        not isinstance(part, h5py.Dataset)
        or not isinstance(link, h5py.HardLink)
        or part.is_virtual
        or part.external
    ):
        raise DataError(f"{file.filename}: {name} is no dataset of this file; {remedy}")
    return part


def is_open_elsewhere(path: str | Path) -> bool:
    """Return True if the file says that a program has it open for writing, or was stopped before it closed the file.

    HDF5 keeps that in the lowest bit of the byte behind the signature, the version and two sizes, from version 3 on.
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
    """Whether the file was made by `write_store`, of whatever schema version."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return _has_format(file)
    except DAMAGED:
        return False


def _has_format(file: h5py.File) -> bool:
    """Return True if the file says that it is one of ours. Another program's attribute of that name may be an array."""
    value = file.attrs.get("format")
    return isinstance(value, bytes) and value == FORMAT


class Store:
    """The file, opened for reading. Small arrays are read at once; pixels are read when asked for.

    It pickles, and it may be used after a fork: each process opens the file for itself. Raises DataError, naming the file,
    if it is none of ours, of another schema version, or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._handle: h5py.File | None = None
        self._process = 0
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file; {REMEDY}")
        try:
            self._read_header(self._file())
        except DAMAGED as error:
            self.close()
            if isinstance(error, DataError):
                raise
            if self.path.is_file() and is_open_elsewhere(self.path):
                raise DataError(f"{self.path}: {OPEN}; close that program, or {REMEDY}") from error
            raise DataError(
                f"{self.path}: damaged, or {FOREIGN} ({_reason(error)}); {REMEDY}"
            ) from error

    def _read_header(self, file: h5py.File) -> None:
        if not _has_format(file):
            raise DataError(f"{self.path}: {FOREIGN}; {REMEDY}")
        if (schema := file.attrs["schema"]) != SCHEMA:
            raise DataError(
                f"{self.path}: schema version {schema}; this version of brainseg reads {SCHEMA}; {REMEDY}"
            )
        self._check_parts(file)
        self.fingerprint: str = bytes(file.attrs["fingerprint"]).decode()
        self.preparation: str = bytes(file.attrs.get("preparation", b"")).decode()
        self.shape: tuple[int, int, int, int] = file["images"].shape
        self.slice_number: np.ndarray = file["slice_number"][()]
        self.tumour_pixels: np.ndarray = file["tumour_pixels"][()]
        self.first_slice: np.ndarray = file["first_slice"][()]
        self.low: np.ndarray = file["low"][()]
        self.high: np.ndarray = file["high"][()]
        self.spacing: np.ndarray = file["spacing"][()]
        self.copies: np.ndarray = file["copies"][()].astype(bool)
        self.volumes, self.patients, self.channels, self.classes = (
            [name.decode() for name in file[key][()]]
            for key in ("volumes", "patients", "channels", "classes")
        )
        self._check_shapes(file)

    def _check_parts(self, file: h5py.File) -> None:
        """Each part lies in this very file and has its type."""
        for name, kind in TYPES.items():
            part = part_of(file, name)
            if part.dtype.kind != "S" if kind == "S" else part.dtype != kind:
                raise DataError(
                    f"{self.path}: {name} is {part.dtype}, must be {np.dtype(kind)}; {REMEDY}"
                )
        images = file["images"]
        if images.ndim != 4 or images.id.get_storage_size() < math.prod(images.shape):
            raise DataError(
                f"{self.path}: images of shape {images.shape} in {images.id.get_storage_size()} bytes; {REMEDY}"
            )
        if (rows := file["slice_number"].shape) != images.shape[:1]:  # before it is read
            raise DataError(
                f"{self.path}: slice_number has shape {rows}, must have {images.shape[:1]}; {REMEDY}"
            )

    def _check_shapes(self, file: h5py.File) -> None:
        """The parts must fit one another: a file can be whole and still not be what it says."""
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
        }
        for name, shape in expected.items():
            if file[name].shape != shape:
                raise DataError(
                    f"{self.path}: {name} has shape {file[name].shape}, must have {shape}; {REMEDY}"
                )
        first = self.first_slice
        if first[0] != 0 or first[-1] != slices or (np.diff(first) <= 0).any():
            raise DataError(f"{self.path}: first_slice must rise from 0 to {slices}; {REMEDY}")
        names = [*self.volumes, *self.patients, *self.channels, *self.classes]
        if (
            not all(name.isprintable() for name in names)
            or not np.isfinite(self.low).all()
            or not np.isfinite(self.high).all()
        ):
            raise DataError(
                f"{self.path}: a name cannot be printed, or a percentile is not finite; {REMEDY}"
            )

    def images(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop of the images: (n, C, H, W) uint8. Raises DataError naming volume and slice if they are damaged."""
        return self._rows("images", start, stop)

    def masks(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop of the masks: (n, 1, H, W) uint8 class index. Raises DataError as `images`."""
        return self._rows("masks", start, stop)

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        if not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(
                f"rows {start} to {stop} of {name}: {self.path} has rows 0 to {self.shape[0]}"
            )
        try:
            return self._file()[name][start:stop]
        except DAMAGED as error:
            for row in range(start, stop) if stop - start > 1 else ():
                self._rows(name, row, row + 1)  # raises at the slice that is damaged
            place = (
                f"slice {self.slice_number[start]} of {self.volumes[self.volume_of(start)]}"
                if stop > start
                else "rows"
            )
            raise DataError(
                f"{self.path}: damaged at {name} of {place} ({_reason(error)}); {REMEDY}"
            ) from error

    def rows_of(self, volume: str) -> tuple[int, int]:
        """The rows of a volume, by its name: from, to. Raises ValueError if it is not in the file."""
        index = self.volumes.index(volume)
        return int(self.first_slice[index]), int(self.first_slice[index + 1])

    def volume_of(self, row: int) -> int:
        """Index of the volume that a row belongs to."""
        return int(np.searchsorted(self.first_slice, row, side="right")) - 1

    def verify(self) -> None:
        """Read everything once and compare it with the fingerprint. Raises DataError.

        This finds what Fletcher-32 cannot, by its nature: words of 0x0000 that have become 0xFFFF, or the reverse.
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
        """The handle of this process. One inherited through a fork shares its file position with the parent: close, open anew."""
        if self._handle is None or self._process != os.getpid():
            self.close()
            self._handle, self._process = h5py.File(self.path, "r", locking=False), os.getpid()
        return self._handle

    def close(self) -> None:
        """Close the handle; reading opens it again."""
        if self._handle is not None:
            self._handle.close()
        self._handle = None

    def __getstate__(self) -> dict[str, Any]:
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
    return " ".join(str(error).split())[:200] or type(error).__name__
