"""Summary numbers of the edges that graph parsing and refinement keep, computed before the edges are freed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.graph.edges import EdgeList


@dataclass(frozen=True)
class Kept:
    """The number of edges that a stage kept, of their connected components, and the size of the largest component."""

    edges: int
    components: int
    largest: int


@dataclass(frozen=True)
class Summary:
    """Edge counts of a clustering, stage by stage. An undirected edge counts once.

    Attributes
    ----------
    candidates : int
        Number of edges that were scored.
    parsed : Kept
        The candidates with p > τ1.
    refined : Kept
        The parsed edges that node intimacy kept; with communities, those inside one community.
    cluster_edges : (S,) int64
        Number of refined edges inside each of the S clusters of two or more instances, in the order of labels.
    cluster_scores : (S,) float32
        Mean p of these edges.
    """

    candidates: int
    parsed: Kept
    refined: Kept
    cluster_edges: NDArray[np.int64]
    cluster_scores: NDArray[np.float32]

    def with_singletons(self, count: int) -> Summary:
        """Return the summary with ``count`` more instances without edges."""
        parsed, refined = (
            Kept(kept.edges, kept.components + count, max(kept.largest, min(count, 1)))
            for kept in (self.parsed, self.refined)
        )
        return replace(self, parsed=parsed, refined=refined)


def kept(members: NDArray[np.integer], edges: int, sizes: NDArray[np.integer] | None = None) -> Kept:
    """Count components and find the size of the largest one.

    Parameters
    ----------
    members : (N,) integers
        Each node's component, named by one of its members (:func:`~starfc.clustering.components.components`).
    edges : int
        Number of edges, stored in the result.
    sizes : (N,) integers, optional
        The number of rows that each node represents. Default: 1 each.
    """
    count = np.bincount(members, sizes)
    return Kept(edges, int(np.count_nonzero(count)), int(count.max()))


def summarise(
    candidates: int, parsed: Kept, edges: EdgeList, labels: NDArray[np.int64], refined: NDArray[np.bool_] | None = None
) -> Summary:
    """Return the summary of a clustering.

    Parameters
    ----------
    candidates : int
        Number of scored edges.
    parsed : Kept
        The edges after graph parsing.
    edges : EdgeList
        These E edges.
    labels : (N,) int64
        Cluster labels, largest cluster first.
    refined : (E,) bool, optional
        Which edges refinement kept; all of these lie inside clusters. Default: all.
    """
    count = int(np.count_nonzero(np.bincount(labels) > 1))
    number, total = np.zeros(count, np.int64), np.zeros(count, np.float64)
    _add_edges(edges.indptr, edges.scores, refined, labels, number, total)
    scores = (total / np.maximum(number, 1)).astype(np.float32)
    entries = 2 if edges.symmetric else 1
    count = len(edges) if refined is None else int(np.count_nonzero(refined))
    return Summary(candidates, parsed, kept(labels, count // entries), number // entries, scores)


@nb.njit(cache=True)
def _add_edges(indptr, scores, kept, labels, number, total):
    for i in range(labels.size):
        for e in range(indptr[i], indptr[i + 1]):
            if kept is None or kept[e]:
                number[labels[i]] += 1
                total[labels[i]] += scores[e]
