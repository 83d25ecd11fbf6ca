"""Intensities of a scan as eight bits. MRI has no unit, so the scale is the volume's own."""

import numpy as np


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Return images (S, C, H, W) of any real type as uint8, scaled channel by channel over the volume.

    uint8 and whole numbers from 0 to 255 are kept, however many bits they take. Everything else is
    mapped from its 0.5th and 99.5th percentile to 0 and 255. The network's input is cut at the 10th
    and 99th percentile, so what is lost is rounding by 1/510 of that range, which is finer than the
    noise of MRI. A channel that is almost constant is stretched from its smallest to its largest value.
    """
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    stretched = np.zeros(images.shape, np.uint8)
    for channel in range(images.shape[1]):
        values = images[:, channel]
        if values.dtype.kind in "bui" and values.min() >= 0 and values.max() <= 255:
            stretched[:, channel] = values
            continue
        values = values.astype(np.float64)
        low, high = np.percentile(values, (0.5, 99.5))
        low, high = (low, high) if low < high else (values.min(), values.max())
        if low < high:
            stretched[:, channel] = np.rint(255 * ((values - low) / (high - low)).clip(0, 1))
    return stretched
