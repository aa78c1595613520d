"""An order of the nodes that puts neighbours beside each other.

The stages gather rows of features and projections of a node's neighbours: 1 to 2 KiB each, from anywhere in arrays far
larger than the caches. Among nodes numbered as they came, almost every gather is a miss. Numbered so that a node stands
near its neighbours, the rows that one node fetched are still in the cache for the next, which want mostly the same.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.graph.neighbours import KnnGraph


def locality_order(graph: KnnGraph) -> NDArray[np.int64]:
    """A permutation (N,) of the nodes: node by node, each followed by its nearest neighbours not yet placed.

    From the last of them the walk goes on to an unplaced neighbour, and where there is none to the unplaced node of the
    lowest id. Linear in the entries of the graph.
    """
    return _walk(graph.ids)


def permuted(graph: KnnGraph, order: NDArray[np.int64]) -> KnnGraph:
    """The same graph with node ``order[t]`` named t."""
    ids = np.empty_like(graph.ids)
    _rename(graph.ids, order, inverse(order), ids)
    return KnnGraph(ids, graph.sims[order], graph.info)


def inverse(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each node stands in ``order``."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place


@nb.njit(cache=True)
def _walk(ids):
    n, k = ids.shape
    order = np.empty(n, np.int64)
    placed = np.zeros(n, np.bool_)
    end = 0
    for start in range(n):
        node = np.int64(start)
        while node >= 0 and not placed[node]:
            placed[node] = True
            order[end] = node
            end += 1
            last = node
            for c in range(k // 2):  # the nearer half: the farther one belongs to other groups
                j = ids[node, c]
                if j >= 0 and not placed[j]:
                    placed[j] = True
                    order[end] = j
                    end += 1
                    last = np.int64(j)
            node = np.int64(-1)
            for c in range(k):
                j = ids[last, c]
                if j >= 0 and not placed[j]:
                    node = np.int64(j)
                    break
    return order


@nb.njit(parallel=True, cache=True)
def _rename(ids, order, place, out):
    for t in nb.prange(order.size):
        for c in range(ids.shape[1]):
            j = ids[order[t], c]
            out[t, c] = place[j] if j >= 0 else -1
