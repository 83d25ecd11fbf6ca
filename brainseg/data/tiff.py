"""Reads one slice or mask from a TIFF file that nobody vouches for: the header is judged before anything is decoded.

A damaged header can ask for terabytes, for a codec with holes, or for pixels that nobody stored (tifffile leaves their
memory as it was). A slice needs little of TIFF, so only that reaches the decoder: one page, grey or RGB, 8 bits, strips.
"""

import logging
import math
import struct
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile, TiffPage

from brainseg.errors import DataError

LARGEST = 4096  # pixels of a side
LARGEST_FILE = 2**27  # bytes: above four channels of the largest slice
LONGEST_HEADER = 2**16
LOSSLESS = (COMPRESSION.NONE, COMPRESSION.LZW, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE, COMPRESSION.PACKBITS)
COLOURS = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB)
# tifffile trusts the types and values of tags; of 200,000 mutated files none raised anything but these (tests/test_source.py)
UNREADABLE = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, OSError, struct.error)

# Parsing a header takes tifffile longer than all else together, and a cohort's are alike: (bytes before the pixels, shape) by
# size of file, for files that are a header, then plain pixels up to the end. The same header says the same of any pixels.
_plain: dict[int, tuple[bytes, tuple[int, ...]]] = {}

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # else it writes to stderr what the report says in one line


def read_slice(path: Path, channels: int) -> np.ndarray:
    """Pixels (C, H, W) uint8 of a slice. Raises DataError naming the file."""
    pixels = read_tiff(path)
    if pixels.shape[2] != channels:
        raise DataError(f"{path}: {pixels.shape[2]} channel(s); a slice must have {channels}")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_mask(path: Path) -> np.ndarray:
    """Class index (H, W) uint8 of a mask stored as 0/255 or 0/1. Raises DataError naming the file."""
    pixels = read_tiff(path)
    if pixels.shape[2] != 1:
        raise DataError(f"{path}: {pixels.shape[2]} channels; a mask must have 1")
    tumour = pixels[:, :, 0] != 0
    largest = int(pixels.max())
    if largest not in (0, 1, 255) or np.count_nonzero(pixels == largest) < np.count_nonzero(tumour):
        values = np.unique(pixels).tolist()
        shown = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
        raise DataError(f"{path}: mask values {shown}; must be 0 and 255, or 0 and 1")
    return tumour.view(np.uint8)


def read_tiff(path: Path) -> np.ndarray:
    """Pixels (H, W, C) uint8 of a one-page TIFF. Raises DataError naming the file."""
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= LARGEST_FILE else b""
        header, shape = _plain.get(len(content), (b"", ()))
        if shape and content.startswith(header):
            return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)
        fault, pixels = _decode(content) if size <= LARGEST_FILE else (f"{size} bytes; a slice has at most {LARGEST_FILE}", np.empty(0))
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:200]
        fault = f"unreadable or truncated ({type(error).__name__}: {reason})"
    if fault:
        raise DataError(f"{path}: {fault}")
    return pixels


def _decode(content: bytes) -> tuple[str, np.ndarray]:
    """What is wrong with the file, and its pixels if nothing is. Raises whatever tifffile raises."""
    with np.errstate(over="ignore"), TiffFile(BytesIO(content)) as file:  # a damaged tag overflows in tifffile, and NumPy warns
        page = file.pages.first
        fault = fault_of(page, len(content)) or ("more than one page; a slice is one page" if file.pages.is_multipage else "")
        if fault:
            return fault, np.empty(0)
        pixels = page.asarray(maxworkers=1).reshape(page.imagelength, page.imagewidth, -1)
        start = page.dataoffsets[0]
        if page.is_final and start + pixels.nbytes == len(content) and start <= LONGEST_HEADER:
            _plain[len(content)] = content[:start], pixels.shape
    return "", pixels


def fault_of(page: TiffPage, size: int, types: Sequence[str] = ("uint8",)) -> str:
    """What the header says against this page; "" if nothing. `size` is that of the file in bytes."""
    height, width = page.imagelength, page.imagewidth
    if not (0 < height <= LARGEST and 0 < width <= LARGEST):
        return f"its header says {height}x{width} pixels; a side must lie between 1 and {LARGEST}"
    if page.dtype is None or str(page.dtype) not in types or page.bitspersample != 8 * page.dtype.itemsize:
        return f"pixels are {page.dtype}; must be {' or '.join(types)}"
    if page.photometric not in COLOURS or page.axes not in ("YX", "YXS"):
        return f"stored as {page.photometric!s} with axes {page.axes}; must be grey or interleaved RGB"
    if page.compression not in LOSSLESS or page.is_tiled:
        return f"compression {page.compression!s}{', tiled' if page.is_tiled else ''}; save it uncompressed in strips"
    starts, lengths = page.dataoffsets, page.databytecounts
    strips = math.ceil(height / page.rowsperstrip)
    whole = len(starts) == len(lengths) == strips and min(starts) > 0 and min(lengths) > 0
    if page.compression == COMPRESSION.NONE and sum(lengths) != page.nbytes:
        whole = False
    if not whole or max(start + length for start, length in zip(starts, lengths, strict=True)) > size:
        return f"truncated: the file does not hold all of its {height}x{width} pixels"
    return ""
