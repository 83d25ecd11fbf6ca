"""Reader of single slices and masks in TIFF files. Headers are checked before tifffile decodes.

A damaged header can ask for terabytes, or for pixels that the file does not contain. tifffile
leaves the memory of such pixels as it was. The checks follow the decoder. They cover the size of
the image, and for every strip or tile the bytes in the file. Padding is allowed. In the public
archive, the last of 24 strips has 11 rows, of which the image needs three.
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

from brainseg.core.errors import DataError

# Largest side of an image in pixels.
LARGEST = 4096
# Bytes, which is more than four channels of the largest slice take.
LARGEST_FILE = 2**27
PLAIN = {COMPRESSION.NONE, COMPRESSION.LZW, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE}
PACKED = {COMPRESSION.PACKBITS, COMPRESSION.LZMA, COMPRESSION.ZSTD, COMPRESSION.JPEG}
# Compressions of masks of one bit.
FAX = {COMPRESSION.CCITTRLE, COMPRESSION.CCITT_T4, COMPRESSION.CCITT_T6}
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
# Exceptions of tifffile, which trusts the types and values of tags. Of 200,000 mutated files, none
# raised anything else.
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

# Without a handler, tifffile logs to stderr the faults that the report lists in one line each.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def read_slice(path: Path, channels: int, offsets: dict[Path, int] | None = None) -> np.ndarray:
    """Return the pixels (C, H, W) of a slice as uint8, uint16 or int16.

    `offsets` is filled as in `read_tiff`. Raises DataError naming the file.
    """
    pixels = read_tiff(path, offsets=offsets)
    if pixels.shape[2] != channels:
        raise DataError(f"{path}: {pixels.shape[2]} channel(s); a slice must have {channels}")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_mask(path: Path, offsets: dict[Path, int] | None = None) -> np.ndarray:
    """Return the class indices (H, W), uint8, of a mask with the values 0 and 1, 255 or 65535.

    `offsets` is filled as in `read_tiff`. Raises DataError naming the file, its values and the
    number of pixels of each value.
    """
    pixels = read_tiff(path, MASK_TYPES, offsets)
    if pixels.shape[2] == 3 and (pixels == pixels[:, :, :1]).all():
        # A grey image may be stored as RGB.
        pixels = pixels[:, :, :1]
    if pixels.shape[2] != 1:
        raise DataError(f"{path}: {pixels.shape[2]} channels; a mask must have 1")
    tumour = pixels[:, :, 0] != 0
    largest = int(pixels.max())
    is_binary = np.count_nonzero(pixels == largest) == np.count_nonzero(tumour)
    if largest not in (0, 1, 255, 65535) or (largest and not is_binary):
        values, counts = np.unique(pixels, return_counts=True)
        entries = [f"{value} ({count} pixels)" for value, count in zip(values, counts, strict=True)]
        text = ", ".join(entries[:6]) + (", ..." if len(entries) > 6 else "")
        raise DataError(f"{path}: mask values {text}; must be 0 and 255, or 0 and 1")
    return tumour.view(np.uint8)


def read_tiff(
    path: Path, types: Sequence[str] = SLICE_TYPES, offsets: dict[Path, int] | None = None
) -> np.ndarray:
    """Return the pixels (H, W, C) of a TIFF of one page, as tifffile decodes them.

    MINISWHITE is inverted, a palette of greys is applied and an opaque alpha channel is dropped. If
    the file contains the pixels uncompressed in one piece, `offsets` gets the place of their first
    byte. Raises DataError naming the file.
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
            start = 0 if fault else _start_of_plain_pixels(page)
            if start:
                # This takes a tenth of the decoder's time for the strips of the public archive.
                stored = np.frombuffer(content, np.uint8, page.nbytes, start)
                pixels = stored.reshape(page.imagelength, page.imagewidth, -1)
            elif not fault:
                pixels = _visible(page, page.asarray(maxworkers=1))
    except DataError:
        raise
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) else None
        fault = reason or "damaged, or not a TIFF file"
    if fault:
        raise DataError(f"{path}: {fault}")
    if offsets is not None and start:
        offsets[path] = start
    return pixels


def _start_of_plain_pixels(page: TiffPage) -> int:
    """Return the place of the pixels if they lie in one piece as decoded, else 0.

    The page must have passed `fault_of`.
    """
    is_plain = page.compression == COMPRESSION.NONE and page.dtype == np.uint8
    is_plain = is_plain and page.bitspersample == 8 and page.predictor == 1 and page.fillorder == 1
    if not is_plain or page.photometric not in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB):
        return 0
    if page.is_tiled or page.axes == "SYX" or page.extrasamples:
        return 0
    strip = page.rowsperstrip * page.imagewidth * page.samplesperpixel
    count = math.ceil(page.imagelength / page.rowsperstrip)
    starts = page.dataoffsets
    in_one_piece = all(starts[index] == starts[0] + index * strip for index in range(count))
    return starts[0] if in_one_piece else 0


def fault_of(page: TiffPage, size: int, types: Sequence[str]) -> str:
    """Return the fault that prevents the decoding of a page, "" if there is none.

    `size` is the number of bytes of the file.
    """
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    if not (0 < height <= LARGEST and 0 < width <= LARGEST):
        return f"its header says {height}x{width} pixels; a side must lie between 1 and {LARGEST}"
    if page.nbytes > LARGEST_FILE:
        return f"its header says {page.nbytes:,} bytes of pixels; at most {LARGEST_FILE:,} are read"
    if page.dtype is None or str(page.dtype) not in types:
        return f"pixels are {page.dtype} of {page.bitspersample} bits; must be {' or '.join(types)}"
    is_plain = page.axes in ("YX", "YXS", "SYX") and page.planarconfig in (1, 2)
    if page.photometric not in COLOURS or samples <= 0 or not is_plain:
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
    fault = _fault_of_segments(page, size)
    return fault if fault or page.compression != COMPRESSION.JPEG else _fault_of_jpeg(page)


def _fault_of_segments(page: TiffPage, size: int) -> str:
    """Return a fault if the file lacks part of the strips or tiles that the decoder will read."""
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
    if any(start + length > size for start, length in zip(starts, lengths, strict=True)):
        return missing
    if page.compression != COMPRESSION.NONE:
        return ""
    row_bytes = math.ceil(columns * per_row * page.bitspersample / 8)
    strips = math.ceil(height / rows)
    # The last strip needs only the remaining rows, and may contain more. A tile is always complete.
    last = rows if page.is_tiled else height - (strips - 1) * rows
    for index, length in enumerate(lengths):
        is_last = not page.is_tiled and index % strips == strips - 1
        if length < (last if is_last else rows) * row_bytes:
            return missing
    return ""


def has_lost_pages(file: TiffFile) -> bool:
    """Return True if the last page that could be read points to another page.

    tifffile leaves out the pages behind the end of a truncated file.
    """
    kind, handle = file.tiff, file.filehandle
    start = file.pages[-1].offset
    handle.seek(start)
    (tags,) = struct.unpack(kind.tagnoformat, handle.read(kind.tagnosize))
    handle.seek(start + kind.tagnosize + tags * kind.tagsize)
    (following,) = struct.unpack(kind.offsetformat, handle.read(kind.offsetsize))
    return bool(following)


def _fault_of_pages(file: TiffFile) -> str:
    """Return a fault if the file contains more images than its first page."""
    pages = file.pages[1:] if len(file.pages) > 1 else []
    # A reduced page is a thumbnail of the image.
    extra_pages = [page for page in pages if not page.aspage().is_reduced]
    images = int((file.imagej_metadata or {}).get("images", 1)) if file.is_imagej else 1
    if extra_pages or images > 1:
        return f"{max(1 + len(extra_pages), images)} pages; a slice is one page"
    return ""


def _fault_of_jpeg(page: TiffPage) -> str:
    """Return a fault if a JPEG stream is larger than its strip or tile."""
    # The decoder allocates the size that the stream asks for, not the size of the strip.
    rows, columns = page.chunks[:2] if page.planarconfig != 2 else page.chunks[1:3]
    file = page.parent.filehandle
    for start, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(start)
        try:
            with Image.open(BytesIO(file.read(length)), formats=["JPEG"]) as stream:
                width, height = stream.size
        except Image.DecompressionBombError:
            return "a JPEG stream of far more pixels than its strip"
        if width > columns or height > max(rows, page.imagelength):
            return f"a JPEG stream of {height}x{width} pixels in a smaller strip"
    return ""


def _visible(page: TiffPage, stored: np.ndarray) -> np.ndarray:
    """Return the decoded pixels (H, W, C) with the colours that a viewer shows."""
    pixels = np.moveaxis(stored, 0, -1) if page.axes == "SYX" else np.atleast_3d(stored)
    if page.photometric == PHOTOMETRIC.PALETTE and page.colormap is not None:
        colours = (page.colormap >> 8).astype(np.uint8)[:, pixels[:, :, 0]]
        return np.ascontiguousarray(np.moveaxis(colours, 0, -1))
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        pixels = ~pixels if pixels.dtype == bool else (2**page.bitspersample - 1) - pixels
    if len(page.extrasamples) == 1 and (pixels[:, :, -1] == np.iinfo(pixels.dtype).max).all():
        pixels = pixels[:, :, :-1]
    return pixels
