"""The kNN graph and its contract.

A :class:`KnnGraph` of N nodes is two arrays of shape (N, k):

* ``ids``, int32 (int64 from 2^31 nodes): neighbour ids, the node itself excluded;
* ``sims``, float32: similarities ``s = clip(<f_i, f_j>, 0, 1)`` of L2-normalised features.

Rows fall by similarity, ties by rising id. ``-1`` / ``0.0`` fill the slots a row has no neighbour for; they stand at
the end of the row. A similarity of 0 beside an id is an edge, not a missing one. The graph is directed: j among i's
neighbours says nothing about i among j's.

``k`` counts as the published files count: the node's own id is one of the k entries searched for, so a row holds
k - 1 others, and k of them only where so many duplicates tie that its own id fell out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class KnnGraph:
    """A kNN graph under the contract above; ``info`` says how it was made (backend, its parameters, recall)."""

    ids: NDArray[np.integer]
    sims: NDArray[np.float32]
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def num_nodes(self) -> int:
        return self.ids.shape[0]

    @property
    def k(self) -> int:
        return self.ids.shape[1]

    def num_entries(self, columns: int) -> int:
        """Neighbours of all nodes together in the first columns, slots without one left out."""
        return _count_entries(self.ids[:, :columns])


def empty_graph(num_nodes: int, k: int) -> KnnGraph:
    """The graph of nodes without neighbours, none or one."""
    ids, sims = np.full((num_nodes, k), -1, id_dtype(num_nodes)), np.zeros((num_nodes, k), np.float32)
    return KnnGraph(ids, sims, {"backend": "none", "params": {}, "recall": 1.0, "recall_rows": 0})


def id_dtype(num_nodes: int) -> type[np.signedinteger]:
    """int32 while ids fit, int64 from 2^31 nodes on."""
    return np.int32 if num_nodes < 2**31 else np.int64


def tidy(ids: NDArray[np.integer], sims: NDArray[np.floating], rows: NDArray[np.integer], num_nodes: int) -> KnnGraph:
    """Bring raw search results under the contract.

    Parameters
    ----------
    ids, sims : (n, k) arrays
        Search results; ids < 0 are missing. ``sims`` are similarities.
    rows : (n,) integers
        Whose results they are.
    num_nodes : int
        Nodes of the whole graph, which all ids are of.

    Returns
    -------
    KnnGraph
        Of n rows: self and missing entries removed, similarities clipped to [0, 1], rows sorted.
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
            # insertion from the right: rows come almost sorted
            at = kept
            while at > 0 and (out_sims[i, at - 1] < s or (out_sims[i, at - 1] == s and out_ids[i, at - 1] > j)):
                out_sims[i, at] = out_sims[i, at - 1]
                out_ids[i, at] = out_ids[i, at - 1]
                at -= 1
            out_sims[i, at] = s
            out_ids[i, at] = j
            kept += 1
