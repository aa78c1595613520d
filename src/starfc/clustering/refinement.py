"""Refine the graph by node intimacy: STAR-FC (CVPR 2021) section 3.4, and its undirected form (TPAMI 2023).

Let B be the adjacency matrix of the edges that graph parsing kept, n_i the (out-)degree of node i, and

    c_ij = Σ_m B_im B_mj,      NI_ij = max(c_ij / n_i, c_ij / n_j)

the number of common neighbours and the node intimacy of an edge. An edge is kept if NI_ij is above a threshold. If
n_i = 0 or n_j = 0, NI_ij is 0. c_ij is computed for existing edges only: the kernel marks the out-list of i and counts
the marked members of the in-list of j. The product B·B is never formed.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.clustering.refinement_kernels import dynamic_of_rows, intimacy_of_pairs, intimacy_of_rows, mirror
from starfc.graph.edge_list_kernels import in_lists
from starfc.graph.edges import EdgeList
from starfc.runtime import threads
from starfc.runtime.products import slices

_PARTS = 8  # the rows are split into this many parts per thread


def node_intimacy(edges: EdgeList, order: NDArray[np.integer] | None = None) -> NDArray[np.float32]:
    """Return NI of each directed edge, (E,) float32 >= 0, in the order of the edge list.

    NI is above 1 if j has fewer edges than there are nodes in i's list with an edge to j. In a symmetric list, NI is
    never above 1.

    ``order`` (N,) is the order in which nodes are processed. It affects speed only
    (:func:`starfc.graph.order.locality_order` returns a fast one). A symmetric edge list is passed to
    :func:`node_intimacy_undirected`.
    """
    if edges.symmetric:
        return node_intimacy_undirected(edges, order)
    in_indptr, in_rows = in_lists(edges.indptr, edges.cols, None)
    out, n = np.empty(len(edges), np.float32), edges.num_nodes
    order = np.arange(n) if order is None else order
    threads.each(
        lambda part: intimacy_of_rows(edges.indptr, edges.cols, in_indptr, in_rows, order[part], out), _parts(n)
    )
    return out


def node_intimacy_undirected(edges: EdgeList, order: NDArray[np.integer] | None = None) -> NDArray[np.float32]:
    """Return NI of each edge of a symmetric list with sorted columns (:func:`~starfc.graph.edges.undirected`).

    The result is (E,) float32 in [0, 1]. In a symmetric list, in-lists equal out-lists, and
    NI_ij = NI_ji = c_ij / min(n_i, n_j). Each pair is counted once, over the shorter of its two lists. ``order`` is as
    for :func:`node_intimacy`.
    """
    out, n = np.empty(len(edges), np.float32), edges.num_nodes
    order = np.arange(n) if order is None else order
    threads.each(lambda part: intimacy_of_pairs(edges.indptr, edges.cols, order[part], out), _parts(n))
    mirror(edges.indptr, edges.cols, out)
    return out


def dynamic_thresholds(edges: EdgeList, ceiling: float) -> NDArray[np.float64]:
    """Return the threshold of NI of each edge, (E,) float64 (TPAMI 2023).

    τ_ij = ceiling / (0.85^(10 b) + 1) with b = min(⌊min(n_i, n_j) / 10⌋, 2) + 1. Nodes with more neighbours must share
    a larger part of them. A ceiling of 0.78 gives the thresholds 0.6517, 0.7509 and 0.7741.
    """
    by_tens = ceiling / (0.85 ** (10 * np.arange(1, 4)) + 1)
    out = np.empty(len(edges), np.float64)
    threads.each(
        lambda part: dynamic_of_rows(edges.indptr, edges.cols, by_tens, part.start, part.stop, out),
        _parts(edges.num_nodes),
    )
    return out


def refine(edges: EdgeList, intimacy: NDArray[np.float32], tau2: float) -> EdgeList:
    """Return the edges with NI > τ2; ``intimacy`` is (E,)."""
    return edges.select(intimacy > tau2)


def refine_dynamic(edges: EdgeList, intimacy: NDArray[np.float32], ceiling: float) -> EdgeList:
    """Return the edges with NI > τ_ij (:func:`dynamic_thresholds`); ``intimacy`` is (E,)."""
    return edges.select(intimacy > dynamic_thresholds(edges, ceiling))


def _parts(n: int) -> list[slice]:
    """Split the rows [0, n) into several parts per thread."""
    return slices(n, max(1, -(-n // (_PARTS * torch.get_num_threads()))))
