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

from starfc.graph.edge_list_kernels import incoming
from starfc.graph.edges import EdgeList
from starfc.runtime import threads
from starfc.runtime.products import slices

_PARTS = 8  # parts of the rows per thread


def node_intimacy(edges: EdgeList, order: NDArray[np.integer] | None = None) -> NDArray[np.float32]:
    """NI of every directed edge, in the order of the list: (E,) float32 in [0, 1].

    ``order`` (N,) is the order in which to take the nodes; it changes no result
    (:func:`starfc.graph.order.locality_order` makes one that is fast). Of a symmetric list it is
    :func:`node_intimacy_undirected`.
    """
    if edges.symmetric:
        return node_intimacy_undirected(edges, order)
    in_indptr, in_rows = incoming(edges.indptr, edges.cols)
    out, n = np.empty(len(edges), np.float32), edges.num_nodes
    order = np.arange(n) if order is None else order
    threads.each(lambda part: _intimacy(edges.indptr, edges.cols, in_indptr, in_rows, order[part], out), _parts(n))
    return out


def node_intimacy_undirected(edges: EdgeList, order: NDArray[np.integer] | None = None) -> NDArray[np.float32]:
    """NI of every edge of a symmetric list with sorted columns (:func:`~starfc.graph.edges.undirected`): (E,) float32.

    In-lists are out-lists there and NI_ij = NI_ji = c_ij / min(n_i, n_j): each pair is counted once, over the shorter
    of its two lists.
    """
    out, n = np.empty(len(edges), np.float32), edges.num_nodes
    order = np.arange(n) if order is None else order
    threads.each(lambda part: _intimacy_of_pairs(edges.indptr, edges.cols, order[part], out), _parts(n))
    _mirror(edges.indptr, edges.cols, out)
    return out


def dynamic_thresholds(edges: EdgeList, ceiling: float) -> NDArray[np.float64]:
    """τ_ij = ceiling / (0.85^(10 b) + 1), b = min(⌊min(n_i, n_j) / 10⌋, 2) + 1, of every edge: (E,) (TPAMI 2023).

    Nodes of many neighbours must share a larger part of them. A ceiling of 0.78 gives 0.6517, 0.7509 and 0.7741.
    """
    by_tens = ceiling / (0.85 ** (10 * np.arange(1, 4)) + 1)
    out = np.empty(len(edges), np.float64)
    threads.each(
        lambda part: _dynamic(edges.indptr, edges.cols, by_tens, part.start, part.stop, out), _parts(edges.num_nodes)
    )
    return out


def refine(edges: EdgeList, intimacy: NDArray[np.float32], tau2: float) -> EdgeList:
    """Edges with NI > τ2."""
    return edges.select(intimacy > tau2)


def refine_dynamic(edges: EdgeList, intimacy: NDArray[np.float32], ceiling: float) -> EdgeList:
    """Edges with NI > τ_ij (:func:`dynamic_thresholds`)."""
    return edges.select(intimacy > dynamic_thresholds(edges, ceiling))


def _parts(n: int) -> list[slice]:
    """Rows [0, n), several parts a thread."""
    return slices(n, max(1, -(-n // (_PARTS * torch.get_num_threads()))))


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


@nb.njit(cache=True, nogil=True)
def _intimacy_of_pairs(indptr, cols, rows, out):
    """NI at the end that has more neighbours, the higher id of equals."""
    marked = np.zeros(indptr.size - 1, np.uint8)
    for i in rows:
        first, last = indptr[i], indptr[i + 1]
        for e in range(first, last):
            marked[cols[e]] = 1
        for e in range(first, last):
            j = cols[e]
            degree = indptr[j + 1] - indptr[j]
            if degree < last - first or (degree == last - first and j < i):
                common = np.int32(0)
                for a in range(indptr[j], indptr[j + 1]):
                    common += marked[cols[a]]
                out[e] = np.float32(common) / np.float32(degree)
        for e in range(first, last):
            marked[cols[e]] = 0


@nb.njit(cache=True)
def _mirror(indptr, cols, out):
    """Copy each pair's NI to the end that has none yet: rows are met in the order in which others list them."""
    cursor = indptr[:-1].copy()
    for i in range(cursor.size):
        for e in range(indptr[i], indptr[i + 1]):
            j = cols[e]
            back = cursor[j]  # the edge j -> i
            cursor[j] += 1
            ours, theirs = indptr[i + 1] - indptr[i], indptr[j + 1] - indptr[j]
            if theirs < ours or (theirs == ours and j < i):
                out[back] = out[e]


@nb.njit(cache=True, nogil=True)
def _dynamic(indptr, cols, by_tens, start, stop, out):
    for i in range(start, stop):
        for e in range(indptr[i], indptr[i + 1]):
            degree = min(indptr[i + 1] - indptr[i], indptr[cols[e] + 1] - indptr[cols[e]])
            out[e] = by_tens[min(degree // 10, 2)]
