"""Make clusters again around marks, and only there.

**Certain pairs.** A must-link between two clusters joins them: all rows that are with one row go with all rows that are
with the other. A cannot-link inside a cluster divides it where that costs least: by the minimum cut, between the
must-link closures of its two rows, of the edges inside the cluster. An edge of probability p costs its log-odds,
log(p / (1 - p)), at least :data:`LEAST`. Rows that no edge connects with either closure stay with the larger part. If a
join brings a cannot-link into one cluster, the joined cluster is divided in the same way, so of both clusters only the
side of the marked row is carried along.

**Answers.** A person errs in some answers (:data:`ERROR`). All answers about the same two sides are one *verdict*, with
the log-odds

    log(p / (1 - p)) + (yes - no) log((1 - ERROR) / ERROR),

where p is the probability that the question named. Its own log-odds count at most :data:`PRIOR`, less than an answer:
so one answer decides, and is asked again where many pairs depend on it. A positive verdict joins the clusters in which
most rows of both sides lie, a negative one divides their cluster between the sides. A verdict does not break a stronger
one, or a certain pair: it is then listed as doubtful, and asked again.

Ids are stable: the larger part of a divided cluster keeps its id, and so does the larger of two joined clusters (the
lower id if they are equal). The other part of a divided cluster gets a new id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components, maximum_flow

from starfc.answers.marks import Answer, Kind, Marks, closures
from starfc.clustering.parsing import ParsedEdges
from starfc.graph.edges import EdgeList
from starfc.incremental.edges import entries_of

ERROR = 0.05  # share of wrong answers
PRIOR = 2.0  # most log-odds of a question before the answers
LEAST, MOST = 0.01, 7.0  # limits of the log-odds of an edge
_UNIT = 1000  # capacities of the flow are integers: so many per unit of log-odds
WEIGHT = float(np.log((1 - ERROR) / ERROR))  # log-odds of one answer


@dataclass(frozen=True)
class Verdict:
    """The answers about two sides.

    Attributes
    ----------
    a, b : tuple of int
        Rows of the sides.
    odds : float
        Log-odds that both sides are one identity, after the answers.
    answers : int
        Number of answers.
    kind : {'join', 'split'}
        Kind of the question.
    """

    a: tuple[int, ...]
    b: tuple[int, ...]
    odds: float
    answers: int = 1
    kind: Kind = "join"

    @property
    def same(self) -> bool:
        return self.odds > 0


def verdicts(answers: Iterable[Answer]) -> list[Verdict]:
    """Combine the answers about the same sides, in the order in which the sides were asked first."""
    found: dict[frozenset[frozenset[int]], Verdict] = {}
    for answer in answers:
        key = answer.sides
        if key not in found:
            p = min(max(answer.p, 1e-6), 1 - 1e-6)
            odds = float(np.clip(np.log(p / (1 - p)), -PRIOR, PRIOR))
            found[key] = Verdict(answer.a, answer.b, odds, 0, answer.kind)
        odds = found[key].odds + (WEIGHT if answer.same else -WEIGHT)
        found[key] = replace(found[key], odds=odds, answers=found[key].answers + 1)
    return list(found.values())


@dataclass
class Changes:
    """What :func:`enforce` changed.

    Attributes
    ----------
    rows : (m,) int64
        Rows whose cluster changed, in increasing order.
    before : (m,) int64
        Their clusters before.
    joined : list of (int, int)
        Joins: the id that remains, and the id that is gone.
    divided : list of (int, int)
        Divisions: the cluster, and the id of the part that left it.
    doubtful : list of Verdict
        Verdicts that do not hold, because stronger ones or certain pairs contradict them.
    """

    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    before: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    joined: list[tuple[int, int]] = field(default_factory=list)
    divided: list[tuple[int, int]] = field(default_factory=list)
    doubtful: list[Verdict] = field(default_factory=list)


class Clusters:
    """Clusters that marks change.

    Parameters
    ----------
    labels : (N,) int64
        Cluster of every row; -1 for removed rows. Changed in place.
    next_label : int
        The lowest id for a new cluster.
    edges : EdgeList
        The run's edges with p, in one or both directions.
    earlier : (m,) int64, optional
        Clusters of the first m rows at a time when the marks held. A part that leaves a cluster gets the id back that
        most of its rows had then, if no cluster has it now.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        next_label: int,
        edges: EdgeList,
        earlier: NDArray[np.int64] | None = None,
    ) -> None:
        self.labels, self.next_label, self.edges, self.earlier = labels, next_label, edges, earlier

    def members(self, label: int) -> NDArray[np.int64]:
        """Return the rows of a cluster, in increasing order."""
        return np.flatnonzero(self.labels == label)

    def of_side(self, rows: Sequence[int]) -> int:
        """Return the cluster of a side (:func:`cluster_of`)."""
        return cluster_of(self.labels, rows)

    def join(self, a: int, b: int, changes: Changes) -> None:
        """Join two clusters. The larger one keeps its id, or the one of the lower id if they are equal."""
        ours, others = self.members(a), self.members(b)
        if (len(ours), -a) < (len(others), -b):
            a, b, others = b, a, ours
        self.labels[others] = a
        changes.joined.append((a, b))

    def divide(self, rows: NDArray[np.int64], side: NDArray[np.bool_], former: int, changes: Changes) -> None:
        """Divide the rows of one cluster; ``side`` (n,) is one of the two parts. The larger part keeps the id.

        If the parts were two clusters at the earlier time, they get their ids back where these are free.
        """
        small, large = rows[side], rows[~side]
        if len(small) > len(large):
            small, large = large, small
        if self._former(small) == former and self._free(self._former(large)):
            small, large = large, small
        label = self._former(small)
        if not self._free(label):
            label = self.next_label
            self.next_label += 1
        self.labels[small] = label
        changes.divided.append((former, label))

    def _former(self, rows: NDArray[np.int64]) -> int:
        """Return the cluster in which most of some rows were at the earlier time; -1 if that is not known."""
        if self.earlier is None:
            return -1
        return cluster_of(self.earlier, rows[rows < len(self.earlier)])

    def _free(self, label: int) -> bool:
        return label >= 0 and not (self.labels == label).any()

    def cut(
        self,
        rows: NDArray[np.int64],
        ones: NDArray[np.int64],
        others: NDArray[np.int64],
        groups: NDArray[np.int64],
        links: Sequence[tuple[int, int, float]] = (),
    ) -> NDArray[np.bool_] | None:
        """Return the part (n,) bool of a cluster on the side of ``ones``, by the minimum cut.

        Parameters
        ----------
        rows : (n,) int64
            The rows of the cluster, in increasing order.
        ones, others : (s,), (t,) int64
            Rows of the two sides.
        groups : (N,) int64
            Must-link closure of every row; no closure is divided.
        links : (row, row, log-odds), optional
            Further edges inside the cluster.

        Returns
        -------
        (n,) bool, or None if must-links connect both sides.
        """
        local = _local(self.edges, rows)
        more = [(int(a), int(b), w) for a, b, w in links]
        if more:
            at = np.searchsorted(rows, [[a, b] for a, b, _ in more])
            weight = [w for _, _, w in more]
            local = local + sparse.coo_matrix((weight, (at[:, 0], at[:, 1])), local.shape).tocsr()
        nodes = np.unique(groups[rows], return_inverse=True)[1].astype(np.int64)
        one, other = nodes[np.searchsorted(rows, ones)], nodes[np.searchsorted(rows, others)]
        if np.intersect1d(one, other).size:
            return None
        side = minimum_cut(local, nodes, one, other)
        return side[nodes]


def cluster_of(labels: NDArray[np.int64], rows: Sequence[int] | NDArray[np.int64]) -> int:
    """Return the cluster in which most of some rows lie (the lowest id of equals); -1 if all were removed."""
    found = labels[np.asarray(rows, np.int64)]
    found = found[found >= 0]
    if not found.size:
        return -1
    if (found == found[0]).all():
        return int(found[0])
    ids, count = np.unique(found, return_counts=True)
    return int(ids[np.argmax(count)])


def minimum_cut(
    weights: sparse.csr_matrix, nodes: NDArray[np.int64], ones: NDArray[np.int64], others: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return the nodes (c,) bool on the side of ``ones`` of the cheapest cut that separates them from ``others``.

    Parameters
    ----------
    weights : (n, n) sparse
        Cost of each edge; the costs of both directions of a pair are added.
    nodes : (n,) int64 in [0, c)
        The node to which each row of ``weights`` belongs.
    ones, others : (s,), (t,) int64
        Nodes of the two sides; not empty, and without common nodes.

    Notes
    -----
    Of several cheapest cuts, the one with the fewest nodes beside ``ones`` or ``others``, whichever are fewer, is
    taken. Nodes that no edge connects with either side stay with the side of more nodes.
    """
    count = int(nodes.max()) + 1
    name = np.arange(count)
    few, many = (ones, others) if len(ones) <= len(others) else (others, ones)
    name[few], name[many] = few[0], many[0]
    entries = weights.tocoo()
    row, col = name[nodes[entries.row]], name[nodes[entries.col]]
    apart = row != col
    capacity = sparse.coo_matrix((entries.data[apart], (row[apart], col[apart])), (count, count)).tocsr()
    capacity = capacity + capacity.T
    capacity.data = np.minimum(np.rint(_UNIT * capacity.data), 2**30)
    capacity = capacity.astype(np.int32)
    flow = maximum_flow(capacity, few[0], many[0]).flow
    left = capacity - flow
    left.data = np.maximum(left.data, 0)
    left.eliminate_zeros()
    reached = np.zeros(count, np.bool_)
    reached[breadth_first_order(left, few[0], return_predecessors=False)] = True
    piece = connected_components(capacity, directed=False)[1]
    lost = (piece != piece[few[0]]) & (piece != piece[many[0]]) & (name == np.arange(count))
    reached[lost] = 2 * np.count_nonzero(reached) > np.count_nonzero(~lost)
    side = reached[name]
    return side if few is ones else ~side


def log_odds(p: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the log-odds of edges, limited to :data:`LEAST` .. :data:`MOST`."""
    p = np.clip(np.asarray(p, np.float64), 1e-6, 1 - 1e-6)
    return np.clip(np.log(p / (1 - p)), LEAST, MOST)


def _local(edges: EdgeList, rows: NDArray[np.int64]) -> sparse.csr_matrix:
    """Return the log-odds of the edges among some rows, (n, n); each pair once, with the higher p of its directions."""
    entries = entries_of(edges, rows)
    ours = np.repeat(np.arange(len(rows)), np.diff(edges.indptr)[rows])
    cols = edges.cols[entries]
    theirs = np.minimum(np.searchsorted(rows, cols), len(rows) - 1)
    inside = rows[theirs] == cols
    ours, theirs, p = ours[inside], theirs[inside], edges.scores[entries[inside]]
    low, high = np.minimum(ours, theirs), np.maximum(ours, theirs)
    keys, of = np.unique(low * len(rows) + high, return_inverse=True)
    best = np.zeros(len(keys))
    np.maximum.at(best, of, p)
    return sparse.csr_matrix((log_odds(best), (keys // len(rows), keys % len(rows))), (len(rows), len(rows)))


def enforce(clusters: Clusters, marks: Marks) -> Changes:
    """Make the clusters again so that the marks hold. This changes ``clusters``.

    Only clusters in which a mark does not hold change. The marks must be without contradictions
    (:func:`starfc.answers.marks.require_consistent`).
    """
    before, changes = clusters.labels.copy(), Changes()
    n = len(before)
    groups = closures(marks, n) if len(marks.must) else np.arange(n)
    there = verdicts(marks.answers)
    for verdict in there:
        _follow(clusters, verdict, there, groups, marks, changes)
    _certain(clusters, marks, groups, there, changes)
    changes.doubtful = [verdict for verdict in there if not holds(clusters, verdict)]
    changes.rows = np.flatnonzero(before != clusters.labels)
    changes.before = before[changes.rows]
    return changes


def apart(labels: NDArray[np.int64], marks: Marks) -> NDArray[np.int64]:
    """Return the pairs of clusters (c, 2) int64 that cannot-links and negative verdicts say are two identities."""
    sides = [(cluster_of(labels, one.a), cluster_of(labels, one.b)) for one in verdicts(marks.answers) if not one.same]
    pairs = np.concatenate([labels[marks.cannot], np.array(sides, np.int64).reshape(-1, 2)])
    return np.unique(np.sort(pairs[(pairs >= 0).all(axis=1) & (pairs[:, 0] != pairs[:, 1])], axis=1), axis=0)


def holds(clusters: Clusters, verdict: Verdict) -> bool:
    """Return whether the clusters are as a verdict says. A verdict about removed rows holds."""
    a, b = clusters.of_side(verdict.a), clusters.of_side(verdict.b)
    return a < 0 or b < 0 or (a == b) == verdict.same


def _follow(
    clusters: Clusters,
    verdict: Verdict,
    every: Sequence[Verdict],
    groups: NDArray[np.int64],
    marks: Marks,
    changes: Changes,
) -> None:
    """Join or divide as one verdict says, unless a stronger verdict or a certain pair contradicts it."""
    if holds(clusters, verdict):
        return
    a, b = clusters.of_side(verdict.a), clusters.of_side(verdict.b)
    stronger = [other for other in every if other is not verdict and abs(other.odds) >= abs(verdict.odds)]
    if verdict.same:
        pair = {a, b}
        against = any(
            not other.same and {clusters.of_side(other.a), clusters.of_side(other.b)} == pair for other in stronger
        )
        ends = clusters.labels[marks.cannot]
        if against or (np.sort(ends, axis=1) == sorted(pair)).all(axis=1).any():
            return
        clusters.join(a, b, changes)
        return
    rows = clusters.members(a)
    ones, others = (_there(clusters, side, a) for side in (verdict.a, verdict.b))
    within = [other for other in every if other.same and other is not verdict and _inside(clusters, other, a)]
    links = [(_there(clusters, o.a, a)[0], _there(clusters, o.b, a)[0], o.odds) for o in within]
    side = clusters.cut(rows, ones, others, groups, links)
    if side is None:
        return
    held = dict(zip(rows.tolist(), side.tolist(), strict=True))
    for other in within:
        parts = [np.mean([held[int(row)] for row in _there(clusters, x, a)]) > 0.5 for x in (other.a, other.b)]
        if parts[0] != parts[1] and abs(other.odds) >= abs(verdict.odds):
            return
    clusters.divide(rows, side, a, changes)


def _inside(clusters: Clusters, verdict: Verdict, label: int) -> bool:
    return clusters.of_side(verdict.a) == label and clusters.of_side(verdict.b) == label


def _there(clusters: Clusters, rows: Sequence[int], label: int) -> NDArray[np.int64]:
    """Return the rows of a side that lie in a cluster."""
    found = np.asarray(rows, np.int64)
    return found[clusters.labels[found] == label]


def _certain(
    clusters: Clusters, marks: Marks, groups: NDArray[np.int64], every: Sequence[Verdict], changes: Changes
) -> None:
    """Join must-link closures, then divide by cannot-links; must-links hold afterwards, as no closure is divided."""
    first: dict[int, int] = {}  # row of each closure; a chain of must-links may lead through a removed row
    for row in marks.must.ravel().tolist():
        if clusters.labels[row] < 0:
            continue
        ours, others = int(clusters.labels[first.setdefault(int(groups[row]), row)]), int(clusters.labels[row])
        if ours != others:
            clusters.join(ours, others, changes)
    for a, b in marks.cannot.tolist():
        label = int(clusters.labels[a])
        if label < 0 or label != clusters.labels[b]:
            continue
        rows = clusters.members(label)
        within = [other for other in every if other.same and _inside(clusters, other, label)]
        links = [(_there(clusters, o.a, label)[0], _there(clusters, o.b, label)[0], o.odds) for o in within]
        side = clusters.cut(rows, np.array([a]), np.array([b]), groups, links)
        assert side is not None  # the marks have no contradictions
        clusters.divide(rows, side, label, changes)


def kept_edges(
    parsed: ParsedEdges, rows: NDArray[np.int64], before: NDArray[np.int64], labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the sorted positions of the edges whose ``kept`` changes with the clusters.

    An edge is kept if both ends are in one cluster now, and it was kept before or its ends were in two clusters.

    Parameters
    ----------
    parsed : ParsedEdges
        The edges.
    rows : (m,) int64
        All rows whose cluster changed.
    before, labels : (N,) int64
        Clusters before and now.
    """
    edges = parsed.edges
    changed = np.zeros(edges.num_nodes, np.bool_)
    changed[rows] = True
    if edges.symmetric:
        around = np.union1d(rows, edges.cols[entries_of(edges, rows)])
        entries = entries_of(edges, around)
        entries = entries[np.repeat(changed[around], np.diff(edges.indptr)[around]) | changed[edges.cols[entries]]]
    else:
        entries = np.union1d(entries_of(edges, rows), np.flatnonzero(changed[edges.cols]))
    ends = np.searchsorted(edges.indptr, entries, side="right") - 1, edges.cols[entries]
    inside, was_inside = labels[ends[0]] == labels[ends[1]], before[ends[0]] == before[ends[1]]
    was_kept = np.asarray(parsed.kept[entries])
    return entries[(inside & (was_kept | ~was_inside)) != was_kept]
