"""Slices as samples and batches, equal whether they come from memory or from the file.

row         the index of a slice in the file
position    the index of a slice in a data set
raw         uint8 (B, (2k+1) * C, H, W), a slice with k neighbours on each side, in the order of the
            slices, where edge slices are repeated
image       float32, raw normalised by the percentiles of its volume as
            clip((raw - low) / (high - low), 0, 1)
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from brainseg.core.errors import check
from brainseg.core.seeds import generator_for
from brainseg.data.store import Store
from brainseg.data.transfer import to_device


class Sample(NamedTuple):
    # float32 (C, H, W) in [0, 1].
    image: Tensor
    # uint8 (1, H, W), class index.
    mask: Tensor
    # Name of the volume's folder.
    patient: str
    slice_number: int


class Batch(NamedTuple):
    # float32 (B, C, H, W) in [0, 1], on the device.
    image: Tensor
    # uint8 (B, 1, H, W), class index, on the device.
    mask: Tensor


class View:
    """A lazy, read-only column of the data set with `view[i]`, `view[a:b]` and `len(view)`."""

    def __init__(self, read: Callable[[int], Any], length: int) -> None:
        self._read, self._length = read, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self._read(i) for i in range(*index.indices(self._length))]
        return self._read(_position(index, self._length))


class MRIDataset(Dataset[Sample]):
    """Slices of a file made by `brainseg.prepare`.

    Args:
        path: the HDF5 file.
        indices: rows of the slices in the file, or None for all.
        patients: patients whose slices are taken (names without date, or volumes with date), or
            None for all.
        channel: the name of one channel, such as "FLAIR", or None for all.
        context: the number of neighbouring slices on each side, which become channels.
        volume: the earlier name of `channel`, which is still accepted.

    Raises RequestError for an unknown patient or channel or an index out of range, and DataError
    for a damaged file. `dataset[i]` is a `Sample`, and `dataset[a:b]` is a data set. The properties
    `images`, `masks`, `patients` and `slices` are views of the columns.
    """

    def __init__(
        self,
        path: str | Path | Store,
        indices: Sequence[int] | np.ndarray | None = None,
        patients: Sequence[str] | None = None,
        channel: str | None = None,
        context: int = 0,
        volume: str | None = None,
    ) -> None:
        channel = volume if channel is None else channel
        self.store = path if isinstance(path, Store) else Store(Path(path))
        self.context, self.channel = context, channel
        check(context >= 0, "context", context, "must be at least 0")
        channels = self.store.channels
        check(
            channel is None or channel in channels,
            "data.channel",
            channel,
            f"the data have no such channel; choose from {', '.join(channels)}, or null for all",
        )
        self._channel_index = None if channel is None else channels.index(channel)
        count = self.store.shape[0]
        self.rows = (
            np.arange(count) if indices is None else np.asarray(indices, dtype=np.int64).reshape(-1)
        )
        inside = not len(self.rows) or bool(self.rows.min() >= 0 and self.rows.max() < count)
        check(
            inside,
            "indices",
            f"{self.rows.min()}..{self.rows.max()}" if len(self.rows) else "",
            f"must lie in 0..{count - 1}",
        )
        self._volume_of_row = np.repeat(
            np.arange(len(self.store.volumes)), np.diff(self.store.first_slice)
        )
        if patients is not None:
            unknown = sorted(set(patients) - set(self.store.patients) - set(self.store.volumes))
            check(not unknown, "patients", ", ".join(unknown[:5]), "not in the data")
            is_selected = [
                v in patients or p in patients
                for v, p in zip(self.store.volumes, self.store.patients, strict=True)
            ]
            self.rows = self.rows[np.asarray(is_selected)[self._volume_of_row[self.rows]]]
        self._low, self._high = torch.from_numpy(self.store.low), torch.from_numpy(self.store.high)
        if self._channel_index is not None:
            self._low, self._high = (
                limit[:, self._channel_index : self._channel_index + 1]
                for limit in (self._low, self._high)
            )
        # Raw images (M, C, H, W) and masks (M, 1, H, W), both uint8.
        self.memory: Batch | None = None
        # The index of each row in `memory`, or -1 for a row that was not loaded.
        self._place = np.full(count, -1)

    @property
    def channels(self) -> int:
        """Return the number of channels, (2 * context + 1) times the selected channels."""
        return (2 * self.context + 1) * self._low.shape[1]

    @property
    def sequences(self) -> list[str]:
        """Return the names of the channels of a slice without its neighbours."""
        return list(self.store.channels) if self.channel is None else [self.channel]

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        return int(self.store.shape[2]), int(self.store.shape[3])

    @property
    def in_mm(self) -> bool:
        """Return True if the spacing of all volumes is known, so that distances are in mm.

        Otherwise all distances are in pixels, because a median must not mix two units.
        """
        return bool(np.isfinite(self.store.spacing).all())

    @property
    def volumes(self) -> list[int]:
        """Return the indices of the volumes of these slices, in the order of the file."""
        return [int(v) for v in np.unique(self._volume_of_row[self.rows])]

    @property
    def has_tumour(self) -> np.ndarray:
        """Return an array bool (len,), True for each slice with a tumour pixel."""
        return self.store.tumour_pixels[self.rows] > 0

    images = property(lambda self: View(lambda i: self[i].image, len(self)))
    masks = property(lambda self: View(lambda i: self[i].mask, len(self)))
    patients = property(
        lambda self: View(
            lambda i: self.store.volumes[self._volume_of_row[self.rows[i]]], len(self)
        )
    )
    slices = property(
        lambda self: View(lambda i: int(self.store.slice_number[self.rows[i]]), len(self))
    )

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "MRIDataset": ...
    def __getitem__(self, index: int | slice) -> "Sample | MRIDataset":
        if isinstance(index, slice):
            return MRIDataset(
                self.store, self.rows[index], channel=self.channel, context=self.context
            )
        position = _position(index, len(self))
        batch = self.gather([position])
        return Sample(batch.image[0], batch.mask[0], self.patients[position], self.slices[position])

    def of_volume(self, volume: int) -> np.ndarray:
        """Return the positions of a volume's slices, from bottom to top."""
        return np.flatnonzero(self._volume_of_row[self.rows] == volume)

    def bytes_needed(self) -> int:
        """Return the memory that `hold` takes, in bytes."""
        slices = sum(int(np.diff(self.store.first_slice)[v]) for v in self.volumes)
        return slices * (self._low.shape[1] + 1) * self.size[0] * self.size[1]

    def fits(self, device: torch.device | str = "cpu") -> bool:
        """Return True if the slices take at most half of the free memory.

        This is the memory of the host. For a GPU the smaller of host and GPU memory counts.
        """
        # macOS does not report free memory, so that all its memory counts as free.
        pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
        free = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
        if torch.device(device).type == "cuda":
            free = min(free, torch.cuda.mem_get_info(device)[0])
        return self.bytes_needed() < free / 2

    def hold(self, device: torch.device | str = "cpu", memory: Batch | None = None) -> "MRIDataset":
        """Read the volumes of these slices into memory on `device` and return self.

        They stay as they are stored (uint8), and batches are bitwise equal to those from the file.
        With the `memory` of a data set of the same volumes and channel, nothing is read.
        """
        # Complete volumes are read, because the context of a slice can be any slice of its volume.
        rows = np.flatnonzero(np.isin(self._volume_of_row, self.volumes))
        if memory is None:
            raw = self._read(rows)
            memory = Batch(raw.image.to(device), raw.mask.to(device))
        self._place[rows] = np.arange(len(rows))
        self.memory = memory
        return self

    def gather(
        self, positions: Sequence[int] | np.ndarray, device: torch.device | str = "cpu"
    ) -> Batch:
        """Return the samples at `positions` as one batch on `device`.

        The batch has image (B, C, H, W) and mask (B, 1, H, W). Images are normalised on `device`.
        """
        rows = self.rows[np.asarray(positions)]
        volumes = self._volume_of_row[rows]
        first, last = self.store.first_slice[volumes], self.store.first_slice[volumes + 1] - 1
        offsets = np.arange(-self.context, self.context + 1)
        # The first and last slice of a volume stand in for neighbours beyond the volume.
        neighbours = np.clip(rows[:, None] + offsets, first[:, None], last[:, None])
        raw = to_device(self._images(neighbours.reshape(-1)), device).reshape(
            len(rows), len(offsets), -1, *self.size
        )
        volume_index = torch.from_numpy(volumes)
        low, high = (
            to_device(limit[volume_index][:, None, :, None, None], device)
            for limit in (self._low, self._high)
        )
        # Division by infinity gives zeros for a constant channel, which contains no information.
        span = torch.where(high > low, high - low, torch.inf)
        # The operations work in place, because new memory for each made them four times slower.
        image = raw.to(torch.float32).sub_(low).div_(span).clamp_(0, 1)
        return Batch(image.flatten(1, 2), to_device(self._masks(rows), device))

    def _images(self, rows: np.ndarray) -> Tensor:
        if self.memory is not None and (self._place[rows] >= 0).all():
            return self.memory.image[
                to_device(torch.from_numpy(self._place[rows]), self.memory.image.device)
            ]
        return self._read(rows, masks=False).image

    def _masks(self, rows: np.ndarray) -> Tensor:
        if self.memory is not None and (self._place[rows] >= 0).all():
            return self.memory.mask[
                to_device(torch.from_numpy(self._place[rows]), self.memory.mask.device)
            ]
        return self._read(rows, images=False).mask

    def _read(self, rows: np.ndarray, images: bool = True, masks: bool = True) -> Batch:
        """Return rows of the file, in any order and with repeats.

        Consecutive rows are read at once.
        """
        unique, inverse = np.unique(rows, return_inverse=True)
        # Each run is a sequence of consecutive rows.
        runs = np.split(unique, np.flatnonzero(np.diff(unique) != 1) + 1) if len(unique) else []
        empty = np.empty((0, 0, *self.size), np.uint8)
        image = [self.store.images(int(run[0]), int(run[-1]) + 1) for run in runs] if images else []
        mask = [self.store.masks(int(run[0]), int(run[-1]) + 1) for run in runs] if masks else []
        if self._channel_index is not None:
            image = [part[:, self._channel_index : self._channel_index + 1] for part in image]
        stacked = [
            torch.from_numpy(np.concatenate(parts)[inverse] if parts else empty)
            for parts in (image, mask)
        ]
        return Batch(*stacked)


def epoch_order(
    dataset: MRIDataset, seed: int, epoch: int, tumour_share: float | None = None
) -> np.ndarray:
    """Return the positions of the slices of one epoch in their order.

    Without `tumour_share` every slice comes once. With it the epoch has the same length, and this
    share of its positions are tumour slices. Within the slices with tumour, and within those
    without, the numbers of repetitions differ by at most one. The order is a function of
    (seed, epoch) alone, so that a resumed run continues in the same order.
    """
    generator = generator_for(seed, "order", epoch)
    if tumour_share is None:
        return torch.randperm(len(dataset), generator=generator).numpy()
    tumour = dataset.has_tumour
    tumour_count = round(tumour_share * len(dataset))
    parts = []
    for positions, count, rule in (
        (np.flatnonzero(tumour), tumour_count, "no training slice has tumour"),
        (np.flatnonzero(~tumour), len(dataset) - tumour_count, "every training slice has tumour"),
    ):
        check(
            bool(len(positions)) or not count,
            "data.tumour_share",
            tumour_share,
            rule,
            "set it to null",
        )
        # Each round is a permutation of all positions, so that slices are repeated evenly.
        rounds = [
            torch.randperm(len(positions), generator=generator).numpy()
            for _ in range(-(-count // max(len(positions), 1)))
        ]
        parts.append(positions[np.concatenate([*rounds, np.empty(0, np.int64)])[:count]])
    order = np.concatenate(parts)
    return order[torch.randperm(len(order), generator=generator).numpy()]


def _position(index: int, length: int) -> int:
    if not -length <= index < length:
        raise IndexError(f"index {index} is out of range for {length} slices")
    return index % length
