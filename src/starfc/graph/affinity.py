"""Build the affinity graph and the propagation matrix of a kNN graph, and propagate features over it.

STAR-FC (CVPR 2021), section 3.2. From the directed kNN entries (i, j, s_ij) with s_ij >= th_sim and i != j:

    a_ij = max(s_ij, s_ji),    A <- A + I,    Â = D^-1 A  with  D_ii = Σ_j A_ij

Each node has a self loop, so no row of Â is empty, and each row sums to 1.

A kNN graph contains the kNN graphs with fewer neighbours (TPAMI 2023). The graph of a *scale* of k neighbours, the node
itself included, is its first k - 1 columns. Scales are in increasing order; an edge is in all graphs from the first
scale that contains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.graph.affinity_kernels import (
    aggregate,
    count_unions,
    entry_kinds,
    fill_unions,
    one_sided,
    spmm,
    transpose,
)
from starfc.graph.neighbours import KnnGraph
from starfc.runtime import threads
from starfc.runtime.products import slices
from starfc.runtime.words import word

_BLOCK = 1 << 12


def propagation_matrix(graph: KnnGraph, th_sim: float = 0.0) -> sp.csr_matrix:
    """Return the propagation matrix Â of a kNN graph: its row-normalised symmetric affinity matrix.

    Parameters
    ----------
    graph : KnnGraph
        N nodes, k neighbours; similarities in [0, 1].
    th_sim : float
        Entries with a lower similarity are left out before the matrix is made symmetric.

    Returns
    -------
    scipy.sparse.csr_matrix
        (N, N), float32 values, columns sorted, with self loops. Entries with similarity 0 are stored too.
    """
    n = graph.num_nodes
    indptr, indices, data, _ = _unions(graph, scale_widths(graph, None), th_sim)
    index_dtype = np.int32 if indptr[-1] < 2**31 and indices.dtype == np.int32 else np.int64
    matrix = sp.csr_matrix((n, n), dtype=np.float32)
    matrix.indptr = indptr.astype(index_dtype)
    matrix.indices = indices.astype(index_dtype, copy=False)
    matrix.data = data
    matrix.has_canonical_format = True
    return matrix


def affinity_edges(
    graph: KnnGraph, scales: Sequence[int], th_sim: float = 0.0
) -> tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.uint8]]:
    """Return the entries of Â of the largest scale, self loops included, and the first scale of each entry.

    Parameters
    ----------
    graph : KnnGraph
        Has at least as many neighbours as the largest scale.
    scales : sequence of int
        Numbers of neighbours, the node itself included, in increasing order.
    th_sim : float
        As for :func:`propagation_matrix`.

    Returns
    -------
    rows, cols : (E,) int32 (int64 from 2^31 nodes)
        The entries, sorted by row, then by column.
    levels : (E,) uint8
        Â of ``scales[s]`` has exactly the entries with ``levels <= s``.
    """
    indptr, cols, _, levels = _unions(graph, scale_widths(graph, scales), th_sim)
    return np.repeat(np.arange(graph.num_nodes, dtype=cols.dtype), np.diff(indptr)), cols, levels


def propagate(adjacency: sp.csr_matrix, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean aggregation ÂF, (N, d) float32, of a sparse (N, N) and a dense (N, d) matrix."""
    out = np.empty((adjacency.shape[0], features.shape[1]), np.float32)
    spmm(adjacency.indptr, adjacency.indices, adjacency.data, np.ascontiguousarray(features), out)
    return out


@dataclass(frozen=True)
class Affinity:
    """The affinity graphs A = max(S, Sᵀ) + I of the nested scales of a kNN graph, without a stored matrix.

    The neighbours of node i in A are the nodes in i's list, and the nodes j that have i in their list while i's list
    does not have j (one-sided entries). Only the one-sided entries are collected, about a third of all; nothing is
    sorted.

    Attributes
    ----------
    graph : KnnGraph
        The kNN graph.
    widths : (S,) int64
        The number of columns of the kNN graph that each scale uses.
    kinds : (N, widths[-1]) uint8
        The kind of each entry (i, j): ``MISSING`` (no neighbour, or similarity below th_sim), ``ONE_SIDED`` (j's list
        does not have i), or mutual. The code of a mutual entry says from which scale on j's list has i, and which of
        the two similarities is higher (:mod:`starfc.graph.affinity_kernels`).
    indptr, sources, weights
        The one-sided entries by target: from scale s on, the nodes ``sources[indptr[j S + s] : indptr[j S + s + 1]]``
        have j in their list, with similarities ``weights``.
    """

    graph: KnnGraph
    widths: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    indptr: NDArray[np.int64]
    sources: NDArray[np.integer]
    weights: NDArray[np.float32]

    @classmethod
    def of(
        cls,
        graph: KnnGraph,
        th_sim: float = 0.0,
        order: NDArray[np.integer] | None = None,
        scales: Sequence[int] | None = None,
        wanted: NDArray[np.bool_] | None = None,
    ) -> Affinity:
        """Return the affinity graphs of the kNN entries with similarity >= th_sim.

        Parameters
        ----------
        order : (N,) integers, optional
            Order in which nodes are processed. It does not change the result.
        scales : sequence of int, optional
            Numbers of neighbours, the node itself included, in increasing order. Default: one scale with all columns.
        wanted : (N,) bool, optional
            The nodes whose neighbours are needed. The neighbours of other nodes are then incomplete. Default: all.
        """
        widths = scale_widths(graph, scales)
        kinds = np.empty((graph.num_nodes, widths[-1]), np.uint8)
        order = np.arange(graph.num_nodes) if order is None else order

        def work(part: slice) -> None:
            entry_kinds(graph.ids, graph.sims, np.float32(th_sim), widths, order[part], wanted, kinds)

        threads.each(work, slices(graph.num_nodes, _BLOCK))
        return cls(graph, widths, kinds, *one_sided(graph.ids, graph.sims, kinds, widths))

    @property
    def num_scales(self) -> int:
        """Number of scales S."""
        return len(self.widths)

    def aggregate(
        self, features: Features, rows: NDArray[np.integer], dtype: type[np.floating] = np.float32
    ) -> NDArray[np.floating]:
        """Return some rows (m,) of ÂF = D^-1 A F of all scales, (S, m, d), with L2-normalised F; sum in ``dtype``."""
        out = np.empty((self.num_scales, len(rows), features.dim), dtype)
        aggregate(
            rows, self.graph.ids, self.graph.sims, self.kinds, self.widths, self.indptr, self.sources, self.weights,
            *features.scaled, out,
        )  # fmt: skip
        return out


def scale_widths(graph: KnnGraph, scales: Sequence[int] | None) -> NDArray[np.int64]:
    """Return the number of columns of the kNN graph that each scale uses, (S,); all columns if ``scales`` is None.

    If the graph has too few nodes for a scale, the scale uses all columns.
    """
    if scales is None:
        return np.array([graph.k], np.int64)
    if not scales or list(scales) != sorted(set(scales)) or scales[0] < 2:
        raise InputError(f"scales: increasing numbers of neighbours >= 2 needed; found {tuple(scales)}")
    needed = min(max(scales), graph.num_nodes - 1)
    if graph.k < needed:
        raise InputError(
            f"{word('knn')}: at least {max(scales)} needed by a model with scales of {tuple(scales)} neighbours; found "
            f"a kNN graph of {graph.k} neighbours"
        )
    return np.minimum(np.array(scales, np.int64) - 1, graph.k)


def _unions(
    graph: KnnGraph, widths: NDArray[np.int64], th_sim: float
) -> tuple[NDArray[np.int64], NDArray[np.integer], NDArray[np.float32], NDArray[np.uint8]]:
    """Return row pointers, columns and values of Â of the largest scale, and the first scale of each entry."""
    ids, sims, line = graph.ids, graph.sims, np.float32(th_sim)
    t_indptr, t_rows, t_values, t_levels = transpose(ids, sims, line, widths)
    counts = np.empty(graph.num_nodes, np.int64)
    count_unions(ids, sims, line, widths, t_indptr, t_rows, counts)
    indptr = np.zeros(graph.num_nodes + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    indices, data, levels = (np.empty(indptr[-1], dtype) for dtype in (ids.dtype, np.float32, np.uint8))
    fill_unions(ids, sims, line, widths, t_indptr, t_rows, t_values, t_levels, indptr, indices, data, levels)
    return indptr, indices, data, levels
