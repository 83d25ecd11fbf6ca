"""Slices that stay in memory from one run to the next of the same process: a sweep reads its data once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from brainseg.data.dataset import Batch, MRIDataset


class Key(NamedTuple):
    """What the bytes in memory depend on. The fingerprint is read anew for each run: a file may be replaced between two."""

    path: str
    fingerprint: str
    channel: str | None
    volumes: tuple[int, ...]
    device: str


_kept: dict[
    Key, Batch
] = {}  # a global, because a run ends between two jobs and takes everything else with it


def cache_in_memory(
    parts: Sequence[MRIDataset], device: torch.device, resident: str = "auto"
) -> None:
    """Hold the parts' slices in memory on `device`, or under resident=auto those that fit; taken over from the run before.

    What that run held and this one does not need is let go first, so that a sweep over data settings never holds two.
    """
    wanted = [(_key(part, device), part) for part in parts] if resident != "no" else []
    for key in _kept.keys() - {key for key, _ in wanted}:
        del _kept[key]
    for key, part in wanted:
        if key in _kept or resident == "yes" or part.fits(device):
            memory = part.hold(device, _kept.get(key)).memory
            assert memory is not None
            _kept[key] = memory


def clear_cache() -> None:
    """Let go of everything."""
    _kept.clear()


def _key(part: MRIDataset, device: torch.device) -> Key:
    store = part.store
    return Key(
        str(store.path.resolve()), store.fingerprint, part.volume, tuple(part.volumes), str(device)
    )
