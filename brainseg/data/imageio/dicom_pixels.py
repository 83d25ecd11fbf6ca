"""Pixels of a DICOM file: a check that all of them are present, and their decoded values."""

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
from brainseg.data.imageio.dicom_frames import Frame, read_numbers, read_text

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
# Tags of the elements that may hold the pixels.
FLOAT, DOUBLE, INTEGER = 0x7FE00008, 0x7FE00009, 0x7FE00010
# The length of an element that ends with a delimiter, such as compressed pixels.
UNDEFINED_LENGTH = 0xFFFFFFFF
CONVERT = "Convert the series to NIfTI, for example by dcm2niix (pip install dcm2niix)"


@dataclass(frozen=True)
class PixelFormat:
    """How the pixels of a DICOM file are encoded: transfer syntax, type, inversion and padding."""

    syntax: UID
    # Type of the stored values.
    dtype: np.dtype
    bits_stored: int
    # True for MONOCHROME1, where the highest stored value is the darkest.
    is_inverted: bool
    # Lowest and highest stored value that stands for padding, None without padding.
    padding: tuple[float, float] | None


def syntax_of(dataset: FileDataset) -> UID:
    """Return the transfer syntax. Without meta information, it is inferred from the encoding."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax:
        return UID(syntax)
    is_implicit, is_little_endian = dataset.original_encoding
    if is_implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if is_little_endian else ExplicitVRBigEndian


def read_format(path: Path, dataset: FileDataset, stream: BinaryIO, count: int) -> PixelFormat:
    """Return the format of the pixels of `count` frames, and check that no byte is missing.

    `stream` is at the element with the pixels. For a deflated file, `dataset` contains this
    element. Raises DataError naming the file.
    """
    bits = int(dataset.BitsAllocated)
    bits_stored = int(dataset.get("BitsStored") or bits)
    high = dataset.get("HighBit")
    is_valid = bits in (8, 16, 32, 64) and 0 < bits_stored <= bits
    if not is_valid or high not in (None, bits_stored - 1):
        raise DataError(
            f"{path}: {bits_stored} of {bits} bits up to bit {high} are not a way to store pixels"
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
    is_inverted = read_text(dataset, "PhotometricInterpretation") == "MONOCHROME1"
    return PixelFormat(syntax, dtype, bits_stored, is_inverted, _padding(dataset, dtype))


def read_values(
    path: Path, dataset: FileDataset, form: PixelFormat, frames: Sequence[Frame]
) -> Iterator[tuple[Frame, np.ndarray, np.ndarray | None]]:
    """Yield each of `frames`, its rescaled values (j, i), and the mask of its padding or None.

    Values that are not rescaled keep the stored type. `dataset` holds the pixels. Raises DataError
    naming `path`, and pydicom's exceptions for pixels that cannot be decoded.
    """
    by_index = {frame.index: frame for frame in frames}
    if form.syntax.is_encapsulated:
        _check_codestreams(path, dataset, frames[0], form)
    decoded = 0
    # All frames are decoded in one pass, because decoding a single frame walks through the file.
    for index, values in enumerate(pixels.iter_pixels(dataset, raw=True)):
        if index not in by_index:
            continue
        frame = by_index[index]
        if values.shape != frame.shape[::-1]:
            raise DataError(f"{path}: frame {index + 1} has other sizes than the header says")
        padding = None
        if form.padding is not None:
            # The header gives padding as stored values, before inversion and rescaling.
            padding = (values >= form.padding[0]) & (values <= form.padding[1])
        if form.is_inverted:
            values = invert_grey_values(values, form)
        if frame.is_rescaled:
            values = values * np.float64(frame.slope) + frame.intercept
        decoded += 1
        yield frame, values, padding
    if decoded < len(frames):
        raise DataError(f"{path}: {decoded} of its {len(frames)} frames can be decoded")


def _padding(dataset: FileDataset, dtype: np.dtype) -> tuple[float, float] | None:
    """Return the lowest and highest stored value of padding, None if there is no padding."""
    first = read_numbers(dataset, "PixelPaddingValue", 1)
    if first is None or (first == (0.0,) and dtype.kind == "u"):
        # An unsigned 0 is the lowest value, and so background without any treatment.
        return None
    last = read_numbers(dataset, "PixelPaddingRangeLimit", 1) or first
    return min(first[0], last[0]), max(first[0], last[0])


def invert_grey_values(stored: np.ndarray, form: PixelFormat) -> np.ndarray:
    """Return stored values with the darkest pixel lowest, as in MONOCHROME2."""
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
    """Raise DataError if the file holds fewer bytes of pixels than the header asks for."""
    if available < needed:
        raise DataError(
            f"{path}: truncated: it holds {available:,} of the {needed:,} bytes that its pixels "
            "take. Copy it again from its source"
        )


def check_decoder(path: Path, syntax: UID) -> None:
    """Raise DataError, naming the package to install, if there is no decoder for `syntax`."""
    try:
        decoder = pixels.get_decoder(syntax)
    except NotImplementedError as error:
        rule = f"its pixels are stored as {syntax.name}, which cannot be read"
        raise DataError(f"{path}: {rule}. {CONVERT}") from error
    if not decoder.is_available:
        rule = f"its pixels are compressed ({syntax.name}), and no decoder is installed"
        remedy = "Install one: pip install -e '.[dicom]' in a clone"
        raise DataError(f"{path}: {rule}. {remedy}")


def _check_codestreams(path: Path, dataset: FileDataset, frame: Frame, form: PixelFormat) -> None:
    """Raise DataError if compressed frames have other sizes than the header says.

    A decoder would allocate as much memory as the compressed frame asks for.
    """
    offsets = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    encoded = encaps.generate_frames(
        dataset.PixelData,
        number_of_frames=int(dataset.get("NumberOfFrames") or 1),
        extended_offsets=offsets if all(offsets) else None,
    )
    expected = frame.shape[0] * frame.shape[1] * form.dtype.itemsize
    for index, codestream in enumerate(encoded):
        if form.syntax == RLELossless:
            # Run-length encoding adds at most 1 byte to 128, and a frame has 64 bytes of header.
            is_plausible = len(codestream) <= expected * 1.1 + 1024
        else:
            is_plausible = codestream_size(codestream) == (*frame.shape, 1)
        if not is_plausible:
            rule = "its compressed pixels are of other sizes than the header says"
            raise DataError(f"{path}: frame {index + 1}: {rule}")


def codestream_size(codestream: bytes) -> tuple[int, int, int] | None:
    """Return columns, rows and samples of a JPEG, JPEG-LS or JPEG 2000 codestream, else None."""
    # A JPEG 2000 codestream begins with the markers SOC and SIZ, perhaps after boxes of a file.
    start = codestream.find(b"\xff\x4f\xff\x51", 0, 4096)
    if 0 <= start <= len(codestream) - 42:
        x_end, y_end, x_start, y_start = struct.unpack_from(">4L", codestream, start + 8)
        return x_end - x_start, y_end - y_start, struct.unpack_from(">H", codestream, start + 40)[0]
    place = 2
    while place + 10 <= len(codestream) and codestream[place] == 0xFF:
        marker, length = codestream[place + 1], struct.unpack_from(">H", codestream, place + 2)[0]
        # Start of frame is any marker from C0 to CF but the tables C4, C8 and CC. JPEG-LS uses F7.
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns, samples = struct.unpack_from(">HHB", codestream, place + 5)
            return columns, rows, samples
        place += 1 if marker == 0xFF else 2 + length
    return None
