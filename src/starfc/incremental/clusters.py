"""Which clusters new instances go to, and which clusters the edges would now merge or split.

Cluster ids are stable. New instances take kept edges in the order of falling score, as a spanning forest does: one
joins the cluster that its best edge leads to, and an edge between two clusters that exist is not used. What would be
merged or split is found and listed; it is done only when asked for. Then clusters are the components of the kept edges
again. Where clusters are communities, the kept edges that this starts from are those within a community of the step's
search (:mod:`starfc.incremental.communities`).
"""

from __future__ import annotations

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

_EVIDENCE = 5  # edges listed of a merge, the highest scores first
_LISTED = 20  # instances listed of a piece
_ROWS = 1 << 13


@dataclass(frozen=True)
class ClusterMerge:
    """Clusters that kept edges join. ``into``: the id that stayed, where it was done.

    ``score`` and ``intimacy`` are those of the best edge, ``edges`` how many there are, ``evidence`` the best of them
    as (row, row, p, intimacy), ``via`` the new instances at them.
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
    """A cluster that the kept edges no longer hold together.

    ``sizes`` of its pieces, the largest first; ``rows``, of every piece but the first, instances, 20 at most;
    ``ids`` of the pieces, where it was done.
    """

    cluster: int
    sizes: list[int]
    rows: list[list[int]]
    ids: list[int] | None = None


@dataclass
class Grouping:
    """Labels (N,) int64, -1 for a row that was removed, and the lowest id that no cluster ever had.

    ``created`` are ids that new instances were given, ``joined`` how many of these went to earlier clusters;
    ``suspects`` are clusters that came apart and were left as they are, ``across`` the kept edges, by their places,
    that lie between clusters which were left two.
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
) -> Grouping:
    """Labels of new instances, and what the edges would merge and split.

    Parameters
    ----------
    labels : (N,) int64
        Clusters of the earlier rows; -1 for removed ones and for new ones.
    rows : (m,) integers
        New instances, rising.
    suspects : (c,) int64
        Clusters that may have come apart.
    apply : bool
        Do merges and splits: the largest piece, and the larger cluster (of equals the lower id), keep their ids.
    sizes : (N,) int64, optional
        Rows that each stands for, where that is not one: these count in the sizes of clusters and pieces.
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
    _find_merges(result, parsed, first, apply, sizes)
    return result


def _place(result: Grouping, parsed: ParsedEdges, rows: NDArray[np.integer]) -> None:
    """Give every new row the cluster of its tree: that of an earlier one, or a new one."""
    if not rows.size:
        return
    labels, first, edges = result.labels, int(rows[0]), parsed.edges
    if edges.symmetric:  # every edge at a new row leaves one, too
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
    """Trees over new rows and clusters by edges in order: (count,) cluster of a root or -1, (count,) root of each."""
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
    labels, edges = result.labels, parsed.edges
    wanted = np.zeros(result.next_label + 1, np.bool_)  # the last is what -1 points to
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
    """The smallest row that each member is held together with by kept edges in its cluster; parents start alone."""
    for m in members:
        for e in range(indptr[m], indptr[m + 1]):
            if kept[e] and labels[m] == labels[cols[e]]:
                unite(parent, m, cols[e])
    out = np.empty(members.size, np.int64)
    for a, m in enumerate(members):
        out[a] = find_root(parent, m)
    return out


def between(edges: EdgeList, labels: NDArray[np.int64], kept: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Edges, or those of them that are kept, whose ends are in different clusters, rising."""
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


def _find_merges(result: Grouping, parsed: ParsedEdges, first: int, apply: bool, sizes: NDArray[np.int64]) -> None:
    labels, edges = result.labels, parsed.edges
    across = between(edges, labels, parsed.kept)
    result.across = across[:0] if apply else across
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
    into = _largest(labels, sizes, low[starts], high[starts], result.next_label) if apply else None
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(across)], strict=True):
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


def _largest(
    labels: NDArray[np.int64], rows: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """For every id (count,), the largest of the clusters that it is to be one with, of equals the lowest id."""
    sizes = np.bincount(labels[labels >= 0], rows[labels >= 0], minlength=count)
    graph = sp.coo_matrix((np.ones(len(low), np.int8), (low, high)), shape=(count, count))
    _, group = connected_components(graph, directed=False)
    order = np.lexsort([np.arange(count), -sizes, group])
    head = np.empty(count, np.int64)
    head[group[order[::-1]]] = order[::-1]  # the first of a group is written last
    return head[group]
