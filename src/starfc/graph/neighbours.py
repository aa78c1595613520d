"""The kNN graph and its contract.

A :class:`KnnGraph` of N nodes has two arrays of shape (N, k):

* ``ids``, int32 (int64 from 2^31 nodes): the ids of the neighbours, without the node itself;
* ``sims``, float32: the similarities ``s = clip(<f_i, f_j>, 0, 1)`` of L2-normalised features.

Each row is sorted by decreasing similarity; ties are sorted by increasing id. Slots without a neighbour have id -1 and
similarity 0.0, and are at the end of the row. An entry with an id and similarity 0 is an edge, not an empty slot. The
graph is directed: j can be a neighbour of i while i is not a neighbour of j.

``k`` counts as in the published files: the node itself is one of the k entries that are searched. So a row usually has
k - 1 neighbours. It has k neighbours only if so many duplicates tie that the node's own id is not among the k entries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class KnnGraph:
    """A kNN graph that follows the contract above; ``info`` has its backend, the backend's parameters, and recall."""

    ids: NDArray[np.integer]
    sims: NDArray[np.float32]
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def num_nodes(self) -> int:
        """Number of nodes N."""
        return self.ids.shape[0]

    @property
    def k(self) -> int:
        """Number of columns k."""
        return self.ids.shape[1]

    def num_entries(self, columns: int) -> int:
        """Return the total number of neighbours in the first ``columns`` columns; empty slots do not count."""
        return _count_entries(self.ids[:, :columns])


def empty_graph(num_nodes: int, k: int) -> KnnGraph:
    """Return the graph of 0 or 1 nodes, which have no neighbours."""
    ids, sims = np.full((num_nodes, k), -1, id_dtype(num_nodes)), np.zeros((num_nodes, k), np.float32)
    return KnnGraph(ids, sims, {"backend": "none", "params": {}, "recall": 1.0, "recall_rows": 0})


def id_dtype(num_nodes: int) -> type[np.signedinteger]:
    """Return the dtype of node ids: int32, or int64 from 2^31 nodes on."""
    return np.int32 if num_nodes < 2**31 else np.int64


def tidy(ids: NDArray[np.integer], sims: NDArray[np.floating], rows: NDArray[np.integer], num_nodes: int) -> KnnGraph:
    """Convert raw search results to a graph that follows the contract.

    Parameters
    ----------
    ids, sims : (n, k) arrays
        Ids and similarities that a search found; ids < 0 are empty slots.
    rows : (n,) integers
        The node of each row of results.
    num_nodes : int
        Number of nodes of the whole graph.

    Returns
    -------
    KnnGraph
        n rows without self entries; similarities are clipped to [0, 1], and rows are sorted.
    """
    out_ids = np.full(ids.shape, -1, id_dtype(num_nodes))
    out_sims = np.zeros(ids.shape, np.float32)
    _tidy_rows(np.ascontiguousarray(ids), np.ascontiguousarray(sims), rows, out_ids, out_sims)
    return KnnGraph(out_ids, out_sims)


@nb.njit(cache=True)
def _count_entries(ids):
    count = 0
    for i in range(ids.shape[0]):
        for c in range(ids.shape[1]):
            count += ids[i, c] >= 0
    return count


@nb.njit(cache=True, nogil=True)
def _tidy_rows(ids, sims, rows, out_ids, out_sims):
    n, k = ids.shape
    for i in range(n):
        kept = 0
        for c in range(k):
            j = ids[i, c]
            if j < 0 or j == rows[i]:
                continue
            s = np.float32(min(max(sims[i, c], 0.0), 1.0))
            # insertion sort from the right, fast because rows are almost sorted
            at = kept
            while at > 0 and (out_sims[i, at - 1] < s or (out_sims[i, at - 1] == s and out_ids[i, at - 1] > j)):
                out_sims[i, at] = out_sims[i, at - 1]
                out_ids[i, at] = out_ids[i, at - 1]
                at -= 1
            out_sims[i, at] = s
            out_ids[i, at] = j
            kept += 1
