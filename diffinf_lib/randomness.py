"""Randomness by key: a generator is a function of what it is for, never of what ran before it.

Seeding from a key instead of sharing one generator is what makes results independent of batch size, order, workers
and resuming: whoever asks for the noise of example 17 gets the same noise.
"""

import hashlib

import torch


def keyed_seed(*key: int | str) -> int:
    """A 64-bit seed that depends on every part of the key.

    Integers and strings are told apart, so `("a", 1)` and `("a", "1")` differ.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by the key alone (see `keyed_seed`)."""
    return torch.Generator().manual_seed(keyed_seed(*key))
