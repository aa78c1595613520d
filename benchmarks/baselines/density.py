"""Density baselines on a kNN graph: DBSCAN and HDBSCAN. Each noise instance becomes a cluster of its own."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from baselines.edges import joined, near, ordered
from starfc.clustering.components import largest_first
from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.graph.edges import row_pointers
from starfc.graph.neighbours import KnnGraph

_APART = 2.0  # the largest distance of unit vectors; it is used between components of the kNN graph
_LEAST = 1e-6  # lowest distance, because scipy treats 0 as a missing edge


def knn_dbscan(
    graph: KnnGraph, features: Features | None = None, *, min_sim: float, min_points: int
) -> NDArray[np.int64]:
    """Cluster with DBSCAN (Ester et al., KDD 1996). The neighbourhoods are those of the kNN graph.

    A neighbour with similarity >= ``min_sim`` is near. A node with at least ``min_points`` near nodes, itself included,
    is a core. Cores that are near each other are joined. Any other node joins the nearest near core, or is noise if
    there is none. The graph has every near neighbour of a node that is no core, so only edges between cores can be
    missing.
    """
    _check_points("min_points", min_points, graph)
    close = near(graph, min_sim)
    core = close.sum(axis=1) + 1 >= min_points
    to_core = close & core[graph.ids]  # id -1 reads the entry of the last node, but close is False there
    labels = joined(graph, to_core & core[:, None])
    border = np.flatnonzero(~core & to_core.any(axis=1))
    labels[border] = labels[graph.ids[border, to_core[border].argmax(axis=1)]]
    return largest_first(labels)


def knn_hdbscan(
    graph: KnnGraph,
    features: Features | None = None,
    *,
    min_cluster_size: int,
    min_samples: int,
    selection: str = "eom",
) -> NDArray[np.int64]:
    """Cluster with HDBSCAN (Campello, Moulavi, Sander, PAKDD 2013) on the kNN graph.

    Core distances and mutual reachability use the Euclidean distances sqrt(2 - 2 s) in the graph. scipy computes the
    minimum spanning forest, and its trees are joined at distance 2. scikit-learn's HDBSCAN gets this tree as sparse
    distances, with min_samples = 1, which does not change them. The condensed tree and the selection of clusters are
    those of scikit-learn.

    Parameters
    ----------
    min_cluster_size : int
        Instances of the smallest cluster, at least 2.
    min_samples : int
        The core distance is the distance to the ``min_samples``-th nearest node, the node itself included.
    selection : {'eom', 'leaf'}
        Excess of mass, or the leaves of the condensed tree.
    """
    from sklearn.cluster import HDBSCAN

    _check_points("min_samples", min_samples, graph)
    tree = _spanning_tree(graph, min_samples)
    model = HDBSCAN(
        min_cluster_size=min_cluster_size,
        min_samples=1,
        metric="precomputed",
        cluster_selection_method=selection,
        copy=False,
    )
    return ordered(model.fit_predict(tree).astype(np.int64))


def _spanning_tree(graph: KnnGraph, min_samples: int) -> sp.csr_array:
    """Return the minimum spanning tree of mutual reachability, symmetric (N, N) with 2 (N - 1) entries."""
    held = graph.ids >= 0
    distances = np.sqrt(np.maximum(2 - 2 * graph.sims.astype(np.float64), 0))
    distances[~held] = _APART
    core = distances[:, min_samples - 2] if min_samples > 1 else np.zeros(graph.num_nodes)
    mutual = np.maximum(np.maximum(distances, core[:, None]), core[graph.ids])[held]
    mutual = sp.csr_array(
        (np.maximum(mutual, _LEAST), graph.ids[held], row_pointers(held.sum(axis=1))), shape=(graph.num_nodes,) * 2
    )
    forest = sp.csgraph.minimum_spanning_tree(mutual).tocoo()
    _, component = sp.csgraph.connected_components(forest, directed=False)
    first = np.unique(component, return_index=True)[1]
    rows = np.concatenate([forest.row, np.full(len(first) - 1, first[0])])
    columns = np.concatenate([forest.col, first[1:]])
    weights = np.concatenate([forest.data, np.full(len(first) - 1, _APART)])
    tree = sp.coo_array((weights, (rows, columns)), shape=forest.shape)
    return (tree + tree.T).tocsr()


def _check_points(name: str, found: int, graph: KnnGraph) -> None:
    if not 1 <= found <= graph.k + 1:
        raise InputError(
            f"{name}: must be between 1 and {graph.k + 1}, the k of the kNN graph with the node itself; found {found}"
        )
