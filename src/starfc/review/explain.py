"""Explain why two instances share a cluster, or do not, by the strongest path of edges between them."""

from __future__ import annotations

import heapq
from dataclasses import asdict, dataclass
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.clustering.parsing import Decision
from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.review.measures import numbered
from starfc.review.pairs import Pairs


@dataclass(frozen=True)
class Link:
    """An edge of a path.

    Attributes
    ----------
    a, b : int
        Rows of its ends.
    score : float
        Probability p.
    intimacy : float
        Node intimacy.
    threshold : float or None
        The threshold of its node intimacy. None for communities.
    kept : bool
        Whether the edge was kept.
    similarity : float or None
        Cosine similarity of a and b. None without features.
    """

    a: int
    b: int
    score: float
    intimacy: float
    threshold: float | None
    kept: bool
    similarity: float | None

    @property
    def missed(self) -> float:
        """Return how far the node intimacy is below the threshold, which must exist."""
        assert self.threshold is not None  # not called for communities
        return self.threshold - self.intimacy


@dataclass(frozen=True)
class Explanation:
    """The reason why instances a and b share a cluster, or do not.

    Attributes
    ----------
    a, b : int
        Rows of the instances.
    clusters : tuple of int
        Their labels. -1: the run left the cluster out because it is too small.
    together : bool
        Whether they are in one cluster.
    path : tuple of Link
        Path from a to b. It uses kept edges if they are in one cluster, and otherwise all parsed edges, some of which
        failed. Empty if there is no path.
    rule : Decision
        The rule that decided which edges were kept.
    similarity : float or None
        Cosine similarity of a and b. None without features.
    ranks : tuple of int or None
        Rank of b among the nearest instances of a, and of a among those of b, from 1. None without features.
    columns : int or None
        Number of neighbours in a list of the kNN graph.
    """

    a: int
    b: int
    clusters: tuple[int, int]
    together: bool
    path: tuple[Link, ...]
    rule: Decision
    similarity: float | None = None
    ranks: tuple[int, int] | None = None
    columns: int | None = None

    @property
    def failed(self) -> tuple[Link, ...]:
        """Return the edges of the path that were not kept."""
        return tuple(link for link in self.path if not link.kept)

    @property
    def weakest(self) -> Link | None:
        """Return the edge that limits the path.

        This is the edge that failed by most. If none failed, or for communities, it is the edge with the lowest p.
        """
        if not self.path:
            return None
        if not self.failed or self.rule.communities:
            return min(self.path, key=lambda link: link.score)
        return max(self.path, key=lambda link: link.missed)

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation as plain values, for JSON."""
        content = asdict(self)
        weakest = self.path.index(self.weakest) if self.path else None
        return {**content, "weakest": weakest, "summary": self.summary()}

    def summary(self) -> str:
        """Return the explanation in one sentence."""
        a, b, weakest = self.a, self.b, self.weakest
        if self.together:
            where = f"{a} and {b} are both in {_cluster(self.clusters[0])}"
            if weakest is not None and not self.failed:
                return f"{where}: joined by {_edges(len(self.path))}, the weakest with p {weakest.score:.3f}"
        else:
            where = f"{a} is in {_cluster(self.clusters[0])}, {b} in {_cluster(self.clusters[1])}"
        if weakest is None:
            return f"{where}: no path of parsed edges (p > {self.rule.tau1:g}) joins them"
        failed = len(self.failed)
        if self.rule.communities:
            reason = f"{_edges(failed)} between two communities"
        else:
            reason = f"{_edges(failed)} failed (intimacy up to {weakest.missed:.3f} too low)"
        return f"{where}: on the strongest path of {_edges(len(self.path))}, {reason}"

    def text(self) -> str:
        """Return the summary, a table of the path's edges, and the similarity and ranks of the two."""
        lines = [self.summary()]
        if self.path:
            lines += ["", f"{'from':>10}{'to':>10}{'p':>8}{'intimacy':>10}{'similarity':>12}"]
        for link in self.path:
            similarity = "" if link.similarity is None else f"{link.similarity:.3f}"
            lines.append(
                f"{link.a:>10}{link.b:>10}{link.score:>8.3f}{link.intimacy:>10.3f}{similarity:>12}{self._note(link)}"
            )
        if self.similarity is not None:
            lines += ["", f"similarity of {self.a} and {self.b}: {self.similarity:.3f}"]
        if self.ranks is not None:
            lists = "" if self.columns is None else f"; a list of the kNN graph holds {self.columns} neighbours"
            lines.append(
                f"{self.b} is neighbour number {self.ranks[0]:,} of {self.a}, "
                f"{self.a} is neighbour number {self.ranks[1]:,} of {self.b}{lists}"
            )
        return "\n".join(lines)

    def _note(self, link: Link) -> str:
        if not link.kept:
            if link.threshold is None:
                return "  between two communities"
            return f"  failed: {link.threshold - link.intimacy:.3f} below {link.threshold:.3f}"
        return "  weakest" if link is self.weakest else ""


def explain_pair(
    pairs: Pairs,
    labels: NDArray[np.int64],
    rule: Decision,
    a: int,
    b: int,
    features: Features | None = None,
    columns: int | None = None,
) -> Explanation:
    """Find the strongest path between two instances.

    The strongest path is the one whose weakest edge is strongest. Among equally strong paths it has the fewest edges.

    * Within a cluster the path uses kept edges, and the strength of an edge is p.
    * Between two clusters, or if kept edges do not connect the two (a community may be disconnected), the path uses all
      parsed edges. The strength of an edge is its node intimacy minus the threshold, or p for communities.

    Parameters
    ----------
    pairs : Pairs
        The edges.
    labels : (N,) int64
        Cluster of every row.
    rule : Decision
        The rule that decided which edges were kept.
    a, b : int
        Rows of the instances.
    features : Features, optional
        Features of all rows, for similarities and ranks.
    columns : int, optional
        Number of neighbours in a list of the kNN graph, for the text.

    Raises
    ------
    InputError
        a or b is no row, or they are the same row.
    """
    n = len(labels)
    for name, row in (("A", a), ("B", b)):
        if not 0 <= row < n:
            raise InputError(f"{name}: must be a row between 0 and {n - 1:,}; found {row}")
    if a == b:
        raise InputError(f"A, B: must be two different rows; found {a} twice")
    whole, nodes = numbered(pairs, labels), np.empty(0, np.int64)
    together = bool(whole[a] == whole[b])
    if together:
        nodes = strongest_path(pairs.indptr, pairs.cols, pairs.scores, pairs.kept, a, b)
    if not nodes.size:
        everything = np.ones(len(pairs.cols), np.bool_)
        nodes = strongest_path(pairs.indptr, pairs.cols, pairs.margins(rule), everything, a, b)
    thresholds = None if rule.communities else pairs.thresholds(rule)
    path = []
    for i, j in zip(nodes[:-1].tolist(), nodes[1:].tolist(), strict=True):
        e = pairs.find(i, j)
        path.append(
            Link(
                i,
                j,
                float(pairs.scores[e]),
                float(pairs.intimacy[e]),
                None if thresholds is None else float(thresholds[e]),
                bool(pairs.kept[e]),
                _similarity(features, i, j),
            )
        )
    similarity = _similarity(features, a, b)
    ranks = None if features is None or similarity is None else _ranks(features, a, b, similarity)
    return Explanation(a, b, (int(labels[a]), int(labels[b])), together, tuple(path), rule, similarity, ranks, columns)


@nb.njit(cache=True)
def strongest_path(indptr, cols, strength, allowed, a, b):
    """Return the nodes of the strongest path from a to b over allowed entries, or an empty array if there is no path.

    The first step computes the strength of this path: a search from a always follows the strongest edge found so far.
    The second step is a breadth-first search over the edges that are at least as strong; it finds the shortest path.
    """
    n = indptr.size - 1
    width = np.full(n, -np.inf, np.float32)
    done = np.zeros(n, np.bool_)
    width[a] = np.inf
    heap = [(np.float32(-np.inf), np.int64(a))]
    while heap:
        negative, i = heapq.heappop(heap)
        if done[i]:
            continue
        done[i] = True
        if i == b:
            break
        for e in range(indptr[i], indptr[i + 1]):
            j = np.int64(cols[e])
            if allowed[e] and not done[j]:
                reach = min(-negative, strength[e])
                if reach > width[j]:
                    width[j] = reach
                    heapq.heappush(heap, (-reach, j))
    if not done[b]:
        return np.empty(0, np.int64)
    came, queue = np.full(n, -1, np.int64), np.empty(n, np.int64)
    queue[0], came[a] = a, a
    head, tail = 0, 1
    while came[b] < 0:
        i = queue[head]
        head += 1
        for e in range(indptr[i], indptr[i + 1]):
            j = np.int64(cols[e])
            if allowed[e] and strength[e] >= width[b] and came[j] < 0:
                came[j] = i
                queue[tail] = j
                tail += 1
    length = 1
    i = b
    while i != a:
        i = came[i]
        length += 1
    path = np.empty(length, np.int64)
    i = b
    for at in range(length - 1, -1, -1):
        path[at] = i
        i = came[i]
    return path


def _similarity(features: Features | None, a: int, b: int) -> float | None:
    """Return <f_a, f_b>. None without features, or if a row has no direction."""
    if features is None:
        return None
    x, y = features.rows(np.array([a, b]))
    value = float(x @ y)
    return value if np.isfinite(value) else None


def _ranks(features: Features, a: int, b: int, similarity: float) -> tuple[int, int]:
    """Return the rank of b among the neighbours of a, and of a among those of b: 1 + the number of nearer instances."""
    both = features.rows(np.array([a, b]))
    nearer = np.zeros(2, np.int64)
    for block in features.blocks():
        products = features.rows(block) @ both.T
        products[[i - block.start for i in (a, b) if block.start <= i < block.stop]] = -np.inf
        nearer += (products > similarity).sum(axis=0)
    return int(nearer[0]) + 1, int(nearer[1]) + 1


def _cluster(label: int) -> str:
    return f"cluster {label}" if label >= 0 else "a cluster that was left out (too small)"


def _edges(count: int) -> str:
    return f"{count} edge" + ("s" if count != 1 else "")
