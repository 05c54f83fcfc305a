"""Randomness as a pure function of a seed and names: no state, no global generator, never `seed + i`."""

from __future__ import annotations

import json
from hashlib import blake2b

import numpy as np

_MASK64 = (1 << 64) - 1
_ROUNDS = 6


def _digest(size: int, seed: int, keys: tuple) -> bytes:
    return blake2b(json.dumps([seed, *keys]).encode(), digest_size=size).digest()


def generator(seed: int, *keys: int | str) -> np.random.Generator:
    """Returns a numpy generator that depends only on `seed` and `keys`.

    Seed and keys are hashed as JSON (BLAKE2b, 128 bits), so `(1, "23")`, `(12, "3")` and `("1", 23)` give three
    unrelated streams, and so do neighbouring seeds.
    """
    return np.random.Generator(np.random.PCG64(int.from_bytes(_digest(16, seed, keys), "little")))


def _mix(x: int) -> int:
    """Returns a 64-bit word mixed by SplitMix64's finaliser (Steele, Lea and Flood 2014)."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def permute(index: int, size: int, seed: int, *keys: int | str) -> int:
    """Returns the image of `index` under the permutation of `range(size)` given by `seed` and `keys`.

    A Feistel network over an even number of bits, iterated until the result is in range (Black and Rogaway 2002), so
    drawing without replacement from a million images needs no list: `permute(k, 5, 7)` for k in 0..4 gives 0..4 in
    some order.

    Raises:
        IndexError: `index` is not in `range(size)`.
    """
    if not 0 <= index < size:
        raise IndexError(f"{index} is not in range({size})")
    half = max(2, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    digest = _digest(8 * _ROUNDS, seed, ("permute", size, *keys))
    round_keys = [int.from_bytes(digest[8 * r : 8 * r + 8], "little") for r in range(_ROUNDS)]
    while True:
        left, right = index >> half, index & mask
        for key in round_keys:
            left, right = right, left ^ (_mix((right + key) & _MASK64) & mask)
        index = left << half | right
        if index < size:
            return index
