"""What the header of a page of a TIFF stack has to say before its pixels are decoded."""

import math
import struct

from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile, TiffPage

from brainseg.data.tiff import LARGEST, LOSSLESS

TYPES = ("uint8", "uint16", "int16", "float32")
COLOURS = (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB)


def page_fault(page: TiffPage, size: int) -> str:
    """Return what is wrong with a page in a file of `size` bytes; "" if nothing is."""
    height, width = page.imagelength, page.imagewidth
    if not (0 < height <= LARGEST and 0 < width <= LARGEST):
        return f"its header gives {height}x{width} pixels; a side must lie between 1 and {LARGEST}"
    if page.photometric == PHOTOMETRIC.PALETTE:
        return "colours of a palette; save it in grey"
    if page.dtype is None or str(page.dtype) not in TYPES:
        return f"pixels are {page.dtype}; must be {' or '.join(TYPES)}"
    if page.bitspersample != 8 * page.dtype.itemsize:
        return f"pixels have {page.bitspersample} bits; save it with 8 or 16"
    if page.photometric not in COLOURS or not set(page.axes) <= set("YXS"):
        return "neither grey nor RGB; save it in grey"
    if page.compression not in LOSSLESS:
        return "compressed in a way that is not read; save it uncompressed, or with deflate or LZW"
    return _length_fault(page, size)


def _length_fault(page: TiffPage, size: int) -> str:
    """Return what is wrong with the places and lengths of the strips or tiles; "" if nothing is."""
    rule = (
        f"truncated: the file does not hold all of its {page.imagelength}x{page.imagewidth} pixels"
    )
    starts, lengths = page.dataoffsets, page.databytecounts
    chunks = math.prod(page.chunked)
    if not (len(starts) == len(lengths) == chunks and min(starts) > 0 and min(lengths) > 0):
        return rule
    # A strip may be longer than its rows need, because writers pad the last one.
    if page.compression == COMPRESSION.NONE and sum(lengths) < page.nbytes:
        return rule
    if max(start + length for start, length in zip(starts, lengths, strict=True)) > size:
        return rule
    return ""


def has_lost_pages(file: TiffFile) -> bool:
    """Return True if the last page that could be read points to a further one.

    tifffile leaves out whatever lies behind the end of a truncated file.
    """
    kind, handle = file.tiff, file.filehandle
    start = file.pages[-1].offset
    handle.seek(start)
    (tags,) = struct.unpack(kind.tagnoformat, handle.read(kind.tagnosize))
    handle.seek(start + kind.tagnosize + tags * kind.tagsize)
    (following,) = struct.unpack(kind.offsetformat, handle.read(kind.offsetsize))
    return bool(following)
