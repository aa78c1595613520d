"""Add parsed edges and remove parsed edges; compute node intimacy again where the edges of an end changed."""

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

_ROWS, _NEW_ROWS = 1 << 10, 1 << 6  # rows per block; new rows need more time, because all their edges are counted


@dataclass(frozen=True)
class Changed:
    """The edges after a step.

    Attributes
    ----------
    parsed : ParsedEdges
        The edges.
    entries : (t,) int64
        Positions of the edges whose node intimacy was computed again.
    was_kept : (t,) bool
        Whether these edges were kept before.
    at : (N,) bool
        The nodes that gained or lost edges. Each of the ``entries`` has one of these nodes as an end.
    """

    parsed: ParsedEdges
    entries: NDArray[np.int64]
    was_kept: NDArray[np.bool_]
    at: NDArray[np.bool_]


def without(parsed: ParsedEdges, rows: NDArray[np.integer]) -> tuple[ParsedEdges, NDArray[np.int64]]:
    """Remove all edges of some rows. Return the remaining edges, and the sorted other ends of the removed edges."""
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
    """Add edges; update node intimacy and which edges are kept.

    Parameters
    ----------
    parsed : ParsedEdges
        The edges before.
    added : rows, cols, scores
        The new edges, sorted by row, then column. In each row, they are placed after the existing edges.
    num_nodes : int
        Number of nodes of the result, at least as many as before.
    ends : (m,) integers
        Nodes that have lost edges.
    tau2 : float or None
        Threshold of node intimacy. None for communities, where node intimacy does not decide: existing edges then stay
        kept or not, and new edges are not kept.
    """
    edges, (rows, cols, scores) = parsed.edges, added
    dtype = id_dtype(num_nodes)
    counts = np.zeros(num_nodes, np.int64)
    counts[: edges.num_nodes] = np.diff(edges.indptr)
    at = row_pointers(counts)[rows + 1]  # the end of each row
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
    """Return the positions of the outgoing edges of some nodes, node by node."""
    counts = edges.indptr[rows + 1] - edges.indptr[rows]
    starts = np.repeat(edges.indptr[rows] - row_pointers(counts)[:-1], counts)
    return starts + np.arange(len(starts))


@nb.njit(cache=True, nogil=True)
def _insert(before, new, place, out):
    """Write ``new`` to the sorted positions ``place`` of ``out``, and ``before`` to the other positions."""
    start = 0  # start of the part of ``out`` before the next position
    for a in range(place.size):
        out[start : place[a]] = before[start - a : place[a] - a]
        out[place[a]] = new[a]
        start = place[a] + 1
    out[start:] = before[start - place.size :]


@nb.njit(cache=True, nogil=True)
def _neighbourhood(indptr, cols, mark):
    """Return the sorted marked nodes and their neighbours."""
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
    """Update NI of the edges at marked nodes of a symmetric list to which only new nodes were added; return positions.

    Nodes from ``first`` on are new. An earlier edge keeps its common neighbours, whose number follows from its NI and
    the earlier ``degrees`` (N,). Only common neighbours that are new nodes are counted and added.
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
    """Compute NI of the edges at marked nodes again (:mod:`starfc.clustering.refinement`); return their positions."""
    if edges.symmetric:  # in-lists equal out-lists; both directions are at marked nodes or at their neighbours
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
    """Write NI of the edges of ``rows`` that have a marked end; return their positions."""
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
    """Write NI of the edges of new rows, in both directions. Edges between new rows are written twice, equally."""
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
    """Update NI of the rows' edges that have a marked end by their new common neighbours; return their positions."""
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
            # Rounding gives the exact count: float32 represents all integers of this size.
            common = np.int64(np.rint(out[e] * np.float32(min(degrees[i], degrees[j]))))
            if mark[i] and mark[j]:  # an end without a mark has no new neighbour
                a, b = last - 1, indptr[j + 1] - 1
                while a >= first and b >= indptr[j] and cols[a] >= first_new and cols[b] >= first_new:
                    common += cols[a] == cols[b]
                    step = cols[a]
                    a -= step >= cols[b]
                    b -= cols[b] >= step
            out[e] = np.float32(common) / np.float32(min(last - first, indptr[j + 1] - indptr[j]))
    return places
