"""Clusters as connected components, and the order of their labels."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.clustering.edges import EdgeList


def components(edges: EdgeList) -> NDArray[np.int64]:
    """Connected components of the edges taken as undirected: (N,) int64, the smallest member of each node's component.

    A node without an edge is its own component. Union-find with path halving, in time that is linear for all purposes.
    """
    return _union_find(edges.indptr, edges.cols)


def largest_first(members: NDArray[np.integer]) -> NDArray[np.int64]:
    """Labels 0..C-1, largest cluster first, of any labeling by ids in [0, N): (N,) -> (N,) int64.

    Clusters of equal size are ordered by their smallest member.
    """
    n = len(members)
    sizes = np.bincount(members, minlength=n)
    first = np.empty(n, np.int64)
    first[members[::-1]] = np.arange(n)[::-1]  # the last write wins: the smallest member
    used = np.flatnonzero(sizes)
    rank = np.empty(n, np.int64)
    rank[used[np.lexsort((first[used], -sizes[used]))]] = np.arange(len(used))
    return rank[members]


@nb.njit(cache=True)
def _union_find(indptr, cols):
    num_nodes = indptr.size - 1
    parent = np.arange(num_nodes)
    for row in range(num_nodes):
        for e in range(indptr[row], indptr[row + 1]):
            i, j = np.int64(row), np.int64(cols[e])
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            while parent[j] != j:
                parent[j] = parent[parent[j]]
                j = parent[j]
            if i < j:
                parent[j] = i
            elif j < i:
                parent[i] = j
    for i in range(num_nodes):
        parent[i] = parent[parent[i]]  # a parent is a smaller id, so its own root is known by now
    return parent
