"""Place new instances in clusters, and find the clusters that the edges would now merge or split.

Cluster ids are stable. New instances are placed by a spanning forest over the kept edges, in decreasing order of score:
an instance joins the cluster to which its best edge leads. Edges between two existing clusters are not used for this.
Possible merges and splits are listed; they are done only on request. After that, clusters are the components of the
kept edges again. If clusters are communities, the kept edges are those within a community of the step's search
(:mod:`starfc.incremental.communities`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numba as nb
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from starfc.clustering.parsing import ParsedEdges
from starfc.graph.edges import EdgeList
from starfc.graph.neighbours import id_dtype
from starfc.incremental.edges import Changed, entries_of
from starfc.runtime import threads
from starfc.runtime.products import slices
from starfc.runtime.union_find_kernels import find_root, flatten, unite

_EVIDENCE = 5  # maximum number of edges listed per merge, those with the highest scores
_LISTED = 20  # maximum number of instances listed per piece of a split cluster
_ROWS = 1 << 13


@dataclass(frozen=True)
class ClusterMerge:
    """Two clusters that kept edges connect.

    Attributes
    ----------
    clusters : (int, int)
        The ids of the clusters.
    score, intimacy : float
        p and node intimacy of the best edge.
    edges : int
        Number of edges between the clusters.
    evidence : list of (row, row, p, intimacy)
        The best edges.
    via : list of int
        The new instances at the edges.
    into : int, optional
        The id of the merged cluster, if the merge was done.
    """

    clusters: tuple[int, int]
    score: float
    intimacy: float
    edges: int
    evidence: list[tuple[int, int, float, float]]
    via: list[int]
    into: int | None = None


@dataclass(frozen=True)
class ClusterSplit:
    """A cluster that the kept edges no longer connect.

    Attributes
    ----------
    cluster : int
        The id of the cluster.
    sizes : list of int
        The sizes of its pieces, largest first.
    rows : list of list of int
        For each piece except the first, its first instances, at most 20.
    ids : list of int, optional
        The ids of the pieces, if the split was done.
    """

    cluster: int
    sizes: list[int]
    rows: list[list[int]]
    ids: list[int] | None = None


@dataclass
class Grouping:
    """The clusters after a step.

    Attributes
    ----------
    labels : (N,) int64
        Cluster ids; -1 for removed rows.
    next_label : int
        The lowest id that no cluster has ever had.
    joined : int
        Number of new instances that joined an earlier cluster.
    created : (c,) int64
        The ids of new clusters.
    merges, splits : list
        The possible merges and splits.
    suspects : (s,) int64
        Clusters that are no longer connected, and were not split.
    across : (e,) int64
        Positions of the kept edges between clusters that were not merged.
    """

    labels: NDArray[np.int64]
    next_label: int
    joined: int = 0
    created: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    merges: list[ClusterMerge] = field(default_factory=list)
    splits: list[ClusterSplit] = field(default_factory=list)
    suspects: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    across: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


def regroup(
    labels: NDArray[np.int64],
    next_label: int,
    edges: Changed,
    rows: NDArray[np.integer],
    suspects: NDArray[np.int64],
    apply: bool,
    sizes: NDArray[np.int64] | None = None,
    apart: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None,
) -> Grouping:
    """Place new instances in clusters, and find the possible merges and splits.

    Parameters
    ----------
    labels : (N,) int64
        Clusters of the earlier rows; -1 for removed and for new rows.
    next_label : int
        The lowest id for a new cluster.
    edges : Changed
        The edges after the step.
    rows : (m,) integers
        New instances, in increasing order.
    suspects : (c,) int64
        Clusters that may no longer be connected.
    apply : bool
        Whether to do the merges and splits. The largest piece of a split cluster keeps its id, and so does the larger
        of two merged clusters (the lower id if they are equal).
    sizes : (N,) int64, optional
        The number of rows that each row represents (its copies); used for the sizes of clusters and pieces. Default: 1
        each.
    apart : callable, optional
        Function from the cluster of every row (N,) to pairs of clusters (c, 2) that are two identities. No merge that
        would bring both into one cluster is done or listed.
    """
    sizes = np.ones(len(labels), np.int64) if sizes is None else sizes
    parsed = edges.parsed
    lost = edges.entries[edges.was_kept & ~parsed.kept[edges.entries]]
    of_lost = labels[np.searchsorted(parsed.edges.indptr, lost, side="right") - 1]
    suspects = np.union1d(suspects, of_lost)
    result = Grouping(labels.copy(), next_label)
    first = int(rows[0]) if rows.size else len(labels)
    _place(result, parsed, rows)
    _find_splits(result, parsed, suspects[suspects >= 0], apply, sizes)
    kept_apart = np.empty((0, 2), np.int64) if apart is None else apart(result.labels)
    _find_merges(result, parsed, first, apply, sizes, kept_apart)
    return result


def _place(result: Grouping, parsed: ParsedEdges, rows: NDArray[np.integer]) -> None:
    """Give each new row the cluster of its tree in the spanning forest: an earlier cluster, or a new one."""
    if not rows.size:
        return
    labels, first, edges = result.labels, int(rows[0]), parsed.edges
    if edges.symmetric:  # each edge at a new row is also an outgoing edge of a new row
        entries = entries_of(edges, rows)
        sources = np.repeat(rows, np.diff(edges.indptr)[rows])
    else:
        after = np.zeros(len(labels), np.bool_)
        after[rows] = True
        leaving = np.zeros(len(edges), np.bool_)
        leaving[entries_of(edges, rows)] = True
        entries = np.flatnonzero(leaving | after[edges.cols])
        sources = np.searchsorted(edges.indptr, entries, side="right") - 1
    kept = parsed.kept[entries]
    entries, sources = entries[kept], sources[kept].astype(np.int64)
    targets = edges.cols[entries].astype(np.int64)
    new, other = np.maximum(sources, targets), np.minimum(sources, targets)
    order = np.lexsort([other, new, -edges.scores[entries]])
    owner, root = _forest(new[order] - first, other[order] - first, labels[:first], len(labels) - first)
    root = root[rows - first]
    result.joined = int(np.count_nonzero(owner[root] >= 0))
    fresh = np.unique(root[owner[root] < 0])
    owner[fresh] = result.created = result.next_label + np.arange(len(fresh))
    labels[rows] = owner[root]
    result.next_label += len(fresh)


@nb.njit(cache=True)
def _forest(new, other, labels, count):
    """Build a spanning forest over new rows and clusters, with the edges in the given order.

    Parameters
    ----------
    new, other : (e,) integers
        The ends of each edge, counted from the first new row; ``other`` is negative for an earlier row.
    labels : (n,) int64
        Clusters of the earlier rows.
    count : int
        Number of new rows.

    Returns
    -------
    (count,) int64, (count,) int64
        The cluster of each root (-1 for a new one), and the root of each new row.
    """
    first = labels.size
    parent, owner = np.arange(count), np.full(count, np.int64(-1))
    for e in range(new.size):
        a = find_root(parent, new[e])
        if other[e] < 0:
            cluster = labels[other[e] + first]
            if owner[a] < 0:
                owner[a] = cluster
            continue
        b = find_root(parent, other[e])
        if a == b or (owner[a] >= 0 and owner[b] >= 0 and owner[a] != owner[b]):
            continue
        low, high = min(a, b), max(a, b)
        parent[high] = low
        owner[low] = max(owner[low], owner[high])
    flatten(parent)
    return owner, parent


def _find_splits(
    result: Grouping, parsed: ParsedEdges, suspects: NDArray[np.int64], apply: bool, sizes: NDArray[np.int64]
) -> None:
    """Find the suspects that kept edges no longer connect; list them in ``result``, and split them if ``apply``."""
    labels, edges = result.labels, parsed.edges
    wanted = np.zeros(result.next_label + 1, np.bool_)  # the last entry is for label -1
    wanted[suspects] = True
    members = np.flatnonzero(wanted[labels])
    parent = np.arange(len(labels), dtype=id_dtype(len(labels)))
    root = _pieces(edges.indptr, edges.cols, parsed.kept, labels, members, parent)
    piece, count = np.unique(root, return_counts=True)
    size = np.bincount(root, sizes[members], minlength=len(labels)).astype(np.int64)[piece]
    cluster = labels[piece]
    order = np.lexsort([piece, -size, cluster])
    piece, count, size, cluster = piece[order], count[order], size[order], cluster[order]
    several = np.flatnonzero(np.diff(cluster, prepend=-1) == 0)  # pieces that are not the first of their cluster
    by_root = np.argsort(root, kind="stable")
    starts = np.searchsorted(root[by_root], piece)
    found: dict[int, list[int]] = {}
    for at in several.tolist():
        found.setdefault(int(cluster[at]), []).append(at)
    for name, others in found.items():
        rows = [members[by_root[starts[at] : starts[at] + count[at]]] for at in others]
        ids = None
        if apply:
            ids = [name, *range(result.next_label, result.next_label + len(rows))]
            result.next_label += len(rows)
            for new, of_piece in zip(ids[1:], rows, strict=True):
                labels[of_piece] = new
        of_pieces = [int(size[others[0] - 1]), *(int(size[at]) for at in others)]
        result.splits.append(ClusterSplit(name, of_pieces, [r[:_LISTED].tolist() for r in rows], ids))
    result.suspects = np.array([] if apply else list(found), np.int64)


@nb.njit(cache=True)
def _pieces(indptr, cols, kept, labels, members, parent):
    """Return the smallest row to which kept edges inside the cluster connect each member, (m,).

    ``parent`` (N,) must be 0..N-1 and is overwritten.
    """
    for m in members:
        for e in range(indptr[m], indptr[m + 1]):
            if kept[e] and labels[m] == labels[cols[e]]:
                unite(parent, m, cols[e])
    out = np.empty(members.size, np.int64)
    for a, m in enumerate(members):
        out[a] = find_root(parent, m)
    return out


def between(edges: EdgeList, labels: NDArray[np.int64], kept: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Return the sorted positions of the edges between different clusters; if ``kept`` (E,) is given, of kept edges."""
    blocks = slices(len(labels), _ROWS)
    found: list[NDArray[np.int64] | None] = [None] * len(blocks)

    def work(at: int) -> None:
        rows = blocks[at]
        found[at] = _between_rows(edges.indptr, edges.cols, kept, labels, rows.start, rows.stop)

    threads.each(work, range(len(blocks)))
    return np.concatenate([np.empty(0, np.int64), *found])


@nb.njit(cache=True, nogil=True)
def _between_rows(indptr, cols, kept, labels, start, stop):
    found = []
    for i in range(start, stop):
        label = labels[i]
        for e in range(indptr[i], indptr[i + 1]):
            if (kept is None or kept[e]) and labels[cols[e]] != label:
                found.append(e)
    return np.array(found, np.int64) if found else np.empty(0, np.int64)


def _find_merges(
    result: Grouping,
    parsed: ParsedEdges,
    first: int,
    apply: bool,
    sizes: NDArray[np.int64],
    apart: NDArray[np.int64],
) -> None:
    """Find the clusters that kept edges connect; list them in ``result``, and merge them if ``apply``.

    Merges that would bring two clusters of a pair of ``apart`` (c, 2) together are left out.
    """
    labels, edges = result.labels, parsed.edges
    across = result.across = between(edges, labels, parsed.kept)
    rows, cols = np.searchsorted(edges.indptr, across, side="right") - 1, edges.cols[across].astype(np.int64)
    if edges.symmetric:
        once = rows < cols
        across, rows, cols = across[once], rows[once], cols[once]
    if not across.size:
        return
    low, high = np.minimum(labels[rows], labels[cols]), np.maximum(labels[rows], labels[cols])
    order = np.lexsort([-edges.scores[across], high, low])
    across, rows, cols, low, high = (x[order] for x in (across, rows, cols, low, high))
    starts = np.flatnonzero((np.diff(low, prepend=-1) != 0) | (np.diff(high, prepend=-1) != 0))
    ends = np.append(starts[1:], len(across))
    free = _free(low[starts], high[starts], edges.scores[across[starts]], apart)
    starts, ends = starts[free], ends[free]
    into = _largest(labels, sizes, low[starts], high[starts], result.next_label) if apply else None
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        evidence = [
            (int(rows[e]), int(cols[e]), float(edges.scores[across[e]]), float(parsed.intimacy[across[e]]))
            for e in range(start, min(end, start + _EVIDENCE))
        ]
        met = np.concatenate([rows[start:end], cols[start:end]])
        result.merges.append(
            ClusterMerge(
                (int(low[start]), int(high[start])),
                evidence[0][2],
                evidence[0][3],
                end - start,
                evidence,
                np.unique(met[met >= first]).tolist(),
                None if into is None else int(into[low[start]]),
            )
        )
    if into is not None:
        alive = labels >= 0
        labels[alive] = into[labels[alive]]
        rows = np.searchsorted(edges.indptr, result.across, side="right") - 1
        result.across = result.across[labels[rows] != labels[edges.cols[result.across]]]


def _free(
    low: NDArray[np.int64], high: NDArray[np.int64], scores: NDArray[np.float32], apart: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which merges (m,) bring no two clusters of a pair of ``apart`` (c, 2) together, the best merges first."""
    free = np.ones(len(low), np.bool_)
    if not len(apart):
        return free
    group = {cluster: {cluster} for cluster in {*low.tolist(), *high.tolist()}}
    others: dict[int, set[int]] = {}
    for a, b in apart.tolist():
        others.setdefault(a, set()).add(b)
        others.setdefault(b, set()).add(a)
    for at in np.argsort(-scores, kind="stable").tolist():
        one, two = group[int(low[at])], group[int(high[at])]
        if one is two:
            continue
        small, large = sorted((one, two), key=len)
        free[at] = not any(others.get(cluster, set()) & large for cluster in small)
        if free[at]:
            large |= small
            group.update(dict.fromkeys(small, large))
    return free


def _largest(
    labels: NDArray[np.int64], rows: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """Return the new id (count,) of each cluster: the largest of the clusters to merge, or the lowest id of equals.

    Parameters
    ----------
    labels, rows : (N,) int64
        Clusters, and the number of rows that each row represents.
    low, high : (m,) int64
        The pairs of clusters to merge.
    count : int
        Number of cluster ids.
    """
    sizes = np.bincount(labels[labels >= 0], rows[labels >= 0], minlength=count)
    graph = sp.coo_matrix((np.ones(len(low), np.int8), (low, high)), shape=(count, count))
    _, group = connected_components(graph, directed=False)
    order = np.lexsort([np.arange(count), -sizes, group])
    head = np.empty(count, np.int64)
    head[group[order[::-1]]] = order[::-1]  # in reverse, so that the first of each group is written last and stays
    return head[group]
