"""Affinity graph -> propagation matrix, and the propagation of features over it.

STAR-FC (CVPR 2021), section 3.2. From the directed kNN entries (i, j, s_ij) with s_ij >= th_sim, self excluded:

    a_ij = max(s_ij, s_ji),    A <- A + I,    Â = D^-1 A  with  D_ii = Σ_j A_ij

Every node has its self loop, so no row of Â is empty and every row sums to 1.

One kNN graph holds those of fewer neighbours (TPAMI 2023): the graph of a *scale* of k neighbours, the node itself
counted, is the first k - 1 columns of it. Scales rise; an edge is in every graph from the first that has it on.
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
    """Row-normalised symmetric affinity Â of a kNN graph.

    Parameters
    ----------
    graph : KnnGraph
        N nodes, k neighbours; similarities in [0, 1].
    th_sim : float
        Entries with a similarity below it are left out before symmetrisation.

    Returns
    -------
    scipy.sparse.csr_matrix
        (N, N), float32 values, columns sorted, self loops stored. Entries of similarity 0 are stored too.
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
    """The entries that Â of the largest scale stores, self loops included, and the first scale that stores each.

    Parameters
    ----------
    graph : KnnGraph
        At least as deep as the largest scale.
    scales : sequence of int
        Rising numbers of neighbours, the node itself counted.
    th_sim : float
        As for :func:`propagation_matrix`.

    Returns
    -------
    rows, cols : (E,) int32 (int64 from 2^31 nodes)
        Rows do not fall, columns rise within a row.
    levels : (E,) uint8
        Â of ``scales[s]`` stores just the entries with ``levels <= s``.
    """
    indptr, cols, _, levels = _unions(graph, scale_widths(graph, scales), th_sim)
    return np.repeat(np.arange(graph.num_nodes, dtype=cols.dtype), np.diff(indptr)), cols, levels


def propagate(adjacency: sp.csr_matrix, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean aggregation ÂF: (N, N) sparse times (N, d) dense -> (N, d), float32."""
    out = np.empty((adjacency.shape[0], features.shape[1]), np.float32)
    spmm(adjacency.indptr, adjacency.indices, adjacency.data, np.ascontiguousarray(features), out)
    return out


@dataclass(frozen=True)
class Affinity:
    """The affinity graphs A = max(S, Sᵀ) + I of the nested scales of a kNN graph, without a matrix.

    A node's neighbours in A are those of its own list, and the nodes that list it without being listed by it; only the
    latter are collected (a third of the entries or so), and nothing is sorted.

    ``widths`` (S,) are the scales' columns of the kNN graph. ``kinds`` (N, widths[-1]) uint8 says of every entry (i, j)
    whether it is none (``MISSING``, or similarity below th_sim), only i's (``ONE_SIDED``), or j's too, from which scale
    on, and which similarity is higher (:mod:`starfc.graph.affinity_kernels`). The nodes that list node j one-sidedly
    from scale s on are ``sources[indptr[j S + s] : indptr[j S + s + 1]]``, with similarities ``weights``.
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
        """The affinity graphs of the kNN entries whose similarity is at least th_sim.

        ``order`` (N,) is the order in which to take the nodes; it changes no result. ``scales`` are rising numbers of
        neighbours, the node itself counted; the whole graph, all of its columns, is the only one where they are None.
        ``wanted`` (N,): nodes whose neighbours are asked for; other nodes' are not complete then.
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
        return len(self.widths)

    def aggregate(
        self, features: Features, rows: NDArray[np.integer], dtype: type[np.floating] = np.float32
    ) -> NDArray[np.floating]:
        """Rows (m,) of ÂF = D^-1 A F of every scale, of L2-normalised features: (S, m, d), summed in ``dtype``."""
        out = np.empty((self.num_scales, len(rows), features.dim), dtype)
        aggregate(
            rows, self.graph.ids, self.graph.sims, self.kinds, self.widths, self.indptr, self.sources, self.weights,
            *features.scaled, out,
        )  # fmt: skip
        return out


def scale_widths(graph: KnnGraph, scales: Sequence[int] | None) -> NDArray[np.int64]:
    """Columns (S,) of the kNN graph that each scale takes; all of them for None.

    A graph of so few nodes that no row can be as long as a scale is taken whole for it.
    """
    if scales is None:
        return np.array([graph.k], np.int64)
    if not scales or list(scales) != sorted(set(scales)) or scales[0] < 2:
        raise InputError(f"scales: numbers of neighbours needed that rise and are at least 2; found {tuple(scales)}")
    needed = min(max(scales), graph.num_nodes - 1)
    if graph.k < needed:
        raise InputError(
            f"{word('knn')}: at least {max(scales)} needed by a model of scales of {tuple(scales)} neighbours; found a "
            f"kNN graph of {graph.k}"
        )
    return np.minimum(np.array(scales, np.int64) - 1, graph.k)


def _unions(
    graph: KnnGraph, widths: NDArray[np.int64], th_sim: float
) -> tuple[NDArray[np.int64], NDArray[np.integer], NDArray[np.float32], NDArray[np.uint8]]:
    """Row pointers, columns and values of Â of the largest scale, and the first scale that stores each entry."""
    ids, sims, line = graph.ids, graph.sims, np.float32(th_sim)
    t_indptr, t_rows, t_values, t_levels = transpose(ids, sims, line, widths)
    counts = np.empty(graph.num_nodes, np.int64)
    count_unions(ids, sims, line, widths, t_indptr, t_rows, counts)
    indptr = np.zeros(graph.num_nodes + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    indices, data, levels = (np.empty(indptr[-1], dtype) for dtype in (ids.dtype, np.float32, np.uint8))
    fill_unions(ids, sims, line, widths, t_indptr, t_rows, t_values, t_levels, indptr, indices, data, levels)
    return indptr, indices, data, levels
