"""Unsupervised clusterings of a kNN graph to stand beside: single link and Infomap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numba as nb
import numpy as np

from starfc.evaluation.metrics import contingency, pairwise
from starfc.graph.neighbours import KnnGraph, id_dtype


class Point(NamedTuple):
    """Pairwise scores (fractions) of the clusters at one similarity threshold."""

    threshold: float
    precision: float
    recall: float
    fscore: float
    num_clusters: int


def single_link(graph: KnnGraph, labels: np.ndarray, thresholds: Iterable[float]) -> list[Point]:
    """Single link on the kNN graph, scored at every threshold, highest first.

    At threshold t the clusters are the connected components of the edges of similarity >= t (taken as undirected).
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


@nb.njit(cache=True)
def _root(parent, i):
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@nb.njit(cache=True)
def _join(ids, sims, threshold, seen, parent):
    """Join the edges of similarity >= threshold; ``seen`` counts those of each row (rows fall) joined so far."""
    n, k = ids.shape
    for row in range(n):
        at = seen[row]
        while at < k and ids[row, at] >= 0 and sims[row, at] >= threshold:
            i, j = _root(parent, row), _root(parent, ids[row, at])
            parent[max(i, j)] = min(i, j)
            at += 1
        seen[row] = at
    for i in range(n):
        parent[i] = parent[parent[i]]  # a parent is a smaller id, so its own root is known by now


def infomap_labels(graph: KnnGraph, min_sim: float, k: int = 50, seed: int = 1) -> np.ndarray:
    """Infomap's two-level modules of the directed kNN graph: (N,) int64.

    Links i -> j, weighted by similarity, to the first k - 1 neighbours (k counts the node itself) of similarity >=
    ``min_sim``, as in github.com/xiaoxiong74/face-cluster-by-infomap; a node without a link is its own cluster.
    Needs the package `infomap`.
    """
    from infomap import Infomap

    network = Infomap(silent=True, two_level=True, directed=True, seed=seed, num_trials=1)
    num_links = 0
    for links in _links(graph, min_sim, k):
        network.add_links(links)
        num_links += len(links)
    labels = np.arange(graph.num_nodes, dtype=np.int64)
    if num_links:  # Infomap refuses an empty network
        modules = network.run().modules()
        labels[list(modules)] = graph.num_nodes + np.array(list(modules.values()), np.int64)
    return labels


def _links(graph: KnnGraph, min_sim: float, k: int, block: int = 1 << 16) -> Iterator[np.ndarray]:
    """Blocks of links (source, target, similarity), float64 as Infomap takes them."""
    for start in range(0, graph.num_nodes, block):
        ids, sims = graph.ids[start : start + block, : k - 1], graph.sims[start : start + block, : k - 1]
        rows, columns = np.nonzero((ids >= 0) & (sims >= min_sim))
        if rows.size:
            yield np.column_stack([rows + start, ids[rows, columns], sims[rows, columns]]).astype(np.float64)
