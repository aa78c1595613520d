"""Graph refinement by node intimacy, STAR-FC (CVPR 2021) section 3.4, and its undirected form (TPAMI 2023).

With the adjacency B of the edges that graph parsing kept, (out-)degrees n and common neighbours

    c_ij = Σ_m B_im B_mj,      NI_ij = max(c_ij / n_i, c_ij / n_j)

an edge stays where NI_ij is above a threshold. Edges with n_i = 0 or n_j = 0 have NI 0. c is computed at the kept edges
only, by counting the members of j's in-list that are marked as i's out-list; the product B·B is never formed.
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

_PARTS = 8  # parts of the rows per thread


def node_intimacy(edges: EdgeList, order: NDArray[np.integer] | None = None) -> NDArray[np.float32]:
    """NI of every directed edge, in the order of the list: (E,) float32, at least 0.

    It is above 1 where more nodes of i's list lead to j than j has edges; of a symmetric list it never is.

    ``order`` (N,) is the order in which to take the nodes; it changes no result
    (:func:`starfc.graph.order.locality_order` makes one that is fast). Of a symmetric list it is
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
    """NI of every edge of a symmetric list with sorted columns (:func:`~starfc.graph.edges.undirected`): (E,) float32.

    In-lists are out-lists there and NI_ij = NI_ji = c_ij / min(n_i, n_j): each pair is counted once, over the shorter
    of its two lists.
    """
    out, n = np.empty(len(edges), np.float32), edges.num_nodes
    order = np.arange(n) if order is None else order
    threads.each(lambda part: intimacy_of_pairs(edges.indptr, edges.cols, order[part], out), _parts(n))
    mirror(edges.indptr, edges.cols, out)
    return out


def dynamic_thresholds(edges: EdgeList, ceiling: float) -> NDArray[np.float64]:
    """τ_ij = ceiling / (0.85^(10 b) + 1), b = min(⌊min(n_i, n_j) / 10⌋, 2) + 1, of every edge: (E,) (TPAMI 2023).

    Nodes of many neighbours must share a larger part of them. A ceiling of 0.78 gives 0.6517, 0.7509 and 0.7741.
    """
    by_tens = ceiling / (0.85 ** (10 * np.arange(1, 4)) + 1)
    out = np.empty(len(edges), np.float64)
    threads.each(
        lambda part: dynamic_of_rows(edges.indptr, edges.cols, by_tens, part.start, part.stop, out),
        _parts(edges.num_nodes),
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
