"""Intensities of a scan as eight bits. MRI has no unit, so the scale is the volume's own."""

import numpy as np

from brainseg.data.volume import percentile

LARGEST_TABLE = 2**20  # levels of a channel that are stretched by a table


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Return images (S, C, H, W) as uint8, stretched unless they are whole numbers from 0 to 255.

    The 0.5th percentile of a channel becomes 0 and the 99.5th becomes 255. The network's input is
    cut at the 10th and 99th percentile, so that the loss is rounding by 1/510 of that range: MRI
    has no unit, and its noise is coarser. A channel that is all but constant is stretched from its
    smallest to its largest value.
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
            # Scanners store a few thousand values: counting and a table take a tenth of the time.
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
    """Return values as uint8, from `low` to `high`, or over their whole range if these are equal."""
    low, high = (low, high) if low < high else (values.min(), values.max())
    if not low < high:
        return np.zeros(values.shape, np.uint8)
    return np.rint(255 * ((values - low) / (high - low)).clip(0, 1)).astype(np.uint8)
