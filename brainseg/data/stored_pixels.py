"""Reading of uncompressed pixels of a verified volume without a decoder.

`prepare` reads every file twice, because it verifies all files before it writes. For the second
reading tifffile takes 20 times as long as the file system. The caller compares the digest of the
volume, so that a file that has changed costs time but never gives wrong pixels.
"""

import numpy as np

from brainseg.data.folder import Folder
from brainseg.data.volume import Slice


def read_plain_pixels(folder: Folder, shape: tuple[int, ...]) -> list[Slice]:
    """Return the slices of a volume, read from the offsets that the first reading recorded.

    `shape` is (S, C, H, W). The list is empty unless every file contains its pixels uncompressed in
    one piece. The values are not checked.
    """
    slices: list[Slice] = []
    _, channels, height, width = shape
    for number, path in folder.slices.items():
        stored = []
        for file, depth in ((path, channels), (folder.masks[number], 1)):
            if file not in folder.offsets:
                return []
            size = height * width * depth
            values = np.fromfile(file, np.uint8, size, offset=folder.offsets[file])
            if values.size != size:
                return []
            stored.append(values.reshape(height, width, depth))
        image, mask = stored
        slices.append((number, image.transpose(2, 0, 1), (mask[:, :, 0] != 0).view(np.uint8)))
    return slices
