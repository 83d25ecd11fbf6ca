"""Random numbers without hidden state: each draw is seeded by what it is for, so a resumed run needs no stored generator."""

import hashlib

import torch


def seed_for(*purpose: int | str) -> int:
    """A 63-bit seed that depends on all of `purpose` alone, as `seed_for(seed, "step", epoch, step)`."""
    return int.from_bytes(hashlib.sha256(repr(purpose).encode()).digest()[:8], "big") >> 1


def generator_for(*purpose: int | str) -> torch.Generator:
    """A CPU generator seeded by `seed_for(*purpose)`."""
    return torch.Generator().manual_seed(seed_for(*purpose))
