"""Union-find over ids 0..N-1: every tree's root is its smallest id."""

from __future__ import annotations

import numba as nb
import numpy as np


@nb.njit(cache=True, nogil=True)
def find_root(parent, i):
    """The root of i; the path to it is halved on the way."""
    i = np.int64(i)
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = np.int64(parent[i])
    return i


@nb.njit(cache=True, nogil=True)
def unite(parent, i, j):
    """Make the trees of i and j one."""
    i, j = find_root(parent, i), find_root(parent, j)
    if i < j:
        parent[j] = i
    elif j < i:
        parent[i] = j


@nb.njit(cache=True, nogil=True)
def flatten(parent):
    """Let every id point to its root. A parent is a smaller id, so its own root is known when it is needed."""
    for i in range(parent.size):
        parent[i] = parent[parent[i]]
