"""What graph parsing and refinement left of a graph, in a few numbers: kept from each stage before its edges go."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.graph.edges import EdgeList


@dataclass(frozen=True)
class Kept:
    """Edges that a stage kept, the connected components they make, and the size of the largest."""

    edges: int
    components: int
    largest: int


@dataclass(frozen=True)
class Summary:
    """A clustering's edges, stage by stage.

    ``candidates`` edges were scored; ``parsed`` is what p > τ1 kept of them, ``refined`` what node intimacy kept of
    these. For the S clusters of two or more instances, in the order of their labels, ``cluster_edges`` (S,) int64 are
    the refined edges inside, and ``cluster_scores`` (S,) float32 their mean p. An undirected edge counts once.
    """

    candidates: int
    parsed: Kept
    refined: Kept
    cluster_edges: NDArray[np.int64]
    cluster_scores: NDArray[np.float32]

    def with_singletons(self, count: int) -> Summary:
        """The same for ``count`` more instances without an edge."""
        parsed, refined = (
            Kept(kept.edges, kept.components + count, max(kept.largest, min(count, 1)))
            for kept in (self.parsed, self.refined)
        )
        return replace(self, parsed=parsed, refined=refined)


def kept(members: NDArray[np.integer], edges: int, sizes: NDArray[np.integer] | None = None) -> Kept:
    """Components given by any member's id (N,), as :func:`~starfc.clustering.components.components` gives them.

    ``sizes`` (N,): how many rows each node stands for, where that is not one.
    """
    count = np.bincount(members, sizes)
    return Kept(edges, int(np.count_nonzero(count)), int(count.max()))


def summarise(candidates: int, parsed: Kept, refined: EdgeList, labels: NDArray[np.int64]) -> Summary:
    """The summary of a clustering.

    Parameters
    ----------
    refined : EdgeList
        Edges after refinement.
    labels : (N,) int64
        Their components, largest first; an edge lies in the cluster of either end.
    """
    count = int(np.count_nonzero(np.bincount(labels) > 1))
    number, total = np.zeros(count, np.int64), np.zeros(count, np.float64)
    _add_edges(refined.indptr, refined.scores, labels, number, total)
    scores = (total / np.maximum(number, 1)).astype(np.float32)
    entries = 2 if refined.symmetric else 1
    return Summary(candidates, parsed, kept(labels, refined.num_edges), number // entries, scores)


@nb.njit(cache=True)
def _add_edges(indptr, scores, labels, number, total):
    for i in range(labels.size):
        for e in range(indptr[i], indptr[i + 1]):
            number[labels[i]] += 1
            total[labels[i]] += scores[e]
