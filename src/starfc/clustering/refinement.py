"""Graph refinement by node intimacy, STAR-FC (CVPR 2021) section 3.4, and its undirected form (TPAMI 2023).

With the adjacency B of the edges that graph parsing kept, (out-)degrees n and common neighbours

    c_ij = Σ_m B_im B_mj,      NI_ij = max(c_ij / n_i, c_ij / n_j)

an edge stays where NI_ij is above a threshold. Edges with n_i = 0 or n_j = 0 have NI 0. c is computed at the kept edges
only, by counting the members of j's in-list that are marked as i's out-list; the product B·B is never formed.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import torch
from numpy.typing import NDArray

from starfc.clustering.edges import EdgeList
from starfc.graph.products import slices
from starfc.runtime import threads

_PARTS = 8  # parts of the rows per thread


def node_intimacy(edges: EdgeList, order: NDArray[np.integer] | None = None) -> NDArray[np.float32]:
    """NI of every directed edge, in the order of the list: (E,) float32 in [0, 1].

    ``order`` (N,) is the order in which to take the nodes; it changes no result
    (:func:`starfc.graph.order.locality_order` makes one that is fast).
    """
    return _intimacy_of(edges, *_incoming(edges.indptr, edges.cols), order)


def node_intimacy_undirected(edges: EdgeList, order: NDArray[np.integer] | None = None) -> NDArray[np.float32]:
    """NI of every edge of a symmetric list (:func:`undirected`), where in-lists are out-lists: (E,) float32."""
    return _intimacy_of(edges, edges.indptr, edges.cols, order)


def undirected(edges: EdgeList) -> EdgeList:
    """The edges taken as undirected: every pair once in either direction, with its higher score; columns sorted."""
    rows = edges.rows
    ends, others = np.concatenate([rows, edges.cols]), np.concatenate([edges.cols, rows])
    scores = np.concatenate([edges.scores, edges.scores])
    order = np.lexsort((-scores, others, ends))
    ends, others, scores = ends[order], others[order], scores[order]
    first = np.ones(len(ends), np.bool_)
    first[1:] = (ends[1:] != ends[:-1]) | (others[1:] != others[:-1])
    return EdgeList.from_rows(ends[first], others[first], scores[first], edges.num_nodes)


def refine(edges: EdgeList, intimacy: NDArray[np.float32], tau2: float) -> EdgeList:
    """Edges with NI > τ2."""
    return edges.select(intimacy > tau2)


def _intimacy_of(
    edges: EdgeList,
    in_indptr: NDArray[np.int64],
    in_rows: NDArray[np.integer],
    order: NDArray[np.integer] | None,
) -> NDArray[np.float32]:
    out, n = np.empty(len(edges), np.float32), edges.num_nodes
    order = np.arange(n) if order is None else order

    def work(part: slice) -> None:
        _intimacy(edges.indptr, edges.cols, in_indptr, in_rows, order[part], out)

    threads.each(work, slices(n, max(1, -(-n // (_PARTS * torch.get_num_threads())))))
    return out


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


@nb.njit(cache=True, nogil=True)
def _intimacy(indptr, cols, t_indptr, t_rows, rows, out):
    marked = np.zeros(indptr.size - 1, np.uint8)  # the out-list of the row at hand
    for i in rows:
        first, last = indptr[i], indptr[i + 1]
        for e in range(first, last):
            marked[cols[e]] = 1
        for e in range(first, last):
            j = cols[e]
            degree = indptr[j + 1] - indptr[j]
            common = np.int32(0)
            if degree > 0:
                for a in range(t_indptr[j], t_indptr[j + 1]):
                    common += marked[t_rows[a]]
            out[e] = np.float32(common) / np.float32(max(1, min(last - first, degree)))
        for e in range(first, last):
            marked[cols[e]] = 0
