"""Compute connected components, and number clusters from the largest to the smallest."""

from __future__ import annotations

from functools import singledispatch

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.graph.edges import Edges
from starfc.graph.neighbours import id_dtype
from starfc.runtime.union_find_kernels import flatten, unite


@singledispatch
def components(edges: Edges, kept: NDArray[np.bool_] | None = None) -> NDArray[np.integer]:
    """Return the connected components of the edges, as the smallest member of each node's component, (N,).

    Edges count in both directions. A node without an edge is its own component. The algorithm is union-find with path
    halving; its time is practically linear. ``kept`` (E,) says which edges count; default: all.
    """
    n, whole = edges.num_nodes, edges.whole()
    return _union_find(whole.indptr, whole.cols, kept, np.arange(n, dtype=id_dtype(n)))


def largest_first(members: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return labels 0..C-1, (N,) int64; label 0 is the largest cluster.

    ``members`` (N,) names each node's cluster by any number in [0, N). Clusters of equal size are ordered by their
    smallest member.
    """
    return _largest_first(members, np.zeros(len(members), id_dtype(len(members))))


@nb.njit(cache=True)
def _largest_first(members, sizes):
    """Number clusters by a counting sort by size; equal sizes stay in the order of their first members.

    ``sizes`` (N,) zeros is overwritten with the cluster sizes.
    """
    largest = 0
    for m in members:
        sizes[m] += 1
        largest = max(largest, sizes[m])
    place = np.zeros(largest + 1, sizes.dtype)  # number of clusters of each size, then their next free label
    for s in sizes:
        place[s] += 1
    label = 0
    for s in range(largest, 0, -1):
        place[s], label = label, label + place[s]
    rank = np.full(sizes.size, -1, sizes.dtype)
    labels = np.empty(sizes.size, np.int64)
    for i in range(members.size):
        m = members[i]
        if rank[m] < 0:
            rank[m] = place[sizes[m]]
            place[sizes[m]] += 1
        labels[i] = rank[m]
    return labels


@nb.njit(cache=True)
def _union_find(indptr, cols, kept, parent):
    for i in range(parent.size):
        for e in range(indptr[i], indptr[i + 1]):
            if kept is None or kept[e]:
                unite(parent, i, cols[e])
    flatten(parent)
    return parent
