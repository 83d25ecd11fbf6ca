"""Conversion of intensities to eight bits, scaled for each volume because MRI has no unit.

This is for storage. `MRIDataset.gather` normalises the stored slices for the network.
"""

import numpy as np

from brainseg.data.volume import percentile

# Largest number of intensity levels for which a lookup table is used.
LARGEST_TABLE = 2**20


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Return images (S, C, H, W) as uint8, stretched unless they are whole numbers from 0 to 255.

    The 0.5th percentile of a channel becomes 0 and the 99.5th becomes 255. The network's input is
    usually cut at the 10th and 99th percentile, so that the only loss is rounding by 1/510 of that
    range. The noise of MRI is coarser than this rounding. An almost constant channel, in which both
    percentiles are equal, is stretched from its smallest to its largest value.
    """
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    stretched = np.zeros(images.shape, np.uint8)
    for channel in range(images.shape[1]):
        values = images[:, channel]
        smallest, largest = values.min(), values.max()
        if images.dtype.kind in "bui" and smallest >= 0 and largest <= 255:
            stretched[:, channel] = values
        elif images.dtype.kind in "iu" and int(largest) - int(smallest) < LARGEST_TABLE:
            # Scanners store a few thousand different values. For these a histogram and a lookup
            # table take a tenth of the time.
            offsets = (
                values - smallest
                if images.dtype.kind == "u"
                else values.astype(np.int64) - int(smallest)
            )
            levels = np.arange(int(largest) - int(smallest) + 1, dtype=np.float64)
            histogram = np.bincount(offsets.ravel(), minlength=len(levels))
            stretched[:, channel] = _stretch(
                levels, percentile(histogram, 0.005), percentile(histogram, 0.995)
            )[offsets]
        else:
            values = values.astype(np.float64)
            stretched[:, channel] = _stretch(values, *np.percentile(values, (0.5, 99.5)))
    return stretched


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return values as uint8, stretched from `low` to `high`.

    If both are equal, the values are stretched from the smallest to the largest value.
    """
    low, high = (low, high) if low < high else (values.min(), values.max())
    if not low < high:
        return np.zeros(values.shape, np.uint8)
    return np.rint(255 * ((values - low) / (high - low)).clip(0, 1)).astype(np.uint8)
