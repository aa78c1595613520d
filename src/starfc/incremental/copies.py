"""Handle copies when a clustering changes: find new copies, and replace a removed representative by one of its copies.

A copy is a row with the same direction as another row, its representative. A copy has no neighbour list and only one
edge, to its representative (:mod:`starfc.clustering.copies`). A state does not store these edges.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from starfc.clustering.copies import copies_among
from starfc.clustering.parsing import ParsedEdges
from starfc.data.copies import DISTANCE, find_copies
from starfc.data.dataset import Features
from starfc.graph.edges import EdgeList, row_pointers
from starfc.graph.structure import NO_LOGIT
from starfc.incremental.edges import without
from starfc.incremental.lists import Lists, Step

_NEAR = 1 - 10 * DISTANCE  # a row with at least this similarity may be a copy; the margin covers rounded products


def left_out(parsed: ParsedEdges, representative: NDArray[np.integer]) -> ParsedEdges:
    """Return the edges without those to copies."""
    copies = np.flatnonzero(copies_among(representative))
    return without(parsed, copies)[0] if copies.size else parsed


def known_by_edges(parsed: ParsedEdges, alive: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the representative (N,) of each row, found by the edges to copies.

    A row without a neighbour list (``alive`` is False) but with an edge is a copy; the edge leads to its
    representative.
    """
    edges = parsed.edges
    representative = np.arange(edges.num_nodes)
    copies = np.flatnonzero(~alive & (np.diff(edges.indptr) > 0))
    representative[copies] = edges.cols[edges.indptr[copies]]
    return representative


def may_be_there(step: Step, first: int) -> bool:
    """Return whether the search found a new row (id >= ``first``) that may be a copy of another row."""
    return bool((step.sims[step.queries >= first, :1] >= _NEAR).any())


def find_new(features: Features, alive: NDArray[np.bool_], first: int, representative: NDArray[np.int64]) -> None:
    """Set ``representative`` of the rows from ``first`` on: the lowest row of the same direction that is ``alive``."""
    representative[first:] = find_copies(features, np.flatnonzero(alive))[first:]


def find_heirs(representative: NDArray[np.int64], removed: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the removed representatives that have remaining copies, and the lowest of these copies (heir), (r, 2)."""
    gone = np.zeros(len(representative), np.bool_)
    gone[removed] = True
    left = np.flatnonzero(copies_among(representative) & ~gone & gone[representative])
    owners, at = np.unique(representative[left], return_index=True)
    return np.stack([owners, left[at]], axis=1)


def pass_on(representative: NDArray[np.int64], removed: NDArray[np.integer], heirs: NDArray[np.int64]) -> None:
    """Replace removed representatives by their heirs in ``representative``; removed rows represent themselves."""
    name = np.arange(len(representative))
    name[heirs[:, 0]] = heirs[:, 1]
    representative[:] = name[representative]
    representative[removed] = removed


def inherit(lists: Lists, parsed: ParsedEdges, heirs: NDArray[np.int64]) -> ParsedEdges:
    """Give each heir the neighbour list, the entries in other lists, and the edges of its removed representative.

    ``heirs`` (r, 2) is the result of :func:`find_heirs`. ``lists`` changes in place; the edges, a symmetric list, are
    returned.
    """
    before, after = heirs.T
    n = len(lists)
    name = np.append(np.arange(n), -1)  # the last entry is for empty slots, id -1
    name[before] = after
    met = np.zeros(n + 1, np.bool_)
    met[before] = True
    for array in (lists.ids, lists.sims, lists.codes, lists.known, lists.alive):
        array[after] = array[before]
    lists.remove(before)
    rows = np.flatnonzero(met[lists.ids].any(axis=1))
    ids = name[lists.ids[rows]]
    order = np.lexsort((ids, -lists.sims[rows], ids < 0), axis=1)  # ties by increasing id, empty slots last
    lists.ids[rows] = np.take_along_axis(ids, order, axis=1)
    columns, own = lists.codes.shape[1], slice(0, lists.candidates)
    if columns:
        codes = np.full(ids.shape, NO_LOGIT, np.int8)
        codes[:, own] = lists.codes[rows, own]
        codes = np.take_along_axis(codes, order, axis=1)
        codes[:, lists.candidates :] = NO_LOGIT
        lists.codes[rows] = codes[:, :columns]
        lists.known[rows] &= ((codes[:, own] != NO_LOGIT) | (lists.ids[rows, own] < 0)).all(axis=1)
    edges = parsed.edges
    rows, cols = name[edges.rows], name[edges.cols]
    order = np.lexsort((cols, rows))
    indptr = row_pointers(np.bincount(rows, minlength=edges.num_nodes))
    moved = EdgeList(indptr, cols[order].astype(edges.cols.dtype), edges.scores[order], edges.symmetric)
    return replace(parsed, edges=moved, intimacy=parsed.intimacy[order], kept=parsed.kept[order])
