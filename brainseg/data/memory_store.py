"""One volume in memory, in the place of the HDF5 file: `MRIDataset` gives the same numbers of it as of a prepared cohort."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brainseg.data.readers.base import Scan
from brainseg.data.store import Store
from brainseg.data.volume import CHANNELS, CLASSES, UNKNOWN, compute_volume_stats


class MemoryStore(Store):
    """A `Store` of one volume that was never written.

    Args:
        name: of the volume; the patient is that name without its date.
        scan: images uint8 (S, C, H, W); masks (S, H, W) class index, or None where nobody knows (zeros then).
        channels: names of the C channels.
        classes: names by class index, background first.
    """

    def __init__(
        self,
        name: str,
        scan: Scan,
        channels: Sequence[str] = CHANNELS,
        classes: Sequence[str] = CLASSES,
    ) -> None:
        images = scan.images
        masks = (
            np.zeros((len(images), *images.shape[2:]), np.uint8)
            if scan.masks is None
            else scan.masks
        )
        numbers = scan.slice_number or range(1, len(images) + 1)
        volume = compute_volume_stats(
            name,
            zip(numbers, images, masks, strict=True),
            channels,
            scan.spacing or UNKNOWN,
            scan.patient or "",
        )
        self.path, self.fingerprint, self.shape = Path(name), volume.digest, images.shape
        self.slice_number, self.tumour_pixels = volume.slice_number, volume.tumour_pixels
        self.first_slice = np.array([0, len(images)])
        self.low, self.high, self.copies = volume.low[None], volume.high[None], volume.copies[None]
        self.spacing = np.array([volume.spacing], np.float32)
        self.volumes, self.patients, self.channels, self.classes = (
            [name],
            [volume.patient],
            list(channels),
            list(classes),
        )
        self._pixels = {"images": images, "masks": masks[:, None]}
        self._handle = None

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        if not 0 <= start <= stop <= len(self._pixels[name]):
            raise IndexError(
                f"rows {start} to {stop} of {name}: {self.path} has rows 0 to {len(self._pixels[name])}"
            )
        return self._pixels[name][start:stop]
