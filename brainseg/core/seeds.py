"""Random numbers without hidden state.

Each draw is seeded by its purpose, so a resumed run needs no stored generator.
"""

import hashlib

import torch


def seed_for(*purpose: int | str) -> int:
    """Return a 63-bit seed that depends on `purpose` alone.

    An example is `seed_for(seed, "step", epoch, step)`.
    """
    # 64 bits less one, so that the seed fits a signed 64-bit integer.
    return int.from_bytes(hashlib.sha256(repr(purpose).encode()).digest()[:8], "big") >> 1


def generator_for(*purpose: int | str) -> torch.Generator:
    """Return a CPU generator seeded by `seed_for(*purpose)`."""
    return torch.Generator().manual_seed(seed_for(*purpose))
