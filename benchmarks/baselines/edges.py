"""What the baselines share: a kNN graph's edges above a similarity, and labels in their common form."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from starfc.clustering.components import components, largest_first
from starfc.errors import InputError
from starfc.graph.edges import EdgeList, row_pointers
from starfc.graph.neighbours import KnnGraph


def first_neighbours(graph: KnnGraph, k: int | None) -> KnnGraph:
    """The graph of ``k`` entries a node, itself counted: its first k - 1 columns; all of them where k is None."""
    if k is None:
        return graph
    if not 2 <= k <= graph.k + 1:
        raise InputError(f"k: between 2 and {graph.k + 1}, the entries of the kNN graph, needed; found {k}")
    return KnnGraph(graph.ids[:, : k - 1], graph.sims[:, : k - 1], graph.info)


def near(graph: KnnGraph, min_sim: float) -> NDArray[np.bool_]:
    """Which slots hold a neighbour of similarity >= ``min_sim``: (N, k)."""
    return (graph.ids >= 0) & (graph.sims >= np.float32(min_sim))


def joined(graph: KnnGraph, kept: NDArray[np.bool_]) -> NDArray[np.integer]:
    """Connected components of the slots ``kept`` (N, k), taken as undirected: each node's smallest member, (N,)."""
    return components(EdgeList(row_pointers(kept.sum(axis=1)), graph.ids[kept], graph.sims[kept]))


def undirected(graph: KnnGraph, min_sim: float) -> sp.csr_array:
    """Symmetric (N, N) similarities, float32: an edge where either node lists the other with at least ``min_sim``.

    Each row's ids rise. An edge of similarity 0 weighs nothing and is left out.
    """
    kept = near(graph, min_sim)
    matrix = sp.csr_array(
        (graph.sims[kept], graph.ids[kept], row_pointers(kept.sum(axis=1))), shape=(graph.num_nodes,) * 2
    )
    matrix.sort_indices()
    return matrix.maximum(matrix.T.tocsr())


def ordered(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Labels 0..C-1, largest cluster first; every -1 (noise) becomes a cluster of one. Any integers (N,) -> (N,)."""
    noise = labels == -1
    labels = np.where(noise, labels.max(initial=-1) + np.cumsum(noise), labels)
    return largest_first(np.unique(labels, return_inverse=True)[1])
