"""Baselines that choose edges and take connected components: single link, approximate rank order."""

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
    """Single link on the kNN graph: components of the edges of similarity >= ``min_sim``. Labels (N,)."""
    return largest_first(joined(graph, near(graph, min_sim)))


class Point(NamedTuple):
    """Pairwise scores (fractions) of the clusters at one similarity threshold."""

    threshold: float
    precision: float
    recall: float
    fscore: float
    num_clusters: int


def sweep_single_link(graph: KnnGraph, labels: NDArray[np.integer], thresholds: Iterable[float]) -> list[Point]:
    """:func:`single_link` scored at every threshold, highest first.

    Thresholds fall, so one union-find grows from each to the next, and every edge is looked at once: 10 bytes a node
    beside the graph, which may be memory-mapped, and the metrics.
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
    """Approximate rank order (Otto, Wang, Jain: Clustering Millions of Faces by Identity, TPAMI 2018).

    One transitive merge of all edges of :func:`rank_distances` <= ``threshold``.

    Parameters
    ----------
    threshold : float
        Of the distance; 0 joins only nodes whose lists agree up to each other.
    k : int, optional
        Entries of each list, the node itself counted; all of the graph's by default.
    """
    graph = first_neighbours(graph, k)
    distances = rank_distances(graph)
    return largest_first(joined(graph, distances <= np.float32(threshold)))


def rank_distances(graph: KnnGraph) -> NDArray[np.float32]:
    """Otto's distance along every edge of the kNN graph: (N, k) float32, infinite where there is no neighbour.

    D(a, b) = (d(a, b) + d(b, a)) / min(O_a(b), O_b(a)), where O_a(b) is b's rank among a's neighbours (from 1), and
    d(a, b) counts those among a's first min(O_a(b), k) neighbours that are not in b's list. A node is in its own list.
    O_b(a) is beyond k where b does not list a: then d(b, a) goes over b's whole list, and O_a(b) is the minimum.
    """
    distances = np.full(graph.ids.shape, np.inf, np.float32)
    _rank_distances(graph.ids, np.zeros(graph.num_nodes, np.int32), distances)
    return distances


@nb.njit(cache=True)
def _rank_distances(ids, rank, distances):
    """``rank`` (N,) zeros: the rank of each node in the list of the row at hand, 0 where it is not in it."""
    n, k = ids.shape
    for a in range(n):
        for c in range(k):
            if ids[a, c] >= 0:
                rank[ids[a, c]] = c + 1
        for c in range(k):
            b = ids[a, c]
            if b < 0:
                continue
            shared, foreign, back = 1, 0, 0  # shared: b is in its own list
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
                    foreign += 1  # among b's first O_b(a), and not in a's list
            nearer = min(c + 1, back) if back else c + 1
            distances[a, c] = np.float32(c + 1 - shared + foreign) / np.float32(nearer)
        for c in range(k):
            if ids[a, c] >= 0:
                rank[ids[a, c]] = 0


@nb.njit(cache=True)
def _join(ids, sims, threshold, seen, parent):
    """Join the edges of similarity >= threshold; ``seen`` counts those of each row (rows fall) joined so far."""
    n, k = ids.shape
    for row in range(n):
        at = seen[row]
        while at < k and ids[row, at] >= 0 and sims[row, at] >= threshold:
            unite(parent, row, ids[row, at])
            at += 1
        seen[row] = at
    flatten(parent)
