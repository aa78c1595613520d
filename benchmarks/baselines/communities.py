"""Baselines that find communities in a weighted graph: Chinese Whispers, Leiden, Infomap, FC-ES."""

from __future__ import annotations

from collections.abc import Iterator

import numba as nb
import numpy as np
from numpy.typing import NDArray

from baselines.edges import first_neighbours, near, ordered, undirected
from starfc.clustering.components import largest_first
from starfc.clustering.partition import infomap as own_infomap
from starfc.data.dataset import Features
from starfc.graph.edges import EdgeList, row_pointers
from starfc.graph.neighbours import KnnGraph
from starfc.runtime.extras import require
from starfc.runtime.infomap import modules
from starfc.runtime.products import slices

_LINKS = 1 << 16  # rows per block of links that Infomap gets


def chinese_whispers(
    graph: KnnGraph,
    features: Features | None = None,
    *,
    min_sim: float,
    k: int | None = None,
    iterations: int = 20,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Cluster with Chinese Whispers (Biemann, TextGraphs 2006) on the undirected edges of similarity >= ``min_sim``.

    Edges go to the first k - 1 neighbours (k includes the node itself; default: all neighbours of the graph).

    Every node starts as a separate class. In each iteration all nodes, in random order, take the class with the highest
    sum of similarities among their neighbours in the present state. In a tie a node keeps its class if it is one of the
    best; otherwise it takes the class of the neighbour with the lowest id. The method ends after ``iterations``, or
    after an iteration without a change.
    """
    edges, rng = undirected(first_neighbours(graph, k), min_sim), np.random.default_rng(seed)
    classes, sums = np.arange(graph.num_nodes), np.zeros(graph.num_nodes)
    for _ in range(iterations):
        if not _whisper(edges.indptr, edges.indices, edges.data, rng.permutation(graph.num_nodes), classes, sums):
            break
    return largest_first(classes)


@nb.njit(cache=True)
def _whisper(indptr, ids, weights, order, classes, sums):
    """Run one iteration in place, and return how many nodes changed. ``sums`` (N,) must be 0, and is 0 afterwards."""
    changed = 0
    for i in order:
        edges = range(indptr[i], indptr[i + 1])
        for e in edges:
            sums[classes[ids[e]]] += weights[e]
        best = classes[i]
        for e in edges:
            if sums[classes[ids[e]]] > sums[best]:
                best = classes[ids[e]]
        for e in edges:
            sums[classes[ids[e]]] = 0.0
        changed += best != classes[i]
        classes[i] = best
    return changed


def leiden(
    graph: KnnGraph,
    features: Features | None = None,
    *,
    min_sim: float,
    resolution: float,
    k: int | None = None,
    objective: str = "CPM",
    seed: int = 0,
) -> NDArray[np.int64]:
    """Cluster with Leiden (Traag, Waltman, van Eck, Scientific Reports 2019) on undirected edges >= ``min_sim``.

    Edges go to the first k - 1 neighbours, as in :func:`chinese_whispers`, and are weighted by similarity. The
    implementation is igraph's, with two iterations. With the constant Potts model ('CPM') the mean similarity per pair
    is above ``resolution`` within communities, and below it between them. With 'modularity' communities are denser than
    ``resolution`` times the density expected from their degrees. Needs the package `igraph`. It has one random number
    generator per process, which is set to Python's ``random`` again afterwards.
    """
    import random

    require("igraph", "Leiden")
    import igraph
    import scipy.sparse as sp

    edges = sp.triu(undirected(first_neighbours(graph, k), min_sim)).tocoo()
    network = igraph.Graph(graph.num_nodes, np.column_stack([edges.row, edges.col]))
    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = network.community_leiden(objective, weights=edges.data, resolution=resolution, n_iterations=2)
    finally:
        igraph.set_random_number_generator(random)
    return ordered(np.array(found.membership, np.int64))


def infomap(
    graph: KnnGraph, features: Features | None = None, *, min_sim: float, k: int | None = None, seed: int = 1
) -> NDArray[np.int64]:
    """Cluster with Infomap's two-level modules (Rosvall, Bergstrom, PNAS 2008) of the directed kNN graph.

    Links i -> j go to the first k - 1 neighbours (k includes the node itself; default: all neighbours of the graph)
    with similarity >= ``min_sim``, and are weighted by similarity, as in
    github.com/xiaoxiong74/face-cluster-by-infomap. A node without a link is its own cluster. Needs the package
    `infomap`.
    """
    graph = first_neighbours(graph, k)
    return _modules(graph.ids, graph.sims, near(graph, min_sim), seed)


def map_equation(
    graph: KnnGraph, features: Features | None = None, *, min_sim: float, k: int | None = None, seed: int = 1
) -> NDArray[np.int64]:
    """Cluster as :func:`infomap`, with the search of this project, in each connected component.

    This needs less time and memory than the package `infomap`: for graphs of millions of nodes.
    """
    graph = first_neighbours(graph, k)
    counts, cols, scores = [], [], []
    for rows in slices(graph.num_nodes, 1 << 16):
        near = (graph.ids[rows] >= 0) & (graph.sims[rows] >= np.float32(min_sim))
        counts.append(near.sum(axis=1))
        cols.append(graph.ids[rows][near])
        scores.append(graph.sims[rows][near])
    indptr = row_pointers(np.concatenate(counts))
    edges = EdgeList(indptr, np.concatenate(cols), np.concatenate(scores))
    return largest_first(own_infomap(edges, seed))


def fc_es(
    graph: KnnGraph,
    features: Features | None = None,
    *,
    theta: float,
    k: int | None = None,
    sigma: float = 0.5,
    seed: int = 1,
) -> NDArray[np.int64]:
    """Cluster with FC-ES (Liu: Face Clustering via Early Stopping and Edge Recall, arXiv 2408.13431), unsupervised.

    Each node is linked to its neighbours, nearest first, with their :func:`edge_probabilities` as weights. The first
    neighbour with a probability below ``theta`` ends the list (early stopping), even if later neighbours have a higher
    probability. Infomap makes directed two-level modules of the links. Needs the package `infomap`.

    Sources: the paper's abstract describes a probability of an edge by its neighbours, and early stopping. The full
    text of the paper was not available. The formula, sigma = 0.5, the stopping rule, theta = 0.22 on MS1M with k = 80,
    weights and Infomap's options are from the authors' code (github.com/jumptoliujj/FC-ESER). This project decided that
    a missing neighbour ends a list too, that k may be lower than the graph's, and that Infomap's seed and single trial
    are those of :func:`infomap`.
    """
    graph = first_neighbours(graph, k)
    probabilities = edge_probabilities(graph, sigma)
    return _modules(graph.ids, probabilities, early_stopping(graph, probabilities, theta), seed)


def edge_probabilities(graph: KnnGraph, sigma: float = 0.5) -> NDArray[np.float32]:
    """Return the neighbour-based probability of every edge, (N, k) float32 in [0, 1]; 0 for a missing neighbour.

    With P_im = exp(-d_im² / sigma) / sum over i's list, d² = 2 - 2 s, the probability of i -> j is half the sum of
    P_im + P_jm over the nodes m in both lists. A node is in its own list, at distance 0.
    """
    weights = np.where(graph.ids >= 0, np.exp((2 * graph.sims - 2) / np.float32(sigma)), 0).astype(np.float32)
    own = 1 / (1 + weights.sum(axis=1))
    weights *= own[:, None]
    probabilities = np.zeros_like(weights)
    _edge_probabilities(graph.ids, weights, own, np.zeros(graph.num_nodes, np.float32), probabilities)
    return probabilities


def early_stopping(graph: KnnGraph, probabilities: NDArray[np.float32], theta: float) -> NDArray[np.bool_]:
    """Return which slots of each row come before the first that is missing or has a probability below ``theta``."""
    return np.logical_and.accumulate((graph.ids >= 0) & (probabilities >= np.float32(theta)), axis=1)


@nb.njit(cache=True)
def _edge_probabilities(ids, weights, own, row, probabilities):
    """Write ``probabilities``. ``row`` (N,) must be zeros; it holds P of the present row, 0 for nodes not listed."""
    n, k = ids.shape
    for i in range(n):
        row[i] = own[i]
        for c in range(k):
            if ids[i, c] >= 0:
                row[ids[i, c]] = weights[i, c]
        for c in range(k):
            j = ids[i, c]
            if j < 0:
                break
            total = row[j] + own[j]
            for r in range(k):
                if ids[j, r] < 0:
                    break
                if row[ids[j, r]] > 0:
                    total += row[ids[j, r]] + weights[j, r]
            probabilities[i, c] = total / 2
        row[i] = 0
        for c in range(k):
            if ids[i, c] >= 0:
                row[ids[i, c]] = 0


def _modules(
    ids: NDArray[np.integer], weights: NDArray[np.float32], kept: NDArray[np.bool_], seed: int
) -> NDArray[np.int64]:
    """Return Infomap's directed two-level modules of the slots ``kept``. A node without a link is its own cluster."""
    return ordered(modules(_links(ids, weights, kept), len(ids), directed=True, seed=seed))


def _links(
    ids: NDArray[np.integer], weights: NDArray[np.float32], kept: NDArray[np.bool_]
) -> Iterator[NDArray[np.float64]]:
    """Yield blocks of links (source, target, weight), float64, as Infomap needs them."""
    for start in range(0, len(ids), _LINKS):
        rows, columns = np.nonzero(kept[start : start + _LINKS])
        rows += start
        if rows.size:
            yield np.column_stack([rows, ids[rows, columns], weights[rows, columns]]).astype(np.float64)
