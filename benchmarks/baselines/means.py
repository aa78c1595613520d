"""Baselines that average features: FINCH and mini-batch k-means."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from baselines.edges import ordered
from starfc.data.dataset import Features, as_features
from starfc.errors import InputError
from starfc.graph.knn import exact_knn
from starfc.graph.neighbours import KnnGraph


def finch(graph: KnnGraph, features: Features | NDArray[np.float32], *, level: int) -> NDArray[np.int64]:
    """Cluster with FINCH (Sarfraz, Sharma, Stiefelhagen, CVPR 2019), and return the partition of one level, from 1.

    Two nodes are linked if one is the other's first neighbour, or if both have the same first neighbour. Level 1 are
    the connected components, with the first neighbours of the kNN graph. Every further level does the same with the
    clusters of the level before. A cluster is represented by the mean of its instances' unit vectors, and its first
    neighbour by cosine is found exactly (the authors' package finch-clust approximates it from 20,000 points). If the
    levels end earlier, in one cluster, the last level but one is returned, or level 1 if there is only one.
    """
    if level < 1:
        raise InputError(f"level: must be at least 1; found {level}")
    first = graph.ids[:, 0]
    labels = _first_neighbour_components(first)
    points = as_features(features).all() if level > 1 else None
    for _ in range(1, level):
        count = int(labels.max()) + 1
        if count < 3:
            break
        members = sp.csr_array((np.ones(len(labels), np.float32), (labels, np.arange(len(labels)))))
        means = members @ points
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        above = _first_neighbour_components(exact_knn(means, 2).ids[:, 0])
        if above.max() == 0:
            break
        labels = above[labels]
    return ordered(labels)


def _first_neighbour_components(first: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the components of the edges i - first_i, 0..C-1. Nodes with the same first neighbour are joined by it."""
    rows = np.flatnonzero(first >= 0)
    edges = sp.coo_array((np.ones(len(rows), np.int8), (rows, first[rows])), shape=(len(first),) * 2)
    return sp.csgraph.connected_components(edges.tocsr(), directed=False)[1].astype(np.int64)


def kmeans(
    graph: KnnGraph,
    features: Features | NDArray[np.float32],
    *,
    num_clusters: int,
    batch_size: int = 4096,
    init: str = "k-means++",
    max_iter: int = 20,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Cluster unit vectors with mini-batch k-means (Sculley, WWW 2010; scikit-learn), given the number of clusters."""
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(
        num_clusters, init=init, max_iter=max_iter, batch_size=batch_size, n_init=1, random_state=seed
    )
    return ordered(model.fit_predict(as_features(features).all()).astype(np.int64))
