"""Clusters as connected components, and the order of their labels."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from starfc.clustering.edges import EdgeList


def components(edges: EdgeList) -> NDArray[np.int64]:
    """Connected components of the edges taken as undirected: labels (N,), int64, 0..C-1.

    A node without an edge is its own cluster. Labels fall by cluster size; clusters of equal size are ordered by
    their smallest member.
    """
    n = edges.num_nodes
    graph = sp.csr_matrix((np.ones(len(edges), np.int8), (edges.rows, edges.cols)), shape=(n, n))
    _, labels = connected_components(graph, directed=False)
    return largest_first(labels)


def largest_first(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Relabel 0..C-1 so that sizes fall; ties go by the smallest member."""
    _, first, inverse, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    return rank[inverse]
