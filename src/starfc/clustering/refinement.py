"""Graph refinement by node intimacy, STAR-FC (CVPR 2021) section 3.4.

With the directed adjacency B of the edges that graph parsing kept, out-degrees n and common neighbours

    c_ij = Σ_m B_im B_mj,      NI_ij = max(c_ij / n_i, c_ij / n_j)

an edge stays where NI_ij > τ2. Edges with n_i = 0 or n_j = 0 have NI 0. c is computed at the kept edges only, by
counting the members of j's in-list that are marked as i's out-list; the product B·B is never formed.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.clustering.edges import EdgeList


def node_intimacy(edges: EdgeList) -> NDArray[np.float32]:
    """NI of every directed edge, in the order of the list: (E,) float32 in [0, 1].

    The edges are sorted by row (:class:`EdgeList` promises it); columns may stand in any order within a row.
    """
    n = edges.num_nodes
    indptr = np.zeros(n + 1, np.int64)
    np.cumsum(np.bincount(edges.rows, minlength=n), out=indptr[1:])
    t_indptr, t_rows = _incoming(indptr, edges.cols)
    out = np.empty(len(edges), np.float32)
    _intimacy(indptr, edges.cols, t_indptr, t_rows, 8 * nb.get_num_threads(), out)
    return out


def refine(edges: EdgeList, intimacy: NDArray[np.float32], tau2: float) -> EdgeList:
    """Edges with NI > τ2."""
    return edges.select(intimacy > tau2)


@nb.njit(cache=True)
def _incoming(indptr, cols):
    n = indptr.size - 1
    t_indptr = np.zeros(n + 1, np.int64)
    for e in range(cols.size):
        t_indptr[cols[e] + 1] += 1
    for i in range(n):
        t_indptr[i + 1] += t_indptr[i]
    t_rows = np.empty(cols.size, cols.dtype)
    cursor = t_indptr[:-1].copy()
    for i in range(n):
        for e in range(indptr[i], indptr[i + 1]):
            t_rows[cursor[cols[e]]] = i
            cursor[cols[e]] += 1
    return t_indptr, t_rows


@nb.njit(parallel=True, cache=True)
def _intimacy(indptr, cols, t_indptr, t_rows, parts, out):
    n = indptr.size - 1
    for part in nb.prange(parts):
        marked = np.zeros(n, np.uint8)  # the out-list of the row at hand
        for i in range(n * part // parts, n * (part + 1) // parts):
            first, last = indptr[i], indptr[i + 1]
            for e in range(first, last):
                marked[cols[e]] = 1
            for e in range(first, last):
                j = cols[e]
                degree = indptr[j + 1] - indptr[j]
                common = 0
                if degree > 0:
                    for a in range(t_indptr[j], t_indptr[j + 1]):
                        common += marked[t_rows[a]]
                out[e] = np.float32(common) / np.float32(max(1, min(last - first, degree)))
            for e in range(first, last):
                marked[cols[e]] = 0
