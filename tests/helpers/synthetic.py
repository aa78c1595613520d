"""The random numbers of synthetic data in plain Python integers: a slow twin of the compiled kernels."""

from __future__ import annotations

import numpy as np

from starfc.data.synthetic_kernels import GOLDEN


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def key(seed: int, kind: int, index: int) -> int:
    return mix((mix((seed * int(GOLDEN) + kind + 1) % 2**64) + index * int(GOLDEN)) % 2**64)


def number(key: int, m: int) -> int:
    return mix((key + m * int(GOLDEN)) % 2**64)


def uniform(key: int, m: int) -> float:
    return (number(key, m) >> 11) / 2**53


def bell(key: int, m: int) -> float:
    """The sum of four numbers that are uniform in 0 .. 2^16 - 1, with mean 0 and variance 1."""
    words = [number(key, m) >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
    return (sum(words) - 2 * 0xFFFF) / np.sqrt(4 * (2**32 - 1) / 12)


def direction(seed: int, kind: int, index: int, dim: int, spectrum: float) -> np.ndarray:
    x = np.array([bell(key(seed, kind, index), m) for m in range(dim)]) * np.arange(1, dim + 1) ** -spectrum
    return x / np.linalg.norm(x)
