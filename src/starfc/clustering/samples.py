"""Samples of the rows, and the clusters that they take apart (:mod:`starfc.clustering.reach` says when and why)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.clustering.components import components
from starfc.graph.edges import EdgeList, Edges

LEAST = 10  # minimum size of a cluster that can be joined, of its part in one sample, and of a piece, in rows
LIKELY = 0.5  # edges with p <= LIKELY are ignored
APART = 0.5  # a cluster is taken apart if less than this share of its pairs is together in the sample, and if ...
# ... two pieces have LEAST rows, or SCATTERED rows lie in pieces that hold less than this share of them
SCATTERED, SCATTER = 100, 0.1
_AT_ONCE = 1 << 20  # rows of clusters that are taken apart at a time; a larger cluster is one part


@dataclass(frozen=True)
class Links:
    """Edges between clusters, in both directions: their ends (m,) int64 and p (m,) float32."""

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    scores: NDArray[np.float32]

    def select(self, keep: NDArray[np.bool_]) -> Links:
        """Return the links where ``keep`` (m,) is True."""
        return Links(self.rows[keep], self.cols[keep], self.scores[keep])

    def added_to(self, edges: Edges) -> Edges:
        """Return the edges with these links added."""
        return edges.plus(self.rows, self.cols, self.scores)


@dataclass(frozen=True)
class Sample:
    """A sample of the rows and its clustering.

    Attributes
    ----------
    rows : (m,) int64
        The sampled rows of the set, in increasing order.
    labels : (m,) integers
        Their clusters in the sample.
    links : Links
        The edges with p > 0.5 that lie inside a cluster of the sample and between two clusters of the set. Their ends
        are rows of the set.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.integer]
    links: Links


def sample(
    members: NDArray[np.integer], rows: NDArray[np.int64], labels: NDArray[np.integer], edges: EdgeList
) -> Sample:
    """Return a :class:`Sample`; of its ``edges``, only those that could join clusters of the set are kept.

    Parameters
    ----------
    members : (N,) integers
        The clusters of the set.
    rows, labels : (m,) integers
        The sampled rows, and their clusters in the sample.
    edges : EdgeList
        The edges between the m rows.
    """
    apart = ~edges.inside(members[rows])
    between = edges.select(apart & edges.inside(labels) & (edges.scores > LIKELY))
    return Sample(rows, labels, Links(rows[between.rows], rows[between.cols], between.scores))


def taken_apart(
    members: NDArray[np.integer], edges: Edges, columns: int, tau1: float, drawn: Sample
) -> tuple[NDArray[np.integer], int]:
    """Take apart the clusters that a sample divides.

    Parameters
    ----------
    members : (N,) integers in [0, N)
        The smallest member of each row's cluster.
    edges : Edges
        Scored edges of the set.
    columns : int
        Neighbours in each list; only larger clusters are taken apart.
    tau1 : float
        Only edges with p > τ1 hold a part together.
    drawn : Sample
        The sample.

    Returns
    -------
    (N,) integers
        The smallest member of each row's cluster afterwards.
    int
        The number of clusters that were taken apart.
    """
    n = len(members)
    of, piece_of, size = _pieces(members, drawn)
    drawn_of = np.bincount(members[drawn.rows], minlength=n)
    together, pairs = np.bincount(of, size * (size - 1.0), n), drawn_of * (drawn_of - 1.0)
    larger = np.bincount(members, minlength=n) > columns
    pieces, largest = np.bincount(of[size >= LEAST], minlength=n), np.zeros(n, np.int64)
    np.maximum.at(largest, of, size)
    scattered = (drawn_of >= SCATTERED) & (largest < SCATTER * drawn_of)
    divided = larger & (together < APART * pairs) & ((pieces >= 2) | scattered)
    rows = np.flatnonzero(divided[members])
    # 0: not in the sample; 1: in a small piece; from 2 on: the pieces
    part = np.zeros(n, np.int64)
    part[drawn.rows] = np.where(size[piece_of] >= LEAST, piece_of + 2, 1)
    after = np.array(members)
    for some in _whole_clusters(rows, members):
        after[some] = some[_parts(edges.among(some), np.searchsorted(some, members[some]), part[some], tau1)]
    return after, int(divided.sum())


def _whole_clusters(rows: NDArray[np.int64], members: NDArray[np.integer]) -> list[NDArray[np.int64]]:
    """Divide the rows of whole clusters into parts of about :data:`_AT_ONCE` rows, each of whole clusters, increasing.

    ``members`` (N,) are the clusters of all rows.
    """
    _, of, sizes = np.unique(members[rows], return_inverse=True, return_counts=True)
    batch = (np.cumsum(sizes) - sizes) // _AT_ONCE
    return [rows[batch[of] == number] for number in np.unique(batch)]


def _parts(edges: EdgeList, members: NDArray[np.integer], part: NDArray[np.int64], tau1: float) -> NDArray[np.integer]:
    """Return the clusters (m,) into which the clusters of some rows are taken apart, named by their smallest row.

    Parameters
    ----------
    edges : EdgeList
        The edges between these m rows, which are all rows of their clusters.
    members : (m,) integers
        Their clusters.
    part : (m,) int64
        0 for a row that is not in the sample, 1 for a row in a small piece, otherwise the piece.
    tau1 : float
        Only edges with p > τ1 hold a part together.
    """
    rows, found = np.arange(len(part)), np.empty(len(part), np.int64)
    _attach(rows, edges.indptr, edges.cols, edges.scores, members, part, found)
    # a row without a part is named by itself, other rows by the smallest row of their part
    _, first, of_row = np.unique(np.where(found >= 2, found, -1 - rows), return_index=True, return_inverse=True)
    return components(edges, edges.inside(first[of_row]) & (edges.scores > tau1))


@singledispatch
def stay_apart(edges: Edges, former: NDArray[np.integer], members: NDArray[np.integer]) -> Edges:
    """Return the edges that remain after clusters were taken apart, so that no later step undoes it.

    Edges between the parts of a cluster go, and so do the edges that leave parts of fewer than 10 rows: these rows lie
    in a place where p says little. ``former`` and ``members`` (N,) are the clusters before and after.
    """
    whole = edges.whole()
    return whole.select(remains(whole, former, members, in_small_part(former, members)))


def in_small_part(former: NDArray[np.integer], members: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return which rows (N,) are in a part of fewer than 10 rows of a cluster that was taken apart."""
    after, before = np.bincount(members)[members], np.bincount(former)[former]
    return (after < LEAST) & (after < before)


def remains(
    edges: EdgeList, former: NDArray[np.integer], members: NDArray[np.integer], small: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return which edges (E,) remain (:func:`stay_apart`); ``small`` (N,) is the result of :func:`in_small_part`."""
    neither_small = edges.inside(np.where(small, 1 + np.arange(len(members)), 0))
    return edges.inside(members) | (neither_small & ~edges.inside(former))


def _pieces(
    members: NDArray[np.integer], drawn: Sample
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the pieces of clusters in a sample: rows of one cluster of the set and one cluster of the sample.

    Returns
    -------
    (p,) int64, (m,) int64, (p,) int64
        The cluster of each piece, the piece of each sample row, and the number of rows of each piece.
    """
    span = int(drawn.labels.max(initial=0)) + 1
    keys = members[drawn.rows].astype(np.int64) * span + drawn.labels
    found, piece_of, size = np.unique(keys, return_inverse=True, return_counts=True)
    return found // span, piece_of, size


@nb.njit(cache=True, nogil=True)
def _attach(rows, indptr, cols, scores, members, part, out):
    """Write the part of each of some rows (m,), 0 or 1 if it has none.

    Of the edges of a row of part 0 to rows of other parts within its cluster, more than half, by p, lead to its part.
    """
    for r in range(rows.size):
        i = rows[r]
        out[r] = part[i]
        if part[i]:
            continue
        total, best, most = 0.0, np.int64(0), 0.0
        for e in range(indptr[i], indptr[i + 1]):
            if members[cols[e]] != members[i] or not part[cols[e]]:
                continue
            total += scores[e]
            if part[cols[e]] == best or part[cols[e]] == 1:
                continue
            votes = 0.0
            for f in range(indptr[i], indptr[i + 1]):
                if members[cols[f]] == members[i] and part[cols[f]] == part[cols[e]]:
                    votes += scores[f]
            if votes > most:
                best, most = part[cols[e]], votes
        if 2 * most > total:
            out[r] = best
