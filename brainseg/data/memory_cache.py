"""Cache of slices for the runs of one process, so that a sweep reads its data once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from brainseg.data.dataset import Batch, MRIDataset


class CacheKey(NamedTuple):
    """Identity of the cached slices.

    The fingerprint is read for each run, because a file may be replaced between two runs.
    """

    path: str
    fingerprint: str
    channel: str | None
    volumes: tuple[int, ...]
    device: str


# A global variable, because all other objects of a run are freed when the job ends.
_cache: dict[CacheKey, Batch] = {}


def cache_in_memory(
    parts: Sequence[MRIDataset], device: torch.device, resident: str = "auto"
) -> None:
    """Load the slices of the parts into memory on `device`, or reuse those of the previous run.

    With resident=yes all parts are loaded, with resident=auto those that fit, and with resident=no
    none. Slices that this run does not need are freed first, so that a sweep over data settings
    never holds the data of two runs.
    """
    requests = [(_key(part, device), part) for part in parts] if resident != "no" else []
    for key in _cache.keys() - {key for key, _ in requests}:
        del _cache[key]
    for key, part in requests:
        if key in _cache or resident == "yes" or part.fits(device):
            memory = part.hold(device, _cache.get(key)).memory
            assert memory is not None
            _cache[key] = memory


def clear_cache() -> None:
    """Remove all slices from the cache."""
    _cache.clear()


def _key(part: MRIDataset, device: torch.device) -> CacheKey:
    store = part.store
    return CacheKey(
        str(store.path.resolve()), store.fingerprint, part.channel, tuple(part.volumes), str(device)
    )
