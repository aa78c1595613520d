"""Union-find over ids 0..N-1. The root of every tree is its smallest id."""

from __future__ import annotations

import numba as nb
import numpy as np


@nb.njit(cache=True, nogil=True)
def find_root(parent, i):
    """Return the root of i, and halve the path to it."""
    i = np.int64(i)
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = np.int64(parent[i])
    return i


@nb.njit(cache=True, nogil=True)
def unite(parent, i, j):
    """Join the trees of i and j."""
    i, j = find_root(parent, i), find_root(parent, j)
    if i < j:
        parent[j] = i
    elif j < i:
        parent[i] = j


@nb.njit(cache=True, nogil=True)
def flatten(parent):
    """Make every id point to its root. A parent is a smaller id, so it already points to its root when it is used."""
    for i in range(parent.size):
        parent[i] = parent[parent[i]]


@nb.njit(cache=True, nogil=True)
def unite_pairs(parent, one, other):
    """Join the trees of the pairs (m,) of ids."""
    for e in range(one.size):
        unite(parent, one[e], other[e])


@nb.njit(cache=True, nogil=True)
def spanning(order, one, other, n):
    """Return which edges, tried in ``order``, join two trees (Kruskal's algorithm); their ends are ids 0..n-1."""
    parent, kept, count = np.arange(n), np.empty(order.size, np.int64), 0
    for e in order:
        i, j = find_root(parent, one[e]), find_root(parent, other[e])
        if i != j:
            parent[max(i, j)] = min(i, j)
            kept[count] = e
            count += 1
    return kept[:count]
