"""The parsed edges as an undirected graph, and what decided about each: what all of the review starts from.

A pair that is listed in both directions is one edge. It has the higher p and the higher intimacy of the two, and stays
where either direction does.
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
    """An undirected graph of N nodes and P pairs, each listed at either end.

    ``indptr`` (N + 1,) int64 and ``cols`` (2 P,) list neighbours, rising; ``scores``, ``intimacy`` float32 and ``kept``
    bool are (2 P,), equal at both ends.
    """

    indptr: NDArray[np.int64]
    cols: NDArray[np.integer]
    scores: NDArray[np.float32]
    intimacy: NDArray[np.float32]
    kept: NDArray[np.bool_]

    @classmethod
    def of(cls, parsed: ParsedEdges) -> Pairs:
        """The pairs of a run's parsed edges."""
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
        """The node at which each entry is listed, (2 P,)."""
        return np.repeat(np.arange(self.num_nodes, dtype=self.cols.dtype), np.diff(self.indptr))

    def thresholds(self, rule: Decision) -> NDArray[np.float32]:
        """The intimacy that every entry had to exceed, (2 P,); a dynamic threshold depends on the degrees.

        Edges to copies (:mod:`starfc.clustering.copies`) do not count in these. A copy has no other edge, and that one
        has intimacy 1, which no other edge has at a node of a single neighbour.
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
        """How far every entry is above what decided about it, negative where it failed: (2 P,).

        Intimacy less its threshold; with communities, which have no threshold, p.
        """
        return self.scores if rule.communities else self.intimacy - self.thresholds(rule)

    def find(self, a: int, b: int) -> int:
        """The entry of the pair {a, b} in a's list, or -1."""
        first, last = self.indptr[a], self.indptr[a + 1]
        at = first + int(np.searchsorted(self.cols[first:last], b))
        return int(at) if at < last and self.cols[at] == b else -1

    def kept_graph(self) -> tuple[NDArray[np.int64], NDArray[np.integer], NDArray[np.float32], NDArray[np.int64]]:
        """The kept pairs: ``indptr``, ``cols``, and of each entry p · NI and the number that both its ends share."""
        indptr, cols, strength = _select(self.indptr, self.cols, self.scores, self.intimacy, self.kept)
        return indptr, cols, strength, _numbers(indptr, cols)


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
def _numbers(indptr, cols):
    """A number 0..P-1 for every pair, at both entries: rows are met in the order in which the others list them."""
    out, cursor, number = np.empty(cols.size, np.int64), indptr[:-1].copy(), 0
    for i in range(indptr.size - 1):
        for e in range(indptr[i], indptr[i + 1]):
            j = cols[e]
            if i < j:
                out[e] = number
                out[cursor[j]] = number  # j's neighbours below j come first in its list, in rising order
                cursor[j] += 1
                number += 1
    return out
