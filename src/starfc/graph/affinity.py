"""Affinity graph -> propagation matrix, and the propagation of features over it.

STAR-FC (CVPR 2021), section 3.2. From the directed kNN entries (i, j, s_ij) with s_ij >= th_sim, self excluded:

    a_ij = max(s_ij, s_ji),    A <- A + I,    Â = D^-1 A  with  D_ii = Σ_j A_ij

Every node has its self loop, so no row of Â is empty and every row sums to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from starfc.data.dataset import Features, as_features
from starfc.graph.neighbours import KnnGraph
from starfc.graph.products import slices
from starfc.runtime import threads
from starfc.runtime.half import single

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
    ids, sims = graph.ids, graph.sims
    n = graph.num_nodes
    t_indptr, t_rows, t_sims = _transpose(ids, sims, np.float32(th_sim))
    counts = np.empty(n, np.int64)
    _count_unions(ids, sims, np.float32(th_sim), t_indptr, t_rows, counts)
    indptr = np.zeros(n + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    indices = np.empty(indptr[-1], ids.dtype)
    data = np.empty(indptr[-1], np.float32)
    _fill_unions(ids, sims, np.float32(th_sim), t_indptr, t_rows, t_sims, indptr, indices, data)
    index_dtype = np.int32 if indptr[-1] < 2**31 and ids.dtype == np.int32 else np.int64
    matrix = sp.csr_matrix((n, n), dtype=np.float32)
    matrix.indptr = indptr.astype(index_dtype)
    matrix.indices = indices.astype(index_dtype, copy=False)
    matrix.data = data
    matrix.has_canonical_format = True
    return matrix


def propagate(adjacency: sp.csr_matrix, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean aggregation ÂF: (N, N) sparse times (N, d) dense -> (N, d), float32."""
    out = np.empty((adjacency.shape[0], features.shape[1]), np.float32)
    _spmm(adjacency.indptr, adjacency.indices, adjacency.data, np.ascontiguousarray(features), out)
    return out


def propagate_graph(
    graph: KnnGraph, features: Features | NDArray[np.float32], th_sim: float = 0.0
) -> NDArray[np.float32]:
    """ÂF straight from the kNN graph: equal to ``propagate(propagation_matrix(graph, th_sim), features)``, (N, d)."""
    features = as_features(features)
    affinity, out = Affinity.of(graph, th_sim), np.empty((len(features), features.dim), np.float32)

    def work(rows: slice) -> None:
        out[rows] = affinity.aggregate(features, np.arange(rows.start, rows.stop))

    threads.each(work, slices(len(features), _BLOCK))
    return out


@dataclass(frozen=True)
class Affinity:
    """The affinity graph A = max(S, Sᵀ) + I of a kNN graph S, without a matrix.

    A node's neighbours in A are those of its own list, and the nodes that list it without being listed by it; only the
    latter are collected (a third of the entries or so), and nothing is sorted.

    ``kinds`` (N, k) uint8 says of every entry (i, j) whether it is none (:data:`MISSING`, or similarity below th_sim),
    only i's (:data:`ONE_SIDED`), or j's too, with a similarity that is not higher (:data:`MUTUAL`) or higher
    (:data:`MUTUAL_HIGHER`). The nodes that list node j one-sidedly are ``sources[indptr[j] : indptr[j + 1]]``, with
    similarities ``weights``.
    """

    graph: KnnGraph
    kinds: NDArray[np.uint8]
    indptr: NDArray[np.int64]
    sources: NDArray[np.integer]
    weights: NDArray[np.float32]

    @classmethod
    def of(cls, graph: KnnGraph, th_sim: float = 0.0, order: NDArray[np.integer] | None = None) -> Affinity:
        """The affinity graph of the kNN entries whose similarity is at least th_sim.

        ``order`` (N,) is the order in which to take the nodes; it changes no result.
        """
        kinds = np.empty(graph.ids.shape, np.uint8)
        order = np.arange(graph.num_nodes) if order is None else order

        def work(part: slice) -> None:
            _entry_kinds(graph.ids, graph.sims, np.float32(th_sim), order[part], kinds)

        threads.each(work, slices(graph.num_nodes, _BLOCK))
        return cls(graph, kinds, *_one_sided(graph.ids, graph.sims, kinds))

    def aggregate(
        self, features: Features, rows: NDArray[np.integer], dtype: type[np.floating] = np.float32
    ) -> NDArray[np.floating]:
        """Rows (m,) of ÂF = D^-1 A F, the mean aggregation of L2-normalised features: (m, d), summed in ``dtype``."""
        out = np.empty((len(rows), features.dim), dtype)
        _aggregate(
            rows, self.graph.ids, self.graph.sims, self.kinds, self.indptr, self.sources, self.weights,
            *features.scaled, out,
        )  # fmt: skip
        return out


MISSING, ONE_SIDED, MUTUAL, MUTUAL_HIGHER = range(4)


@nb.njit(cache=True)
def _find(ids, node):
    """Where a node stands in a row without repeats, -1 where it does not; without a branch, so that it is SIMD."""
    at = np.int32(0)
    for c in range(ids.size):
        at += np.int32(c + 1) * np.int32(ids[c] == node)
    return at - 1


@nb.njit(cache=True, nogil=True)
def _entry_kinds(ids, sims, th_sim, rows, kinds):
    for i in rows:
        for c in range(ids.shape[1]):
            j, s = ids[i, c], sims[i, c]
            if j < 0 or s < th_sim:
                kinds[i, c] = MISSING
                continue
            at = _find(ids[j], i)
            if at < 0 or sims[j, at] < th_sim:
                kinds[i, c] = ONE_SIDED
            else:
                kinds[i, c] = MUTUAL_HIGHER if sims[j, at] > s else MUTUAL


@nb.njit(cache=True, nogil=True)
def _one_sided(ids, sims, kinds):
    """For every node the nodes that list it without being listed by it, with their similarities."""
    n, k = ids.shape
    indptr = np.zeros(n + 1, np.int64)
    for i in range(n):
        for c in range(k):
            if kinds[i, c] == ONE_SIDED:
                indptr[ids[i, c] + 1] += 1
    for i in range(n):
        indptr[i + 1] += indptr[i]
    sources = np.empty(indptr[n], ids.dtype)
    weights = np.empty(indptr[n], np.float32)
    cursor = indptr[:-1].copy()
    for i in range(n):
        for c in range(k):
            if kinds[i, c] == ONE_SIDED:
                at = cursor[ids[i, c]]
                sources[at] = i
                weights[at] = sims[i, c]
                cursor[ids[i, c]] = at + 1
    return indptr, sources, weights


@nb.njit(cache=True, fastmath={"reassoc", "contract", "nsz"})
def _add_row(total, weight, row):
    for c in range(total.size):
        total[c] += weight * single(row[c])


@nb.njit(cache=True, nogil=True)
def _aggregate(rows, ids, sims, kinds, indptr, sources, weights, array, scale, out):
    for r in range(rows.size):
        i = rows[r]
        total, degree = out[r], out.dtype.type(1.0)
        total[:] = 0.0
        _add_row(total, scale[i], array[i])
        for c in range(ids.shape[1]):
            if kinds[i, c] != MISSING:
                j, weight = ids[i, c], sims[i, c]
                if kinds[i, c] == MUTUAL_HIGHER:
                    weight = sims[j, _find(ids[j], i)]
                degree += weight
                _add_row(total, weight * scale[j], array[j])
        for e in range(indptr[i], indptr[i + 1]):
            degree += weights[e]
            _add_row(total, weights[e] * scale[sources[e]], array[sources[e]])
        for c in range(total.size):
            total[c] /= degree


@nb.njit(cache=True)
def _transpose(ids, sims, th_sim):
    """Incoming entries of every node, sources in rising order (they are met in that order)."""
    n, k = ids.shape
    indptr = np.zeros(n + 1, np.int64)
    for i in range(n):
        for c in range(k):
            if ids[i, c] >= 0 and sims[i, c] >= th_sim:
                indptr[ids[i, c] + 1] += 1
    for i in range(n):
        indptr[i + 1] += indptr[i]
    rows = np.empty(indptr[n], ids.dtype)
    values = np.empty(indptr[n], np.float32)
    cursor = indptr[:-1].copy()
    for i in range(n):
        for c in range(k):
            j = ids[i, c]
            if j >= 0 and sims[i, c] >= th_sim:
                rows[cursor[j]] = i
                values[cursor[j]] = sims[i, c]
                cursor[j] += 1
    return indptr, rows, values


@nb.njit(cache=True)
def _outgoing(ids, sims, i, th_sim):
    """Row i's kept neighbours in rising id order, with their similarities."""
    k = ids.shape[1]
    out_ids = np.empty(k, ids.dtype)
    out_sims = np.empty(k, np.float32)
    count = 0
    for c in range(k):
        if ids[i, c] >= 0 and sims[i, c] >= th_sim:
            out_ids[count] = ids[i, c]
            out_sims[count] = sims[i, c]
            count += 1
    order = np.argsort(out_ids[:count])
    return out_ids[:count][order], out_sims[:count][order]


@nb.njit(parallel=True, cache=True)
def _count_unions(ids, sims, th_sim, t_indptr, t_rows, counts):
    for i in nb.prange(ids.shape[0]):
        out_ids, _ = _outgoing(ids, sims, i, th_sim)
        a, b, b_end, union = 0, t_indptr[i], t_indptr[i + 1], 1
        while a < out_ids.size or b < b_end:
            if b == b_end or (a < out_ids.size and out_ids[a] < t_rows[b]):
                a += 1
            elif a == out_ids.size or t_rows[b] < out_ids[a]:
                b += 1
            else:
                a += 1
                b += 1
            union += 1
        counts[i] = union


@nb.njit(parallel=True, cache=True)
def _fill_unions(ids, sims, th_sim, t_indptr, t_rows, t_sims, indptr, indices, data):
    for i in nb.prange(ids.shape[0]):
        out_ids, out_sims = _outgoing(ids, sims, i, th_sim)
        a, b, b_end, at = 0, t_indptr[i], t_indptr[i + 1], indptr[i]
        self_done = False
        total = 1.0
        while a < out_ids.size or b < b_end:
            if b == b_end or (a < out_ids.size and out_ids[a] < t_rows[b]):
                j, s = out_ids[a], out_sims[a]
                a += 1
            elif a == out_ids.size or t_rows[b] < out_ids[a]:
                j, s = t_rows[b], t_sims[b]
                b += 1
            else:
                j, s = out_ids[a], max(out_sims[a], t_sims[b])
                a += 1
                b += 1
            if not self_done and j > i:
                indices[at] = i
                data[at] = 1.0
                at += 1
                self_done = True
            indices[at] = j
            data[at] = s
            total += s
            at += 1
        if not self_done:
            indices[at] = i
            data[at] = 1.0
        for e in range(indptr[i], indptr[i + 1]):
            data[e] = np.float32(data[e] / total)


@nb.njit(parallel=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def _spmm(indptr, indices, data, features, out):
    for i in nb.prange(out.shape[0]):
        row = out[i]
        row[:] = 0.0
        for e in range(indptr[i], indptr[i + 1]):
            weight = data[e]
            source = features[indices[e]]
            for c in range(row.size):
                row[c] += weight * source[c]
