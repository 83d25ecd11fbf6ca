"""Pixels that are read for the second time, without a decoder if a file holds them uncompressed.

`prepare` reads every file twice, to verify all of them before it writes. tifffile takes 20 times as
long as the file system. The digest of a volume is compared both times, so that a wrong place costs
time, and never gives wrong pixels.
"""

from pathlib import Path

import numpy as np

from brainseg.data.folder import Folder
from brainseg.data.volume import Slice


def locate(folder: Folder, path: Path, *pixels: np.ndarray) -> None:
    """Note where the file seems to hold its pixels as they are, in one of the ways in which they
    may be stored.

    TIFF writers put them right behind the 8 bytes of the header, or at the end of the file. Only
    some rows are compared.
    """
    content = np.fromfile(path, np.uint8)
    for values in pixels:
        for offset in (8, content.size - values.size):
            stored = content[max(offset, 0) : offset + values.size]
            fits = values.dtype == np.uint8 and stored.size == values.size
            if fits and np.array_equal(_some(stored.reshape(values.shape)), _some(values)):
                folder.offsets[path] = offset
                return


def _some(rows: np.ndarray) -> np.ndarray:
    return rows[:: max(len(rows) // 16, 1)]


def read_located(folder: Folder, shape: tuple[int, ...]) -> list[Slice]:
    """Return the slices of a verified volume without decoding a file; nothing unless all files hold
    their pixels as they are.

    The caller compares the digest, because nothing is checked here.
    """
    slices: list[Slice] = []
    _, channels, height, width = shape
    for number, path in folder.slices.items():
        files = [(path, channels), (folder.masks[number], 1)]
        if any(file not in folder.offsets for file, _ in files):
            return []
        stored = [
            np.fromfile(file, np.uint8, height * width * depth, offset=folder.offsets[file])
            for file, depth in files
        ]
        if any(
            values.size != height * width * depth
            for values, (_, depth) in zip(stored, files, strict=True)
        ):
            return []
        image, mask = (values.reshape(height, width, -1) for values in stored)
        slices.append((number, image.transpose(2, 0, 1), (mask[:, :, 0] != 0).view(np.uint8)))
    return slices
