"""Slices as samples and as batches: the same numbers from memory or from the file, one by one or gathered on the device.

rows        which slices of the file are meant; a position counts within this data set
raw         uint8 (B, (2k+1) * C, H, W): a slice with k neighbours on each side, edges repeated, in the order of the slices
image       float32, raw normalised by its volume's percentiles: clip((raw - low) / (high - low), 0, 1)
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
    image: Tensor  # float32 (C, H, W) in [0, 1]
    mask: Tensor  # uint8 (1, H, W), class index
    patient: str  # the volume's folder name
    slice_number: int


class Batch(NamedTuple):
    image: Tensor  # float32 (B, C, H, W) in [0, 1], on the device
    mask: Tensor  # uint8 (B, 1, H, W), class index, on the device


class View:
    """A lazy, read-only column of the data set: `view[i]`, `view[a:b]`, `len(view)`."""

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
        indices: slices by their row in the file; None: all.
        patients: only slices of these patients (names without date, or volumes with it); None: all.
        volume: one channel by name, as "FLAIR"; None: all.
        context: neighbouring slices on each side, as further channels.

    Raises RequestError for an unknown patient or channel or an index out of range, DataError for a damaged file.
    `dataset[i]` is a `Sample`, `dataset[a:b]` a data set; `images masks patients slices` are views of the columns.
    """

    def __init__(
        self,
        path: str | Path | Store,
        indices: Sequence[int] | np.ndarray | None = None,
        patients: Sequence[str] | None = None,
        volume: str | None = None,
        context: int = 0,
    ) -> None:
        self.store = path if isinstance(path, Store) else Store(Path(path))
        self.context, self.volume = context, volume
        check(context >= 0, "context", context, "must be at least 0")
        known = self.store.channels
        check(
            volume is None or volume in known,
            "data.volume",
            volume,
            f"no such channel; known: {', '.join(known)}",
        )
        self._channel = None if volume is None else self.store.channels.index(volume)
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
            wanted = [
                v in patients or p in patients
                for v, p in zip(self.store.volumes, self.store.patients, strict=True)
            ]
            self.rows = self.rows[np.asarray(wanted)[self._volume_of_row[self.rows]]]
        self._low, self._high = torch.from_numpy(self.store.low), torch.from_numpy(self.store.high)
        if self._channel is not None:
            self._low, self._high = (
                limit[:, self._channel : self._channel + 1] for limit in (self._low, self._high)
            )
        self.memory: Batch | None = (
            None  # raw images (M, C, H, W) and masks (M, 1, H, W), both uint8
        )
        self._place = np.full(count, -1)  # where a row lies in that memory

    @property
    def channels(self) -> int:
        """Channels of an image: (2 * context + 1) times those chosen."""
        return (2 * self.context + 1) * self._low.shape[1]

    @property
    def sequences(self) -> list[str]:
        """The names of a slice's own channels, without its neighbours."""
        return list(self.store.channels) if self.volume is None else [self.volume]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.store.shape[2]), int(self.store.shape[3])

    @property
    def in_mm(self) -> bool:
        """Whether distances are in mm, for the whole cohort or not at all: medians would mix two units."""
        return bool(np.isfinite(self.store.spacing).all())

    @property
    def volumes(self) -> list[int]:
        """Indices of the volumes that these slices belong to, in the file's order."""
        return [int(v) for v in np.unique(self._volume_of_row[self.rows])]

    @property
    def has_tumour(self) -> np.ndarray:
        """bool (len,): whether a slice has any tumour pixel."""
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
                self.store, self.rows[index], volume=self.volume, context=self.context
            )
        position = _position(index, len(self))
        batch = self.gather([position])
        return Sample(batch.image[0], batch.mask[0], self.patients[position], self.slices[position])

    def of_volume(self, volume: int) -> np.ndarray:
        """Positions of the slices of one volume, from bottom to top."""
        return np.flatnonzero(self._volume_of_row[self.rows] == volume)

    def bytes_needed(self) -> int:
        """Memory that `hold` takes, in bytes."""
        slices = sum(int(np.diff(self.store.first_slice)[v]) for v in self.volumes)
        return slices * (self._low.shape[1] + 1) * self.size[0] * self.size[1]

    def fits(self, device: torch.device | str = "cpu") -> bool:
        """Whether the slices take at most half of the memory that is free now, the machine's and on a GPU also the GPU's."""
        known = (
            "SC_AVPHYS_PAGES" in os.sysconf_names
        )  # not on a Mac, whose whole memory then counts as free
        free = os.sysconf("SC_AVPHYS_PAGES" if known else "SC_PHYS_PAGES") * os.sysconf(
            "SC_PAGE_SIZE"
        )
        if torch.device(device).type == "cuda":
            free = min(free, torch.cuda.mem_get_info(device)[0])
        return self.bytes_needed() < free / 2

    def hold(self, device: torch.device | str = "cpu", memory: Batch | None = None) -> "MRIDataset":
        """Read these slices' whole volumes into memory on `device`, as stored (uint8); batches are the same to the bit.

        With the `memory` of a data set of the same volumes and channel nothing is read.
        """
        rows = np.flatnonzero(np.isin(self._volume_of_row, self.volumes))
        if memory is None:
            read = self._read(rows)
            memory = Batch(read.image.to(device), read.mask.to(device))
        self._place[rows] = np.arange(len(rows))
        self.memory = memory
        return self

    def gather(
        self, positions: Sequence[int] | np.ndarray, device: torch.device | str = "cpu"
    ) -> Batch:
        """The samples at `positions` as one batch on `device`, normalised there: image (B, C, H, W), mask (B, 1, H, W)."""
        rows = self.rows[np.asarray(positions)]
        volumes = self._volume_of_row[rows]
        first, last = self.store.first_slice[volumes], self.store.first_slice[volumes + 1] - 1
        around = np.arange(-self.context, self.context + 1)
        neighbours = np.clip(rows[:, None] + around, first[:, None], last[:, None])
        raw = to_device(self._images(neighbours.reshape(-1)), device).reshape(
            len(rows), len(around), -1, *self.size
        )
        chosen = torch.from_numpy(volumes)
        low, high = (
            to_device(limit[chosen][:, None, :, None, None], device)
            for limit in (self._low, self._high)
        )
        span = torch.where(
            high > low, high - low, torch.inf
        )  # a constant channel says nothing: zeros
        image = (
            raw.to(torch.float32).sub_(low).div_(span).clamp_(0, 1)
        )  # in place: fresh memory made it four times slower
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
        """Rows from the file, in any order and with repeats; neighbouring rows are read in one go."""
        unique, inverse = np.unique(rows, return_inverse=True)
        runs = np.split(unique, np.flatnonzero(np.diff(unique) != 1) + 1) if len(unique) else []
        nothing = np.empty((0, 0, *self.size), np.uint8)
        image = [self.store.images(int(run[0]), int(run[-1]) + 1) for run in runs] if images else []
        mask = [self.store.masks(int(run[0]), int(run[-1]) + 1) for run in runs] if masks else []
        if self._channel is not None:
            image = [part[:, self._channel : self._channel + 1] for part in image]
        stacked = [
            torch.from_numpy(np.concatenate(parts)[inverse] if parts else nothing)
            for parts in (image, mask)
        ]
        return Batch(*stacked)


def epoch_order(
    dataset: MRIDataset, seed: int, epoch: int, tumour_share: float | None = None
) -> np.ndarray:
    """Positions of one epoch: every slice once, or `tumour_share` of as many from the tumour slices, each as evenly as it goes.

    A function of (seed, epoch) alone, so that a resumed run goes on in the same order.
    """
    generator = generator_for(seed, "order", epoch)
    if tumour_share is None:
        return torch.randperm(len(dataset), generator=generator).numpy()
    tumour = dataset.has_tumour
    drawn = []
    for positions, count in (
        (np.flatnonzero(tumour), round(tumour_share * len(dataset))),
        (np.flatnonzero(~tumour), len(dataset) - round(tumour_share * len(dataset))),
    ):
        there = bool(len(positions)) or not count
        check(
            there,
            "data.tumour_share",
            tumour_share,
            "the training slices have none of that kind",
            "set it to null",
        )
        rounds = [
            torch.randperm(len(positions), generator=generator).numpy()
            for _ in range(-(-count // max(len(positions), 1)))
        ]
        drawn.append(positions[np.concatenate([*rounds, np.empty(0, np.int64)])[:count]])
    together = np.concatenate(drawn)
    return together[torch.randperm(len(together), generator=generator).numpy()]


def _position(index: int, length: int) -> int:
    if not -length <= index < length:
        raise IndexError(f"index {index} is out of range for {length} slices")
    return index % length
