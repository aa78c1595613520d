"""Copies in a clustering that grows: new ones are found, and one takes over where its representative is removed.

A copy is a row of the direction of another, its representative; it has no list and no edge but the one that leads there
(:mod:`starfc.clustering.copies`), which a state leaves out of its edges.
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

_NEAR = 1 - 10 * DISTANCE  # products are rounded: what may be a copy


def left_out(parsed: ParsedEdges, representative: NDArray[np.integer]) -> ParsedEdges:
    """The edges without those to copies."""
    copies = np.flatnonzero(copies_among(representative))
    return without(parsed, copies)[0] if copies.size else parsed


def known_by_edges(parsed: ParsedEdges, alive: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The row that stands for each, by the edges to copies: the only ones at rows that have no list."""
    edges = parsed.edges
    representative = np.arange(edges.num_nodes)
    copies = np.flatnonzero(~alive & (np.diff(edges.indptr) > 0))
    representative[copies] = edges.cols[edges.indptr[copies]]
    return representative


def may_be_there(step: Step, first: int) -> bool:
    """Whether a row from ``first`` on was found to be so near to another that it may be its copy."""
    return bool((step.sims[step.queries >= first, :1] >= _NEAR).any())


def find_new(features: Features, alive: NDArray[np.bool_], first: int, representative: NDArray[np.int64]) -> None:
    """Enter what stands for the rows from ``first`` on: the lowest row of the same direction that has a list."""
    representative[first:] = find_copies(features, np.flatnonzero(alive))[first:]


def find_heirs(representative: NDArray[np.int64], removed: NDArray[np.integer]) -> NDArray[np.int64]:
    """Removed representatives that copies are left of, and the lowest of these: (r, 2)."""
    gone = np.zeros(len(representative), np.bool_)
    gone[removed] = True
    left = np.flatnonzero(copies_among(representative) & ~gone & gone[representative])
    owners, at = np.unique(representative[left], return_index=True)
    return np.stack([owners, left[at]], axis=1)


def pass_on(representative: NDArray[np.int64], removed: NDArray[np.integer], heirs: NDArray[np.int64]) -> None:
    """Let the heirs stand for what their representatives stood for, and removed rows for themselves."""
    name = np.arange(len(representative))
    name[heirs[:, 0]] = heirs[:, 1]
    representative[:] = name[representative]
    representative[removed] = removed


def inherit(lists: Lists, parsed: ParsedEdges, heirs: NDArray[np.int64]) -> ParsedEdges:
    """Give each heir the list, the entries in the lists of others, and the edges of its representative.

    Lists are changed in place; the edges, a symmetric list, are returned.
    """
    before, after = heirs.T
    n = len(lists)
    name = np.append(np.arange(n), -1)  # the last is what a missing entry, -1, points to
    name[before] = after
    met = np.zeros(n + 1, np.bool_)
    met[before] = True
    for array in (lists.ids, lists.sims, lists.codes, lists.known, lists.alive):
        array[after] = array[before]
    lists.remove(before)
    rows = np.flatnonzero(met[lists.ids].any(axis=1))
    ids = name[lists.ids[rows]]
    order = np.lexsort((ids, -lists.sims[rows], ids < 0), axis=1)  # ties by rising id, missing ones last
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
