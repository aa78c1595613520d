"""An order of the nodes that puts neighbours beside each other.

The stages gather rows of features and projections of a node's neighbours: half a KiB to one each, from anywhere in
arrays far larger than the caches. Taken as they came, almost every gather is a miss. Taken so that a node comes soon
after its neighbours, the rows that one node fetched are still in the cache for the next, which wants mostly the same.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.graph.neighbours import KnnGraph, id_dtype


def locality_order(graph: KnnGraph) -> NDArray[np.integer]:
    """A permutation (N,) of the nodes: node by node, each followed by its nearest neighbours not yet placed.

    From the last of them the walk goes on to an unplaced neighbour, and where there is none to the unplaced node of the
    lowest id. Linear in the entries of the graph.
    """
    return _walk(graph.ids, np.empty(graph.num_nodes, id_dtype(graph.num_nodes)))


def inverse(order: NDArray[np.integer]) -> NDArray[np.integer]:
    """Where each node stands in ``order``: (N,)."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order), dtype=order.dtype)
    return place


@nb.njit(cache=True)
def _walk(ids, order):
    n, k = ids.shape
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
