"""Read one slice or mask from a TIFF file. tifffile decodes the pixels after its header was checked.

A damaged header can ask for terabytes, or for pixels that the file does not contain (tifffile leaves
such memory as it was). The checks here follow what the decoder will read: the size of the image, and
of every strip or tile the bytes that lie in the file. Padding is allowed: in the public archive the
last of 24 strips has 11 rows, of which the image needs three.
"""

import logging
import math
import struct
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile, TiffPage

from brainseg.errors import DataError

LARGEST = 4096  # pixels of a side
LARGEST_FILE = 2**27  # bytes, which is more than four channels of the largest slice take
PLAIN = {COMPRESSION.NONE, COMPRESSION.LZW, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE}
PACKED = {COMPRESSION.PACKBITS, COMPRESSION.LZMA, COMPRESSION.ZSTD, COMPRESSION.JPEG}
FAX = {COMPRESSION.CCITTRLE, COMPRESSION.CCITT_T4, COMPRESSION.CCITT_T6}  # masks of one bit
COMPRESSIONS = PLAIN | PACKED | FAX
# MINISWHITE files are inverted, a palette is applied, and YCbCr exists only inside JPEG.
COLOURS = {
    PHOTOMETRIC.MINISBLACK,
    PHOTOMETRIC.MINISWHITE,
    PHOTOMETRIC.RGB,
    PHOTOMETRIC.PALETTE,
    PHOTOMETRIC.YCBCR,
}
SLICE_TYPES = ("uint8", "uint16", "int16")
MASK_TYPES = ("bool", *SLICE_TYPES)
# tifffile trusts the types and values of tags. Of 200,000 mutated files none raised anything else.
UNREADABLE = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    OSError,
    struct.error,
)

# Without a handler tifffile writes to stderr what the report says in one line.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def read_slice(path: Path, channels: int) -> np.ndarray:
    """Return the pixels (C, H, W) of a slice: uint8, or uint16 or int16 to be stretched by volume.

    Raises DataError naming the file.
    """
    pixels = read_tiff(path)
    if pixels.shape[2] != channels:
        raise DataError(f"{path}: {pixels.shape[2]} channel(s); a slice must have {channels}")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_mask(path: Path) -> np.ndarray:
    """Return the class index (H, W), uint8, of a mask of two values: 0, and 1, 255 or 65535.

    Raises DataError naming the file, with the values and how many pixels have each.
    """
    pixels = read_tiff(path, MASK_TYPES)
    if pixels.shape[2] == 3 and (pixels == pixels[:, :, :1]).all():
        pixels = pixels[:, :, :1]  # a grey image stored as RGB
    if pixels.shape[2] != 1:
        raise DataError(f"{path}: {pixels.shape[2]} channels; a mask must have 1")
    tumour = pixels[:, :, 0] != 0
    largest = int(pixels.max())
    is_binary = np.count_nonzero(pixels == largest) == np.count_nonzero(tumour)
    if largest not in (0, 1, 255, 65535) or (largest and not is_binary):
        values, counts = np.unique(pixels, return_counts=True)
        listed = [f"{value} ({count} pixels)" for value, count in zip(values, counts, strict=True)]
        text = ", ".join(listed[:6]) + (", ..." if len(listed) > 6 else "")
        raise DataError(f"{path}: mask values {text}; must be 0 and 255, or 0 and 1")
    return tumour.view(np.uint8)


def read_tiff(path: Path, types: Sequence[str] = SLICE_TYPES) -> np.ndarray:
    """Return the pixels (H, W, C) of a TIFF of one page, as tifffile decodes them.

    MINISWHITE is inverted, a palette of greys is applied and an opaque alpha channel is dropped.
    Raises DataError naming the file.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise DataError(f"{path}: {size:,} bytes; a slice has at most {LARGEST_FILE:,}")
        content = path.read_bytes()
        # A damaged tag overflows inside tifffile, and NumPy would warn.
        with np.errstate(over="ignore"), TiffFile(BytesIO(content)) as file:
            page = file.pages.first
            fault = fault_of(page, size, types) or _fault_of_pages(file)
            if not fault and page.compression == COMPRESSION.JPEG:
                fault = _fault_of_jpeg(page, content)
            pixels = np.empty(0) if fault else _visible(page, page.asarray(maxworkers=1))
    except DataError:
        raise
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) else None
        fault = reason or "damaged, or not a TIFF file"
    if fault:
        raise DataError(f"{path}: {fault}")
    return pixels


def fault_of(page: TiffPage, size: int, types: Sequence[str] = ("uint8",)) -> str:
    """Return what keeps a page from being decoded whole, "" if nothing. `size`: bytes of the file."""
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    if not (0 < height <= LARGEST and 0 < width <= LARGEST):
        return f"its header says {height}x{width} pixels; a side must lie between 1 and {LARGEST}"
    if page.dtype is None or str(page.dtype) not in types:
        return f"pixels are {page.dtype} of {page.bitspersample} bits; must be {' or '.join(types)}"
    is_plain = page.axes in ("YX", "YXS", "SYX") and page.planarconfig in (1, 2)
    if page.photometric not in COLOURS or not 0 < samples <= 4 or not is_plain:
        colours = getattr(page.photometric, "name", page.photometric)
        return f"stored as {colours} with {samples} samples; must be one grey or RGB image"
    if page.photometric == PHOTOMETRIC.YCBCR and page.compression != COMPRESSION.JPEG:
        return "stored as YCBCR without JPEG; save it as RGB"
    if page.compression not in COMPRESSIONS:
        codec = getattr(page.compression, "name", page.compression)
        return f"compression {codec}; save it uncompressed, or by LZW or deflate"
    orientation = page.tags.valueof(274, 1)
    if orientation != 1:
        return f"its orientation tag is {orientation}; save it upright (convert -auto-orient)"
    return _fault_of_segments(page, size)


def _fault_of_segments(page: TiffPage, size: int) -> str:
    """Return what is missing of the strips or tiles that the decoder will read."""
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    is_planar = page.planarconfig == 2
    per_row = 1 if is_planar else samples
    if page.is_tiled:
        if not (0 < page.tilelength <= LARGEST and 0 < page.tilewidth <= LARGEST):
            return f"its header says tiles of {page.tilelength}x{page.tilewidth} pixels"
        count = math.ceil(height / page.tilelength) * math.ceil(width / page.tilewidth)
        rows, columns = page.tilelength, page.tilewidth
    else:
        if page.rowsperstrip <= 0:
            return f"its header says strips of {page.rowsperstrip} rows"
        count, rows, columns = math.ceil(height / page.rowsperstrip), page.rowsperstrip, width
    count *= samples if is_planar else 1
    starts, lengths = page.dataoffsets[:count], page.databytecounts[:count]
    missing = f"truncated: the file does not contain all of its {height}x{width} pixels"
    if len(starts) != count or len(lengths) != count or min(starts) <= 0 or min(lengths) <= 0:
        return missing
    strips = math.ceil(height / rows)
    for index, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        if start + length > size:
            return missing
        if page.compression == COMPRESSION.NONE:
            # The last strip needs the rows that are left, and may contain more. A tile is always whole.
            used = rows if page.is_tiled else min(rows, height - index % strips * rows)
            if length < used * math.ceil(columns * per_row * page.bitspersample / 8):
                return missing
    return ""


def _fault_of_pages(file: TiffFile) -> str:
    """Return a fault if the file contains more images than its first page."""
    pages = file.pages[1:] if len(file.pages) > 1 else []
    others = [page for page in pages if not page.aspage().is_reduced]
    images = int((file.imagej_metadata or {}).get("images", 1)) if file.is_imagej else 1
    if others or images > 1:
        return f"{max(1 + len(others), images)} pages; a slice is one page"
    return ""


def _fault_of_jpeg(page: TiffPage, content: bytes) -> str:
    """Return a fault if a JPEG stream is larger than its strip or tile: it decides what is allocated."""
    rows, columns = page.chunks[:2] if page.planarconfig != 2 else page.chunks[1:3]
    for start, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        try:
            with Image.open(BytesIO(content[start : start + length]), formats=["JPEG"]) as stream:
                width, height = stream.size
        except Image.DecompressionBombError:
            return "a JPEG stream of far more pixels than its strip"
        if width > columns or height > max(rows, page.imagelength):
            return f"a JPEG stream of {height}x{width} pixels in a smaller strip"
    return ""


def _visible(page: TiffPage, stored: np.ndarray) -> np.ndarray:
    """Return the pixels (H, W, C) as a viewer shows them, from those that tifffile decoded."""
    pixels = np.moveaxis(stored, 0, -1) if page.axes == "SYX" else np.atleast_3d(stored)
    if page.photometric == PHOTOMETRIC.PALETTE and page.colormap is not None:
        colours = (page.colormap >> 8).astype(np.uint8)[:, pixels[:, :, 0]]
        return np.ascontiguousarray(np.moveaxis(colours, 0, -1))
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        pixels = ~pixels if pixels.dtype == bool else (2**page.bitspersample - 1) - pixels
    if len(page.extrasamples) == 1 and (pixels[:, :, -1] == np.iinfo(pixels.dtype).max).all():
        pixels = pixels[:, :, :-1]
    return pixels
