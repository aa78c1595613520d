"""Summary numbers of the edges that graph parsing and refinement keep, computed before the edges are freed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


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
    candidates: int,
    parsed: Kept,
    labels: NDArray[np.int64],
    total: NDArray[np.float64],
    count: NDArray[np.int32],
    entries: int,
) -> Summary:
    """Return the summary of a clustering.

    Parameters
    ----------
    candidates : int
        Number of scored edges.
    parsed : Kept
        The edges after graph parsing.
    labels : (N,) int64
        Cluster labels, largest cluster first.
    total, count : (N,) float64, (N,) int32
        Sum of p and number of the edges that refinement kept, by the node from which they start
        (:func:`starfc.graph.edges.sums_of_rows`). All of them lie inside clusters.
    entries : int
        How often each edge counts: 2 in a symmetric list, otherwise 1.
    """
    several = int(np.count_nonzero(np.bincount(labels) > 1))
    number = np.bincount(labels, count)[:several].astype(np.int64)
    scores = (np.bincount(labels, total)[:several] / np.maximum(number, 1)).astype(np.float32)
    refined = int(count.sum(dtype=np.int64)) // entries
    return Summary(candidates, parsed, kept(labels, refined), number // entries, scores)
