"""Parsed edges that some are added to and taken from: intimacies are computed again where an end's edges changed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numba as nb
import numpy as np
from numpy.typing import DTypeLike, NDArray

from starfc.clustering.parsing import ParsedEdges
from starfc.clustering.refinement_kernels import count_marked
from starfc.graph.edge_list_kernels import in_lists
from starfc.graph.edges import EdgeList, row_pointers
from starfc.graph.neighbours import id_dtype
from starfc.runtime import threads
from starfc.runtime.products import slices

_ROWS, _NEW_ROWS = 1 << 10, 1 << 6  # all edges of a new row are counted


@dataclass(frozen=True)
class Changed:
    """The edges after a step, and the entries (t,) whose intimacy was computed again; ``was_kept`` (t,) before that.

    ``at`` (N,) bool are the nodes that gained or lost edges; every such entry has one of them as an end.
    """

    parsed: ParsedEdges
    entries: NDArray[np.int64]
    was_kept: NDArray[np.bool_]
    at: NDArray[np.bool_]


def without(parsed: ParsedEdges, rows: NDArray[np.integer]) -> tuple[ParsedEdges, NDArray[np.int64]]:
    """The edges that none of some rows has an end of, and the other ends of those that go (rising)."""
    gone = np.zeros(parsed.edges.num_nodes, np.bool_)
    gone[rows] = True
    ours, theirs = gone[parsed.edges.rows], gone[parsed.edges.cols]
    lost = ours | theirs
    ends = np.union1d(parsed.edges.rows[lost & ~ours], parsed.edges.cols[lost & ~theirs]).astype(np.int64)
    left = replace(parsed, edges=parsed.edges.select(~lost), intimacy=parsed.intimacy[~lost], kept=parsed.kept[~lost])
    return left, ends


def changed(
    parsed: ParsedEdges,
    added: tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.float32]],
    num_nodes: int,
    ends: NDArray[np.integer],
    tau2: float | None,
) -> Changed:
    """The edges with others added, intimacies and what is kept brought up to date.

    Parameters
    ----------
    added : rows, cols, scores
        Sorted by row, then column; their columns are to come after those that a row has.
    num_nodes : int
        Rows of the result, at least as many as before.
    ends : (m,) integers
        Nodes that lost edges before.
    tau2 : float or None
        None of communities, where an intimacy decides nothing: what was kept is, and of the others none.
    """
    edges, (rows, cols, scores) = parsed.edges, added
    dtype = id_dtype(num_nodes)
    counts = np.zeros(num_nodes, np.int64)
    counts[: edges.num_nodes] = np.diff(edges.indptr)
    at = row_pointers(counts)[rows + 1]  # behind a row's last entry
    added_counts = np.bincount(rows, minlength=num_nodes)
    counts += added_counts
    place = at + np.arange(len(at))

    def joined(before: NDArray, new: NDArray, dtype: DTypeLike) -> NDArray:
        out = np.empty(len(edges) + len(at), dtype)
        _insert(before, new, place, out)
        return out

    arrays: dict[str, NDArray] = {}
    parts: dict[str, tuple[NDArray, NDArray, DTypeLike]] = {"cols": (edges.cols, cols, dtype)}
    parts["scores"] = (edges.scores, scores, np.float32)
    parts["intimacy"] = (parsed.intimacy, np.zeros(len(at), np.float32), np.float32)
    if tau2 is None:
        parts["kept"] = (parsed.kept, np.zeros(len(at), np.bool_), np.bool_)
    threads.each(lambda name: arrays.update({name: joined(*parts[name])}), parts)
    merged = EdgeList(row_pointers(counts), arrays["cols"], arrays["scores"], edges.symmetric)
    intimacy = arrays["intimacy"]
    was_kept = intimacy > tau2 if tau2 is not None else arrays["kept"]
    mark = np.zeros(num_nodes, np.bool_)
    mark[ends], mark[rows], mark[cols] = True, True, True
    if edges.symmetric and not len(ends):
        entries = _grown(merged, mark, counts - added_counts, edges.num_nodes, intimacy)
    else:
        entries = _counted(merged, mark, intimacy)
    kept = intimacy > tau2 if tau2 is not None else was_kept
    return Changed(ParsedEdges(merged, intimacy, kept), entries, was_kept[entries], mark)


def entries_of(edges: EdgeList, rows: NDArray[np.integer]) -> NDArray[np.int64]:
    """Places of the edges that leave some nodes, node by node."""
    counts = edges.indptr[rows + 1] - edges.indptr[rows]
    starts = np.repeat(edges.indptr[rows] - row_pointers(counts)[:-1], counts)
    return starts + np.arange(len(starts))


@nb.njit(cache=True, nogil=True)
def _insert(before, new, place, out):
    """``new`` at the places (rising) of ``out``, and what was before in the others."""
    start = 0  # of the stretch of ``out`` up to the next place
    for a in range(place.size):
        out[start : place[a]] = before[start - a : place[a] - a]
        out[place[a]] = new[a]
        start = place[a] + 1
    out[start:] = before[start - place.size :]


@nb.njit(cache=True, nogil=True)
def _neighbourhood(indptr, cols, mark):
    """Marked nodes and those that their edges lead to, rising."""
    inside = mark.copy()
    for i in range(mark.size):
        if mark[i]:
            for e in range(indptr[i], indptr[i + 1]):
                inside[cols[e]] = True
    return np.flatnonzero(inside)


def _grown(
    edges: EdgeList,
    mark: NDArray[np.bool_],
    degrees: NDArray[np.int64],
    first: int,
    intimacy: NDArray[np.float32],
) -> NDArray[np.int64]:
    """NI of a symmetric list's edges at marked nodes, where only nodes from ``first`` on are new; which they are.

    An earlier edge has the common neighbours that it had with ``degrees`` (N,), and the new ones at both of its ends.
    """
    rows = _neighbourhood(edges.indptr, edges.cols, mark)

    def work(part: slice) -> NDArray[np.int64]:
        return _add_common(edges.indptr, edges.cols, rows[part], mark, degrees, first, intimacy)

    def of_new(part: slice) -> None:
        _of_new(edges.indptr, edges.cols, first + part.start, first + part.stop, intimacy)

    threads.each(of_new, slices(len(mark) - first, _NEW_ROWS))
    found = threads.results(work, slices(len(rows), _ROWS))
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _counted(edges: EdgeList, mark: NDArray[np.bool_], intimacy: NDArray[np.float32]) -> NDArray[np.int64]:
    """NI of the edges at marked nodes, counted anew (:mod:`starfc.clustering.refinement`); which these are."""
    if edges.symmetric:  # in-lists are out-lists; both directions stand at marked nodes or at their neighbours
        rows = _neighbourhood(edges.indptr, edges.cols, mark)
        incoming, sources = edges.indptr, edges.cols
    else:
        inside = mark.copy()
        inside[np.searchsorted(edges.indptr, np.flatnonzero(mark[edges.cols]), side="right") - 1] = True
        rows = np.flatnonzero(inside)
        wanted = np.zeros(len(mark), np.bool_)
        wanted[_neighbourhood(edges.indptr, edges.cols, mark)] = True
        incoming, sources = in_lists(edges.indptr, edges.cols, wanted)

    def work(part: slice) -> NDArray[np.int64]:
        return _around(edges.indptr, edges.cols, incoming, sources, rows[part], mark, intimacy)

    found = threads.results(work, slices(len(rows), _ROWS))
    return np.concatenate(found) if found else np.empty(0, np.int64)


@nb.njit(cache=True, nogil=True)
def _around(indptr, cols, in_indptr, in_rows, rows, mark, out):
    """NI of the edges of ``rows`` that have a marked end; returns their places."""
    listed = np.zeros(indptr.size - 1, np.uint8)
    count = np.int64(0)
    for i in rows:
        for e in range(indptr[i], indptr[i + 1]):
            count += mark[i] or mark[cols[e]]
    places = np.empty(count, np.int64)
    at = 0
    for i in rows:
        first, last = indptr[i], indptr[i + 1]
        for e in range(first, last):
            listed[cols[e]] = 1
        for e in range(first, last):
            j = cols[e]
            if not (mark[i] or mark[j]):
                continue
            degree = indptr[j + 1] - indptr[j]
            common = count_marked(listed, in_indptr, in_rows, j) if degree > 0 else np.int32(0)
            out[e] = np.float32(common) / np.float32(max(1, min(last - first, degree)))
            places[at] = e
            at += 1
        for e in range(first, last):
            listed[cols[e]] = 0
    return places


@nb.njit(cache=True, nogil=True)
def _of_new(indptr, cols, start, stop, out):
    """NI of the edges of new rows, in either direction; edges among themselves are met twice, with the same result."""
    listed = np.zeros(indptr.size - 1, np.uint8)
    for i in range(start, stop):
        first, last = indptr[i], indptr[i + 1]
        for e in range(first, last):
            listed[cols[e]] = 1
        for e in range(first, last):
            j = np.int64(cols[e])
            low, high, common = indptr[j], indptr[j + 1], count_marked(listed, indptr, cols, j)
            out[e] = np.float32(common) / np.float32(min(last - first, high - low))
            out[low + np.searchsorted(cols[low:high], i)] = out[e]
        for e in range(first, last):
            listed[cols[e]] = 0


@nb.njit(cache=True, nogil=True)
def _add_common(indptr, cols, rows, mark, degrees, first_new, out):
    """Add the new common neighbours of the rows' edges that have a marked end; returns the places of all such edges."""
    count = np.int64(0)
    for i in rows:
        for e in range(indptr[i], indptr[i + 1]):
            count += mark[i] or mark[cols[e]]
    places, at = np.empty(count, np.int64), 0
    for i in rows:
        first, last = indptr[i], indptr[i + 1]
        for e in range(first, last):
            j = np.int64(cols[e])
            if not (mark[i] or mark[j]):
                continue
            places[at] = e
            at += 1
            if i >= first_new or j >= first_new:
                continue
            # no count is so high that float32 cannot tell it from the next
            common = np.int64(np.rint(out[e] * np.float32(min(degrees[i], degrees[j]))))
            if mark[i] and mark[j]:  # others have no new neighbour
                a, b = last - 1, indptr[j + 1] - 1
                while a >= first and b >= indptr[j] and cols[a] >= first_new and cols[b] >= first_new:
                    common += cols[a] == cols[b]
                    step = cols[a]
                    a -= step >= cols[b]
                    b -= cols[b] >= step
            out[e] = np.float32(common) / np.float32(min(last - first, indptr[j + 1] - indptr[j]))
    return places
