"""Slices as samples and batches, equal whether they come from memory or from the file.

row         the index of a slice in the file
position    the index of a slice in a dataset
raw         uint8 (B, (2k+1) * C, H, W), a slice with k neighbours on each side, in the order of the
            slices, where edge slices are repeated
image       float32, raw normalised by two intensities of its volume as
            clip((raw - low) / (high - low), 0, 1), where low is the 10th percentile, and high the
            99th percentile or three times the median of the head
window      part of each slice, of the same height and width for all, with the head of the slice's
            volume at its centre
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
from brainseg.data.input_settings import Size, context_steps, intensity_limits, window_corners
from brainseg.data.store import SliceStore, Store
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
    """A lazy, read-only column of the dataset with `view[i]`, `view[a:b]` and `len(view)`."""

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
        context_step: the distance of the neighbours, a number of slices as text, or "auto" for
            about 1/24 of the volume.
        intensity: "percentile" or "median", the intensity that becomes 1.
        window: height and width of the part of each slice that is used, or None for all of it.
        volume: the earlier name of `channel`, which is still accepted.

    Raises RequestError for an unknown patient or channel or an index out of range, and DataError
    for a damaged file, or for a file without the properties of the heads if `intensity` or `window`
    needs them. `dataset[i]` is a `Sample`, and `dataset[a:b]` is a dataset. The properties
    `images`, `masks`, `patients` and `slices` are views of the columns.
    """

    def __init__(
        self,
        path: str | Path | SliceStore,
        indices: Sequence[int] | np.ndarray | None = None,
        patients: Sequence[str] | None = None,
        channel: str | None = None,
        context: int = 0,
        volume: str | None = None,
        context_step: str = "1",
        intensity: str = "percentile",
        window: Size | None = None,
    ) -> None:
        channel = volume if channel is None else channel
        self.store = path if isinstance(path, SliceStore) else Store(Path(path))
        self.context, self.channel = context, channel
        self.context_step, self.intensity, self.window = context_step, intensity, window
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
        self._low, self._high = (
            torch.from_numpy(limit) for limit in intensity_limits(self.store, intensity)
        )
        self._context_steps = context_steps(self.store, context_step)
        # Rows and columns of each volume at which its window begins, (V, 2).
        self._corners = None if window is None else window_corners(self.store, window)
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
        """Return the number of input channels.

        These are the selected sequences of a slice and of `context` neighbours on each side.
        """
        return (2 * self.context + 1) * self._low.shape[1]

    @property
    def sequences(self) -> list[str]:
        """Return the names of the channels of a slice without its neighbours."""
        return list(self.store.channels) if self.channel is None else [self.channel]

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of the stored slices in pixels."""
        return int(self.store.shape[2]), int(self.store.shape[3])

    @property
    def sample_size(self) -> tuple[int, int]:
        """Return height and width of the samples in pixels, those of the window if there is one."""
        return self.window or self.size

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
                self.store,
                self.rows[index],
                channel=self.channel,
                context=self.context,
                context_step=self.context_step,
                intensity=self.intensity,
                window=self.window,
            )
        position = _position(index, len(self))
        batch = self.gather([position])
        return Sample(batch.image[0], batch.mask[0], self.patients[position], self.slices[position])

    def patient_index(self, positions: np.ndarray) -> np.ndarray:
        """Return an index of the patient of each position, equal for slices of one patient."""
        _, index_of_volume = np.unique(self.store.patients, return_inverse=True)
        return index_of_volume[self._volume_of_row[self.rows[positions]]]

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
        With the `memory` of a dataset of the same volumes and channel, nothing is read.
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

        The batch has image (B, C, H, W) and mask (B, 1, H, W), of the size `sample_size`. Images
        are normalised on `device`.
        """
        rows = self.rows[np.asarray(positions)]
        volumes = self._volume_of_row[rows]
        first, last = self.store.first_slice[volumes], self.store.first_slice[volumes + 1] - 1
        offsets = np.arange(-self.context, self.context + 1) * self._context_steps[volumes][:, None]
        # The first and last slice of a volume stand in for neighbours beyond the volume.
        neighbours = np.clip(rows[:, None] + offsets, first[:, None], last[:, None])
        raw = self._images(neighbours.reshape(-1)).unflatten(0, neighbours.shape)
        raw = to_device(self._crop(raw, volumes), device)
        volume_index = torch.from_numpy(volumes)
        low, high = (
            to_device(limit[volume_index][:, None, :, None, None], device)
            for limit in (self._low, self._high)
        )
        # Division by infinity gives zeros for a constant channel, which contains no information.
        span = torch.where(high > low, high - low, torch.inf)
        # The operations work in place, because new memory for each made them four times slower.
        image = raw.to(torch.float32).sub_(low).div_(span).clamp_(0, 1)
        masks = self._crop(self._masks(rows), volumes)
        return Batch(image.flatten(1, 2), to_device(masks, device))

    def _crop(self, pixels: Tensor, volumes: np.ndarray) -> Tensor:
        """Return the window of each sample in `pixels` (B, ..., H, W), of the volumes (B,)."""
        if self.window is None or self._corners is None:
            return pixels
        height, width = self.window
        return torch.stack(
            [
                sample[..., row : row + height, column : column + width]
                for sample, (row, column) in zip(
                    pixels, self._corners[volumes].tolist(), strict=True
                )
            ]
        )

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


def _position(index: int, length: int) -> int:
    if not -length <= index < length:
        raise IndexError(f"index {index} is out of range for {length} slices")
    return index % length
