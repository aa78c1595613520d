"""Refine the graph by node intimacy: STAR-FC (CVPR 2021) section 3.4, and its undirected form (TPAMI 2023).

Let B be the adjacency matrix of the edges that graph parsing kept, n_i the (out-)degree of node i, and

    c_ij = Σ_m B_im B_mj,      NI_ij = max(c_ij / n_i, c_ij / n_j)

the number of common neighbours and the node intimacy of an edge. An edge is kept if NI_ij is above a threshold. If
n_i = 0 or n_j = 0, NI_ij is 0. c_ij is computed for existing edges only: the kernel marks the out-list of i and counts
the marked members of the in-list of j. The product B·B is never formed. On a GPU, each member m of i's list is one
binary search of m's list for j. The counts are whole numbers, so NI has the same bits on all devices.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.clustering.refinement_kernels import dynamic_of_rows, intimacy_of_pairs, intimacy_of_rows, mirror
from starfc.graph.edge_list_kernels import in_lists
from starfc.graph.edges import EdgeList
from starfc.runtime import device as devices
from starfc.runtime import threads
from starfc.runtime.device_rows import on_device
from starfc.runtime.products import slices

_PARTS = 8  # the rows are split into this many parts per thread
_EDGE_BYTES = 64  # on a device: an edge's key, its sorted copy, degrees and sums
_SEARCH_BYTES = 80  # on a device: each search
_SEARCHES = 1 << 26  # searches at a time; more do not make a GPU faster


def node_intimacy(
    edges: EdgeList, order: NDArray[np.integer] | None = None, device: str | torch.device = "cpu"
) -> NDArray[np.float32]:
    """Return NI of each directed edge, (E,) float32 >= 0, in the order of the edge list.

    NI is above 1 if j has fewer edges than there are nodes in i's list with an edge to j. In a symmetric list, NI is
    never above 1.

    ``order`` (N,) is the order in which nodes are processed. It affects speed only
    (:func:`starfc.graph.order.locality_order` returns a fast one). A symmetric edge list is passed to
    :func:`node_intimacy_undirected`. ``device`` is where common neighbours are counted; the CPU counts them if the
    edges do not fit into half of the device's room.
    """
    if edges.symmetric:
        return node_intimacy_undirected(edges, order, device)
    if _fits(edges, device):
        return devices.retry_smaller(lambda allowed: _counted_there(edges, device, allowed), device)
    in_indptr, in_rows = in_lists(edges.indptr, edges.cols, None)
    out, n = np.empty(len(edges), np.float32), edges.num_nodes
    order = np.arange(n) if order is None else order
    threads.each(
        lambda part: intimacy_of_rows(edges.indptr, edges.cols, in_indptr, in_rows, order[part], out), _parts(n)
    )
    return out


def node_intimacy_undirected(
    edges: EdgeList, order: NDArray[np.integer] | None = None, device: str | torch.device = "cpu"
) -> NDArray[np.float32]:
    """Return NI of each edge of a symmetric list with sorted columns (:func:`~starfc.graph.edges.undirected`).

    The result is (E,) float32 in [0, 1]. In a symmetric list, in-lists equal out-lists, and
    NI_ij = NI_ji = c_ij / min(n_i, n_j). Each pair is counted once, over the shorter of its two lists. ``order`` and
    ``device`` are as for :func:`node_intimacy`.
    """
    if _fits(edges, device):
        return devices.retry_smaller(lambda allowed: _counted_there(edges, device, allowed), device)
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


def _fits(edges: EdgeList, device: str | torch.device) -> bool:
    """Return whether common neighbours are counted by torch on this device."""
    return devices.uses_torch(device) and len(edges) > 0 and _EDGE_BYTES * len(edges) <= devices.room(device) // 2


def _counted_there(edges: EdgeList, device: str | torch.device, allowed: int) -> NDArray[np.float32]:
    """Return NI of each edge, (E,) float32, with the common neighbours counted in torch.

    Each member m of i's list is searched for an edge m -> j; in a symmetric list, each member of the shorter list.
    """
    n, cols = edges.num_nodes, on_device(edges.cols, device).long()
    first = on_device(edges.indptr, device)
    degrees = first.diff()
    rows = torch.repeat_interleave(degrees)
    in_order = cols if edges.symmetric else (rows * n + cols).sort().values - rows * n
    swap = (degrees[cols] < degrees[rows]) & edges.symmetric
    own, other = torch.where(swap, cols, rows), torch.where(swap, rows, cols)
    ends, steps = degrees[own].cumsum(0), int(degrees.max()).bit_length()
    at_a_time = devices.block_rows(allowed // 2, _SEARCH_BYTES, _SEARCHES)
    out, start = np.empty(len(edges), np.float32), 0
    while start < len(edges):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(torch.searchsorted(ends, before + at_a_time, right=True)))
        part = slice(start, stop)
        which = torch.repeat_interleave(degrees[own[part]])
        offset = torch.arange(len(which), device=which.device) - (ends[part] - degrees[own[part]] - before)[which]
        members, wanted = cols[first[own[part]][which] + offset], other[part][which]
        common = torch.bincount(which[_listed(in_order, first, members, wanted, steps)], minlength=stop - start)
        fewer = torch.minimum(degrees[rows[part]], degrees[cols[part]])
        shared = torch.where(degrees[cols[part]] > 0, common, 0)
        out[part] = (shared.float() / fewer.clamp_min(1).float()).cpu().numpy()
        start = stop
    return out


def _listed(cols: Tensor, first: Tensor, rows: Tensor, wanted: Tensor, steps: int) -> Tensor:
    """Return whether ``wanted`` (s,) are in the lists of ``rows`` (s,), by ``steps`` halvings of the sorted lists."""
    low, high = first[rows], first[rows + 1]
    stop = high
    for _ in range(steps):
        middle = (low + high) // 2
        below = (low < high) & (cols[middle.clamp_max(len(cols) - 1)] < wanted)
        low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
    return (low < stop) & (cols[low.clamp_max(len(cols) - 1)] == wanted)
