"""Pixels of a DICOM file: whether the file holds them all, and their values after decoding."""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydicom import encaps, pixels
from pydicom.dataset import FileDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from brainseg.core.errors import DataError
from brainseg.data.imageio.dicom_frames import Frame, numbers, text

TAGS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PlanarConfiguration",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PixelData",
    "FloatPixelData",
    "DoubleFloatPixelData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)
# Tags of the element with the pixels.
FLOAT, DOUBLE, INTEGER = 0x7FE00008, 0x7FE00009, 0x7FE00010
# The length of an element that ends with a delimiter, such as compressed pixels.
UNDEFINED_LENGTH = 0xFFFFFFFF
CONVERT = "Convert the series to NIfTI, for example by dcm2niix (pip install dcm2niix)"


@dataclass(frozen=True)
class PixelFormat:
    """Storage of the pixels of a file."""

    syntax: UID
    # The type of the stored values.
    dtype: np.dtype
    bits_stored: int
    # True for MONOCHROME1, where the highest stored value is the darkest.
    is_inverted: bool
    # The lowest and the highest stored value that is no measurement.
    padding: tuple[float, float] | None


def syntax_of(dataset: FileDataset) -> UID:
    """Return the transfer syntax, inferred if the file has no meta information."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax:
        return UID(syntax)
    is_implicit, is_little_endian = dataset.original_encoding
    if is_implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if is_little_endian else ExplicitVRBigEndian


def read_format(path: Path, dataset: FileDataset, stream: BinaryIO, count: int) -> PixelFormat:
    """Return how `path` stores `count` frames, after a check that all of their bytes are there.

    `stream` is at the element with the pixels. If the file is deflated, `dataset` has this element.
    Raises DataError naming the file.
    """
    bits, stored = (
        int(dataset.BitsAllocated),
        int(dataset.get("BitsStored") or dataset.BitsAllocated),
    )
    high = dataset.get("HighBit")
    if bits not in (8, 16, 32, 64) or not 0 < stored <= bits or high not in (None, stored - 1):
        raise DataError(
            f"{path}: {stored} of {bits} bits up to bit {high} are not a way to store pixels"
        )
    syntax = syntax_of(dataset)
    needed = math.ceil(int(dataset.Rows) * int(dataset.Columns) * count * bits / 8)
    if syntax == DeflatedExplicitVRLittleEndian:
        element = next((tag for tag in (INTEGER, FLOAT, DOUBLE) if tag in dataset), 0)
        _check_bytes(path, len(dataset[element].value) if element else 0, needed)
    else:
        element = _check_stream(path, dataset, syntax, stream, needed, count)
    kinds = {FLOAT: "f4", DOUBLE: "f8"}
    is_signed = int(dataset.get("PixelRepresentation") or 0) == 1
    dtype = np.dtype(kinds.get(element, f"{'i' if is_signed else 'u'}{bits // 8}"))
    if dtype.itemsize * 8 != bits:
        raise DataError(f"{path}: BitsAllocated is {bits}, and its pixels are {dtype.name}")
    is_inverted = text(dataset, "PhotometricInterpretation") == "MONOCHROME1"
    return PixelFormat(syntax, dtype, stored, is_inverted, _padding(dataset, dtype))


def read_values(
    path: Path, dataset: FileDataset, form: PixelFormat, frames: Sequence[Frame]
) -> Iterator[tuple[Frame, np.ndarray, np.ndarray | None]]:
    """Yield each of a file's `frames`, its rescaled values (j, i), and where they are padding.

    Values keep the stored type if nothing rescales them. `dataset` holds the pixels. Raises
    DataError naming `path`, and what pydicom raises for pixels that cannot be decoded.
    """
    by_index = {frame.index: frame for frame in frames}
    if form.syntax.is_encapsulated:
        _check_codestreams(path, dataset, frames[0], form)
    decoded = 0
    # All frames are decoded in one pass: to look up single ones walks through the file for each.
    for index, stored in enumerate(pixels.iter_pixels(dataset, raw=True)):
        if index not in by_index:
            continue
        frame = by_index[index]
        if stored.shape != frame.shape[::-1]:
            raise DataError(f"{path}: frame {index + 1} has other sizes than the header says")
        padded = None
        if form.padding is not None:
            padded = (stored >= form.padding[0]) & (stored <= form.padding[1])
        if form.is_inverted:
            stored = invert_grey_values(stored, form)
        if frame.is_rescaled:
            stored = stored * np.float64(frame.slope) + frame.intercept
        decoded += 1
        yield frame, stored, padded
    if decoded < len(frames):
        raise DataError(f"{path}: {decoded} of its {len(frames)} frames can be decoded")


def _padding(dataset: FileDataset, dtype: np.dtype) -> tuple[float, float] | None:
    """Return the range of stored values that stand for no measurement, None if there are none."""
    first = numbers(dataset, "PixelPaddingValue", 1)
    if first is None or (first == (0.0,) and dtype.kind == "u"):
        # An unsigned 0 is background already.
        return None
    last = numbers(dataset, "PixelPaddingRangeLimit", 1) or first
    return min(first[0], last[0]), max(first[0], last[0])


def invert_grey_values(stored: np.ndarray, form: PixelFormat) -> np.ndarray:
    """Return stored values with the darkest lowest, as in MONOCHROME2."""
    if stored.dtype.kind == "f":
        return -stored
    # The bitwise complement maps the range of a signed or unsigned integer onto itself, reversed.
    if stored.dtype.kind == "i":
        return ~stored
    return ~stored & stored.dtype.type(2**form.bits_stored - 1)


def _check_stream(
    path: Path, dataset: FileDataset, syntax: UID, stream: BinaryIO, needed: int, count: int
) -> int:
    """Return the tag of the element with the pixels. Raises DataError if bytes are missing."""
    is_implicit, is_little_endian = dataset.original_encoding
    order = "<" if is_little_endian else ">"
    layout = struct.Struct(f"{order}HHL" if is_implicit else f"{order}HH2x2xL")
    header = stream.read(layout.size)
    group, element, length = layout.unpack(header) if len(header) == layout.size else (0, 0, 0)
    tag = group << 16 | element
    if tag not in (FLOAT, DOUBLE, INTEGER):
        raise DataError(f"{path}: the file ends before its pixels. Copy it again from its source")
    start, size = stream.tell(), path.stat().st_size
    if not syntax.is_encapsulated:
        available = size - start if length == UNDEFINED_LENGTH else min(length, size - start)
        _check_bytes(path, available, needed)
        return tag
    check_decoder(path, syntax)
    encaps.parse_basic_offsets(stream, endianness=order)
    fragments, offsets = encaps.parse_fragments(stream, endianness=order)
    if offsets:
        stream.seek(offsets[-1] + 4)
        end = stream.tell() + 4 + struct.unpack(f"{order}L", stream.read(4))[0]
        if end > size:
            raise DataError(
                f"{path}: truncated by {end - size:,} bytes. Copy it again from its source"
            )
    if fragments < count:
        raise DataError(f"{path}: truncated: {fragments} compressed frames of {count} are there")
    return tag


def _check_bytes(path: Path, available: int, needed: int) -> None:
    if available < needed:
        raise DataError(
            f"{path}: truncated: it holds {available:,} of the {needed:,} bytes that its pixels "
            "take. Copy it again from its source"
        )


def check_decoder(path: Path, syntax: UID) -> None:
    """Raise DataError naming what to install unless a decoder for `syntax` is installed."""
    try:
        decoder = pixels.get_decoder(syntax)
    except NotImplementedError as error:
        rule = f"its pixels are stored as {syntax.name}, which cannot be read"
        raise DataError(f"{path}: {rule}. {CONVERT}") from error
    if not decoder.is_available:
        rule = f"its pixels are compressed ({syntax.name}), and no decoder is installed"
        remedy = "Install one: pip install 'brainseg[dicom]'"
        raise DataError(f"{path}: {rule}. {remedy}")


def _check_codestreams(path: Path, dataset: FileDataset, frame: Frame, form: PixelFormat) -> None:
    """Refuse compressed frames that would become larger than the header says. Raises DataError."""
    offsets = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    encoded = encaps.generate_frames(
        dataset.PixelData,
        number_of_frames=int(dataset.get("NumberOfFrames") or 1),
        extended_offsets=offsets if all(offsets) else None,
    )
    expected = frame.shape[0] * frame.shape[1] * form.dtype.itemsize
    for index, codestream in enumerate(encoded):
        if form.syntax == RLELossless:
            # Run lengths add at most 1 byte to 128, and 64 bytes of header to a frame.
            is_plausible = len(codestream) <= expected * 1.1 + 1024
        else:
            is_plausible = codestream_size(codestream) == (*frame.shape, 1)
        if not is_plausible:
            rule = "its compressed pixels are of other sizes than the header says"
            raise DataError(f"{path}: frame {index + 1}: {rule}")


def codestream_size(codestream: bytes) -> tuple[int, int, int] | None:
    """Return columns, rows and samples of a JPEG, JPEG-LS or JPEG 2000 codestream, or None."""
    # A JPEG 2000 codestream begins with the markers SOC and SIZ, perhaps behind boxes of a file.
    start = codestream.find(b"\xff\x4f\xff\x51", 0, 4096)
    if 0 <= start <= len(codestream) - 42:
        x_end, y_end, x_start, y_start = struct.unpack_from(">4L", codestream, start + 8)
        return x_end - x_start, y_end - y_start, struct.unpack_from(">H", codestream, start + 40)[0]
    place = 2
    while place + 10 <= len(codestream) and codestream[place] == 0xFF:
        marker, length = codestream[place + 1], struct.unpack_from(">H", codestream, place + 2)[0]
        # Start of frame: all of C0 to CF but the tables C4, C8 and CC; F7 is that of JPEG-LS.
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns, samples = struct.unpack_from(">HHB", codestream, place + 5)
            return columns, rows, samples
        place += 1 if marker == 0xFF else 2 + length
    return None
