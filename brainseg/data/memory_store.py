"""A volume in memory that replaces the HDF5 file of a cohort.

`MRIDataset` gives the same numbers for this volume as for a prepared cohort.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brainseg.data.readers.base import Scan
from brainseg.data.store import SliceStore
from brainseg.data.volume import CHANNELS, CLASSES, UNKNOWN, compute_volume_stats


class MemoryStore(SliceStore):
    """One volume in memory.

    Args:
        name: the name of the volume. The patient is this name without its date, unless the scan
            names the patient.
        scan: images uint8 (S, C, H, W) and masks (S, H, W) class index. Masks that are None become
            zeros.
        channels: the names of the C channels.
        classes: the names by class index, background first.
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
        self.head_median, self.head_box = volume.head_median[None], volume.head_box[None]
        self.spacing = np.array([volume.spacing], np.float32)
        self.volumes, self.patients, self.channels, self.classes = (
            [name],
            [volume.patient],
            list(channels),
            list(classes),
        )
        self._pixels = {"images": images, "masks": masks[:, None]}

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        self._check_rows(name, start, stop)
        return self._pixels[name][start:stop]
