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
    """FINCH (Sarfraz, Sharma, Stiefelhagen, CVPR 2019): the partition of one level, from 1.

    Two nodes are linked where one is the other's first neighbour or both have the same; level 1 are the components,
    first neighbours those of the kNN graph. Every further level does so with the clusters of the one before, each the
    mean of its instances' unit vectors, nearest by cosine, found exactly (the authors' package finch-clust approximates
    them from 20,000 points on). Where the levels end sooner, in one cluster, the last but one is taken, and the first
    at least.
    """
    if level < 1:
        raise InputError(f"level: at least 1 needed; found {level}")
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
    """Components of the edges i - first_i, as 0..C-1: that two have the same first neighbour joins them through it."""
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
    """Mini-batch k-means (Sculley, WWW 2010; scikit-learn's) of unit vectors; it is told the number of clusters."""
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(
        num_clusters, init=init, max_iter=max_iter, batch_size=batch_size, n_init=1, random_state=seed
    )
    return ordered(model.fit_predict(as_features(features).all()).astype(np.int64))
