"""Order the nodes so that neighbours are close to each other, for the processor's caches.

All stages read the features or projections of a node's neighbours: 0.5 to 1 KiB each, anywhere in arrays that are much
larger than the caches. In the original order, almost every read is a cache miss. If a node is processed soon after its
neighbours, most of the rows it needs are still in the cache.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.graph.neighbours import KnnGraph, id_dtype


def locality_order(graph: KnnGraph) -> NDArray[np.integer]:
    """Return a permutation (N,) of the nodes that keeps neighbours close to each other.

    Each node is followed by those of its nearest neighbours that are not placed yet. The walk continues with an
    unplaced neighbour of the last placed node; if there is none, with the unplaced node of the lowest id. The time is
    linear in the entries of the graph.
    """
    return _walk(graph.ids, np.empty(graph.num_nodes, id_dtype(graph.num_nodes)))


def inverse(order: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the position of each node in ``order``, (N,)."""
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
            for c in range(k // 2):  # only the nearer half, because farther neighbours often belong to other groups
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
