"""Why two instances are in one cluster, or are not: the strongest path of edges between them."""

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
    """An edge of a path. ``threshold`` is what its intimacy had to exceed, None with communities."""

    a: int
    b: int
    score: float
    intimacy: float
    threshold: float | None
    kept: bool
    similarity: float | None

    @property
    def missed(self) -> float:
        """How far the intimacy is below the threshold, where there is one."""
        assert self.threshold is not None  # nobody asks with communities
        return self.threshold - self.intimacy


@dataclass(frozen=True)
class Explanation:
    """Why a and b are together or apart.

    ``clusters`` are their labels, -1 where the run left a cluster out as too small; ``together`` says whether they are
    of one. ``path`` leads from a to b: over kept edges where they are together, else over any
    parsed edges, of which some failed; empty where there is none. ``similarity`` is theirs, and ``ranks`` are b's place
    among a's nearest instances and a's among b's, from 1; None without features. ``columns`` is how many neighbours a
    list of the kNN graph holds.
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
        """Edges of the path that did not stay."""
        return tuple(link for link in self.path if not link.kept)

    @property
    def weakest(self) -> Link | None:
        """The edge that the path's strength is: the lowest p where all stayed, else the one that failed by most."""
        if not self.path:
            return None
        if not self.failed or self.rule.communities:
            return min(self.path, key=lambda link: link.score)
        return max(self.path, key=lambda link: link.missed)

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        content = asdict(self)
        weakest = self.path.index(self.weakest) if self.path else None
        return {**content, "weakest": weakest, "summary": self.summary()}

    def summary(self) -> str:
        """One sentence."""
        a, b, weakest = self.a, self.b, self.weakest
        if self.together:
            where = f"{a} and {b} are both in {_cluster(self.clusters[0])}"
            if weakest is not None and not self.failed:
                return f"{where}: joined by {_edges(len(self.path))}, the weakest of p {weakest.score:.3f}"
        else:
            where = f"{a} is in {_cluster(self.clusters[0])}, {b} in {_cluster(self.clusters[1])}"
        if weakest is None:
            return f"{where}: no path of parsed edges (p > {self.rule.tau1:g}) joins them"
        failed = len(self.failed)
        if self.rule.communities:
            reason = f"{_edges(failed)} between two communities"
        else:
            reason = f"{_edges(failed)} failed, by {weakest.missed:.3f} of intimacy or less"
        return f"{where}: on the strongest path of {_edges(len(self.path))}, {reason}"

    def text(self) -> str:
        """The summary, the path edge by edge, and how near the two are."""
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
            lists = "" if self.columns is None else f"; lists of the kNN graph hold {self.columns}"
            lines.append(
                f"{self.b} is number {self.ranks[0]:,} of the nearest of {self.a}, "
                f"{self.a} number {self.ranks[1]:,} of {self.b}{lists}"
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
    """The strongest path between two instances: the one whose weakest edge is strongest; of equals, of fewest edges.

    Within a cluster it leads over kept edges, which are as strong as their p. Between two clusters, or where kept edges
    do not join the two (a community need not be connected), it leads over all parsed edges, and an edge is as strong as
    the margin by which its intimacy is above its threshold (p, with communities).

    Raises
    ------
    InputError
        a or b is no row, or they are the same.
    """
    n = len(labels)
    for name, row in (("A", a), ("B", b)):
        if not 0 <= row < n:
            raise InputError(f"{name}: a row between 0 and {n - 1:,} needed; found {row}")
    if a == b:
        raise InputError(f"A, B: two rows needed; found {a} twice")
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
    """Nodes of the path from a to b over allowed entries whose weakest is strongest, of those the shortest.

    First the strength of that path, by search outwards along the strongest edge met; then breadth-first search over
    edges that are at least as strong. Empty where no path leads there.
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
    """<f_a, f_b>; None without features, or where a row has no direction."""
    if features is None:
        return None
    x, y = features.rows(np.array([a, b]))
    value = float(x @ y)
    return value if np.isfinite(value) else None


def _ranks(features: Features, a: int, b: int, similarity: float) -> tuple[int, int]:
    """The places of b among the nearest of a, and of a among those of b: 1 + the instances that are nearer."""
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
