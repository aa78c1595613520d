"""Baselines that select edges and return connected components: single link, approximate rank order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from baselines.edges import first_neighbours, joined, near
from starfc.clustering.components import largest_first
from starfc.data.dataset import Features
from starfc.evaluation.metrics import contingency, pairwise
from starfc.graph.neighbours import KnnGraph, id_dtype
from starfc.runtime.union_find_kernels import flatten, unite


def single_link(graph: KnnGraph, features: Features | None = None, *, min_sim: float) -> NDArray[np.int64]:
    """Cluster with single link on the kNN graph: connected components of the edges with similarity >= ``min_sim``."""
    return largest_first(joined(graph, near(graph, min_sim)))


class Point(NamedTuple):
    """Pairwise scores (fractions) of the clusters at one similarity threshold."""

    threshold: float
    precision: float
    recall: float
    fscore: float
    num_clusters: int


def sweep_single_link(graph: KnnGraph, labels: NDArray[np.integer], thresholds: Iterable[float]) -> list[Point]:
    """Score :func:`single_link` at every threshold, highest first.

    Because thresholds fall, one union-find grows from each threshold to the next, and every edge is read once. This
    takes 10 bytes per node, besides the metrics and the graph, which may be memory-mapped.
    """
    parent = np.arange(graph.num_nodes, dtype=id_dtype(graph.num_nodes))
    seen = np.zeros(graph.num_nodes, np.int16)
    points = []
    for threshold in sorted(thresholds, reverse=True):
        _join(graph.ids, graph.sims, np.float32(threshold), seen, parent)
        table = contingency(labels, parent)
        score = pairwise(table)
        points.append(Point(threshold, score.precision, score.recall, score.fscore, len(table.col_sums)))
    return points


def rank_order(
    graph: KnnGraph, features: Features | None = None, *, threshold: float, k: int | None = None
) -> NDArray[np.int64]:
    """Cluster with approximate rank order (Otto, Wang, Jain: Clustering Millions of Faces by Identity, TPAMI 2018).

    All edges with :func:`rank_distances` <= ``threshold`` are merged transitively, once.

    Parameters
    ----------
    threshold : float
        Threshold of the distance. 0 joins only nodes whose lists agree up to each other's position.
    k : int, optional
        Length of each list, the node itself included. Default: that of the graph.
    """
    graph = first_neighbours(graph, k)
    distances = rank_distances(graph)
    return largest_first(joined(graph, distances <= np.float32(threshold)))


def rank_distances(graph: KnnGraph) -> NDArray[np.float32]:
    """Return Otto's distance of every edge of the kNN graph, (N, k) float32; infinite for a missing neighbour.

    D(a, b) = (d(a, b) + d(b, a)) / min(O_a(b), O_b(a)), where O_a(b) is b's rank among a's neighbours (from 1), and
    d(a, b) counts those among a's first min(O_a(b), k) neighbours that are not in b's list. A node is in its own list.
    If b does not list a, O_b(a) is larger than k: then d(b, a) uses b's whole list, and O_a(b) is the minimum.
    """
    distances = np.full(graph.ids.shape, np.inf, np.float32)
    _rank_distances(graph.ids, np.zeros(graph.num_nodes, np.int32), distances)
    return distances


@nb.njit(cache=True)
def _rank_distances(ids, rank, distances):
    """Write ``distances``. ``rank`` (N,) must be zeros; it holds each node's rank in the present list, 0: not in it."""
    n, k = ids.shape
    for a in range(n):
        for c in range(k):
            if ids[a, c] >= 0:
                rank[ids[a, c]] = c + 1
        for c in range(k):
            b = ids[a, c]
            if b < 0:
                continue
            shared, foreign, back = 1, 0, 0  # shared starts at 1, because b is in its own list
            for r in range(k):
                m = ids[b, r]
                if m < 0:
                    break
                if m == a:
                    back = r + 1
                    continue
                if 0 < rank[m] <= c + 1:
                    shared += 1
                if rank[m] == 0 and back == 0:
                    foreign += 1  # one of b's first O_b(a) neighbours that is not in a's list
            nearer = min(c + 1, back) if back else c + 1
            distances[a, c] = np.float32(c + 1 - shared + foreign) / np.float32(nearer)
        for c in range(k):
            if ids[a, c] >= 0:
                rank[ids[a, c]] = 0


@nb.njit(cache=True)
def _join(ids, sims, threshold, seen, parent):
    """Join the edges of similarity >= threshold. ``seen`` counts those joined so far in each row, sorted descending."""
    n, k = ids.shape
    for row in range(n):
        at = seen[row]
        while at < k and ids[row, at] >= 0 and sims[row, at] >= threshold:
            unite(parent, row, ids[row, at])
            at += 1
        seen[row] = at
    flatten(parent)
