"""Code that the baselines share: edges of a kNN graph above a similarity, and labels in their common form."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from starfc.clustering.components import components, largest_first
from starfc.errors import InputError
from starfc.graph.edges import EdgeList, row_pointers
from starfc.graph.neighbours import KnnGraph


def first_neighbours(graph: KnnGraph, k: int | None) -> KnnGraph:
    """Return the graph of ``k`` neighbours per node, the node itself included: its first k - 1 columns. None: all."""
    if k is None:
        return graph
    if not 2 <= k <= graph.k + 1:
        raise InputError(f"k: must be between 2 and {graph.k + 1}, the k of the kNN graph; found {k}")
    return KnnGraph(graph.ids[:, : k - 1], graph.sims[:, : k - 1], graph.info)


def near(graph: KnnGraph, min_sim: float) -> NDArray[np.bool_]:
    """Return which slots hold a neighbour with similarity >= ``min_sim``, (N, k) bool."""
    return (graph.ids >= 0) & (graph.sims >= np.float32(min_sim))


def joined(graph: KnnGraph, kept: NDArray[np.bool_]) -> NDArray[np.integer]:
    """Return the connected components of the slots ``kept`` (N, k) as undirected edges: the smallest member, (N,)."""
    return components(EdgeList(row_pointers(kept.sum(axis=1)), graph.ids[kept], graph.sims[kept]))


def undirected(graph: KnnGraph, min_sim: float) -> sp.csr_array:
    """Return symmetric (N, N) similarities, float32, for nodes of which one lists the other with >= ``min_sim``.

    The ids of each row are sorted. Edges with similarity 0 have no weight and are left out.
    """
    kept = near(graph, min_sim)
    matrix = sp.csr_array(
        (graph.sims[kept], graph.ids[kept], row_pointers(kept.sum(axis=1))), shape=(graph.num_nodes,) * 2
    )
    matrix.sort_indices()
    return matrix.maximum(matrix.T.tocsr())


def ordered(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return labels 0..C-1 (N,), largest cluster first. Every -1 (noise) becomes a cluster of its own."""
    noise = labels == -1
    labels = np.where(noise, labels.max(initial=-1) + np.cumsum(noise), labels)
    return largest_first(np.unique(labels, return_inverse=True)[1])
