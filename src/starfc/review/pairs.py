"""The parsed edges as an undirected graph with the margin of each edge. All other modules of the review use it.

Two directed edges between the same nodes become one edge. It has the higher p and the higher node intimacy of the two,
and it is kept if one of them was kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.clustering.parsing import Decision, ParsedEdges
from starfc.clustering.refinement import dynamic_thresholds
from starfc.graph.edges import EdgeList, undirected


@dataclass(frozen=True)
class Pairs:
    """An undirected graph of N nodes and P edges. Each edge has two entries, one in the list of each end.

    Attributes
    ----------
    indptr : (N + 1,) int64
        Start of each node's list.
    cols : (2 P,) integer
        Neighbours, sorted in each list.
    scores, intimacy : (2 P,) float32
        p and node intimacy of the edge.
    kept : (2 P,) bool
        Whether the edge was kept.
    """

    indptr: NDArray[np.int64]
    cols: NDArray[np.integer]
    scores: NDArray[np.float32]
    intimacy: NDArray[np.float32]
    kept: NDArray[np.bool_]

    @classmethod
    def of(cls, parsed: ParsedEdges) -> Pairs:
        """Build the undirected graph of a run's parsed edges."""
        edges = parsed.edges
        if edges.symmetric:
            values = (edges.indptr, edges.cols, edges.scores, parsed.intimacy, parsed.kept)
            return cls(*(np.asarray(value) for value in values))
        indptr, cols = np.asarray(edges.indptr), np.asarray(edges.cols)
        of_each = (edges.scores, parsed.intimacy, parsed.kept)
        merged = [undirected(EdgeList(indptr, cols, np.array(value, np.float32))) for value in of_each]
        return cls(
            merged[0].indptr, merged[0].cols, merged[0].scores, merged[1].scores, merged[2].scores.astype(np.bool_)
        )

    @property
    def num_nodes(self) -> int:
        return len(self.indptr) - 1

    @cached_property
    def rows(self) -> NDArray[np.integer]:
        """Return the node whose list holds each entry, (2 P,)."""
        return np.repeat(np.arange(self.num_nodes, dtype=self.cols.dtype), np.diff(self.indptr))

    def thresholds(self, rule: Decision) -> NDArray[np.float32]:
        """Return the threshold of the node intimacy of every entry, (2 P,) float32.

        A dynamic threshold depends on the degrees. Edges to copies (:mod:`starfc.clustering.copies`) do not count in
        the degrees. They are recognised by this rule: a copy has exactly one edge, with intimacy 1. No other edge of a
        node with a single neighbour has intimacy 1.
        """
        if rule.refinement == "dynamic":
            edges = EdgeList(self.indptr, self.cols, self.scores, symmetric=True)
            alone = np.diff(self.indptr) == 1
            to_copy = (self.intimacy == 1) & (alone[self.rows] | alone[self.cols])
            out = np.full(len(self.cols), rule.tau2, np.float32)
            out[~to_copy] = dynamic_thresholds(edges.select(~to_copy), rule.tau2)
            return out
        return np.full(len(self.cols), rule.tau2, np.float32)

    def margins(self, rule: Decision) -> NDArray[np.float32]:
        """Return the margin of every entry, (2 P,) float32; it is negative if the edge failed.

        The margin is the node intimacy minus its threshold. For communities, which have no threshold, it is p.
        """
        return self.scores if rule.communities else self.intimacy - self.thresholds(rule)

    def find(self, a: int, b: int) -> int:
        """Return the entry of the edge {a, b} in a's list, or -1 if there is none."""
        first, last = self.indptr[a], self.indptr[a + 1]
        at = first + int(np.searchsorted(self.cols[first:last], b))
        return int(at) if at < last and self.cols[at] == b else -1

    def kept_graph(self) -> tuple[NDArray[np.int64], NDArray[np.integer], NDArray[np.float32], NDArray[np.integer]]:
        """Return the graph of the kept edges.

        Returns
        -------
        indptr, cols
            As in this class.
        strength : (E,) float32
            p · NI of each entry.
        numbers : (E,) uint32, or int64 from 2^32 edges on
            Number of the edge, the same in both of its entries.
        """
        indptr, cols, strength = _select(self.indptr, self.cols, self.scores, self.intimacy, self.kept)
        dtype = np.uint32 if len(cols) // 2 < 1 << 32 else np.int64
        return indptr, cols, strength, _numbers(indptr, cols, np.empty(len(cols), dtype))


@nb.njit(cache=True, nogil=True)
def _select(indptr, cols, scores, intimacy, kept):
    count = kept.sum()
    out_indptr, out_cols = np.zeros(indptr.size, np.int64), np.empty(count, cols.dtype)
    strength, at = np.empty(count, np.float32), 0
    for i in range(indptr.size - 1):
        for e in range(indptr[i], indptr[i + 1]):
            if kept[e]:
                out_cols[at], strength[at] = cols[e], scores[e] * intimacy[e]
                at += 1
        out_indptr[i + 1] = at
    return out_indptr, out_cols, strength


@nb.njit(cache=True, nogil=True)
def _numbers(indptr, cols, out):
    """Give every edge a number 0..P-1, and write it to both of its entries in ``out``, which is returned."""
    cursor, number = indptr[:-1].copy(), 0
    for i in range(indptr.size - 1):
        for e in range(indptr[i], indptr[i + 1]):
            j = cols[e]
            if i < j:
                out[e] = number
                out[cursor[j]] = (
                    number  # lists are sorted, and i rises, so the next entry of j's list with a neighbour below j is i
                )
                cursor[j] += 1
                number += 1
    return out
