"""The edge list, which all stages after scoring take and return, and sums over the edges of each node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from starfc.graph.edge_list_kernels import (
    add_ends,
    add_leaving,
    add_split,
    count_ends,
    count_pairs,
    find_columns,
    kept_pointers,
    mark_inside,
    merge_pairs,
    place_ends,
    place_rows,
    sort_rows,
    transposed,
)
from starfc.runtime import threads
from starfc.runtime.memory import mapped_bytes, release
from starfc.runtime.products import slices
from starfc.storage.scratch import large_array

_ROWS = 1 << 13

SplitSums = tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.float64]]


class Edges(Protocol):
    """The scored, undirected edges of a set, as the steps after scoring see them.

    :class:`EdgeList` holds them in this process, :class:`starfc.shards.edges.ShardEdges` in a store.
    """

    @property
    def num_nodes(self) -> int: ...

    @property
    def num_edges(self) -> int: ...

    @property
    def held(self) -> int: ...

    @property
    def file_bytes(self) -> int: ...

    def release(self) -> None: ...

    def above(self, line: float) -> Edges: ...

    def whole(self, scratch: Path | None = None) -> EdgeList: ...

    def among(self, nodes: NDArray[np.integer]) -> EdgeList: ...

    def ends_of(self, nodes: NDArray[np.integer]) -> tuple[NDArray[np.integer], NDArray[np.float32]]: ...

    def plus(self, rows: NDArray[np.integer], cols: NDArray[np.integer], scores: NDArray[np.float32]) -> Edges: ...

    def split_sums(self, members: NDArray[np.integer], above: float = 0.0) -> SplitSums: ...

    def split_sums_each(self, clusterings: Sequence[NDArray[np.integer]]) -> Iterable[SplitSums]: ...


Block = tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.integer], NDArray[np.float32]]


@dataclass(frozen=True)
class EdgeList:
    """E directed edges between N nodes, row by row, with scores (probabilities p).

    There are no self loops and no repeated edges. The columns of a row are in any order.

    Attributes
    ----------
    indptr : (N + 1,) int64
        Row pointers: the edges of node i go to ``cols[indptr[i] : indptr[i + 1]]``.
    cols : (E,) int32 (int64 from 2^31 nodes)
        The node to which each edge goes.
    scores : (E,) float32
        The score of each edge.
    symmetric : bool
        Each edge is stored in both directions with the same score, and the columns of each row are sorted.
    """

    indptr: NDArray[np.int64]
    cols: NDArray[np.integer]
    scores: NDArray[np.float32]
    symmetric: bool = False

    @classmethod
    def from_rows(
        cls, rows: NDArray[np.integer], cols: NDArray[np.integer], scores: NDArray[np.float32], num_nodes: int
    ) -> EdgeList:
        """Return the edge list of edges rows_e -> cols_e, which must be sorted by row."""
        return cls(row_pointers(np.bincount(rows, minlength=num_nodes)), cols, scores)

    @classmethod
    def from_blocks(cls, blocks: list[Block], num_nodes: int, dtype: DTypeLike) -> EdgeList:
        """Return the edge list of all blocks. ``blocks`` is emptied, to free memory.

        A block is a tuple: its rows (m,), the number of edges of each row (m,), and columns and scores of these edges,
        row by row. Blocks are in any order, and a row can be in several blocks.
        """
        totals = np.zeros(num_nodes, np.int64)
        for rows, counts, _, _ in blocks:
            totals[rows] += counts
        indptr = row_pointers(totals)
        cols, scores = np.empty(indptr[-1], dtype), np.empty(indptr[-1], np.float32)
        free = indptr[:-1].copy()
        blocks.reverse()
        while blocks:
            rows, counts, of_block, with_scores = blocks.pop()
            place_rows(free, rows, counts, of_block, with_scores, cols, scores)
        return cls(indptr, cols, scores)

    @classmethod
    def from_pairs(cls, blocks: list[Block], num_nodes: int, dtype: DTypeLike, scratch: Path | None = None) -> EdgeList:
        """Return the symmetric edge list of pairs, each of which is in one block, in one of its two directions.

        ``blocks`` are as for :meth:`from_blocks`. A large list is in files in the folder ``scratch``
        (:meth:`release`).
        """
        totals = np.zeros(num_nodes, np.int64)
        for rows, counts, of_block, _ in blocks:
            count_ends(rows, counts, of_block, totals)
        indptr = row_pointers(totals)
        free = indptr[:-1].copy()
        cols, scores = large_array((indptr[-1],), dtype, scratch), large_array((indptr[-1],), np.float32, scratch)
        blocks.reverse()
        while blocks:
            place_ends(free, *blocks.pop(), cols, scores)
        threads.each(lambda part: sort_rows(indptr, cols, scores, part.start, part.stop), slices(num_nodes, _ROWS))
        return cls(indptr, cols, scores, symmetric=True)

    @property
    def num_nodes(self) -> int:
        """Number of nodes N."""
        return len(self.indptr) - 1

    @property
    def rows(self) -> NDArray[np.integer]:
        """The node from which each edge starts, (E,). Computed at each access."""
        return np.repeat(np.arange(self.num_nodes, dtype=self.cols.dtype), np.diff(self.indptr))

    def __len__(self) -> int:
        return len(self.cols)

    @property
    def held(self) -> int:
        """Number of entries that this process holds."""
        return len(self)

    @property
    def file_bytes(self) -> int:
        """Bytes of columns and scores that are in files."""
        return mapped_bytes(self.cols, self.scores)

    def release(self) -> None:
        """Give back the memory of columns and scores that are in files. They are read again when needed."""
        release(self.cols)
        release(self.scores)

    @property
    def num_edges(self) -> int:
        """Number of edges. In a symmetric list, the two entries of a pair count once."""
        return len(self) // 2 if self.symmetric else len(self)

    def select(self, mask: NDArray[np.bool_]) -> EdgeList:
        """Return the edges where ``mask`` (E,) is True, in the same order.

        In a symmetric list, the mask must be equal for both directions of an edge.
        """
        return EdgeList(kept_pointers(self.indptr, mask), self.cols[mask], self.scores[mask], self.symmetric)

    def above(self, line: float) -> EdgeList:
        """Return the edges with a score above ``line``."""
        return self.select(self.scores > line)

    def whole(self, scratch: Path | None = None) -> EdgeList:
        """Return this list. Edges on shards return one like it (:mod:`starfc.shards.edges`)."""
        return self

    def among(self, nodes: NDArray[np.integer]) -> EdgeList:
        """Return the edges between some nodes (m,), which are increasing and become the nodes 0..m-1."""
        counts = np.diff(self.indptr)[nodes]
        at = positions(self.indptr[nodes], counts)
        cols = self.cols[at]
        number = np.minimum(np.searchsorted(nodes, cols), len(nodes) - 1)
        mask = nodes[number] == cols
        indptr = kept_pointers(row_pointers(counts), mask)
        return EdgeList(indptr, number[mask].astype(cols.dtype), self.scores[at][mask], self.symmetric)

    def ends_of(self, nodes: NDArray[np.integer]) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
        """Return the other ends (e,) of the edges that start from some nodes, and their scores (e,), in any order."""
        at = positions(self.indptr[nodes], np.diff(self.indptr)[nodes])
        return self.cols[at], self.scores[at]

    def inside(self, members: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Return which edges lie inside one cluster, (E,); ``members`` (N,) name each node's cluster."""
        out = np.empty(len(self), np.bool_)
        lists = (self.indptr, self.cols, members)
        threads.each(lambda part: mark_inside(*lists, part.start, part.stop, out), slices(self.num_nodes, _ROWS))
        return out

    def split_sums(self, members: NDArray[np.integer], above: float = 0.0) -> SplitSums:
        """Return the sums of each node's scores by whether the edge lies inside its cluster.

        ``members`` (N,) name each node's cluster. Only scores > ``above`` count.

        Returns
        -------
        inside : (N,) float64
            Sum of the scores of the edges into the node's own cluster.
        count : (N,) int32
            Number of these edges.
        outside : (N,) float64
            Sum of the scores of all other edges.
        """
        n = self.num_nodes
        inside, count, outside = np.zeros(n, np.float64), np.zeros(n, np.int32), np.zeros(n, np.float64)
        lists = (self.indptr, self.cols, self.scores, members, np.float32(above))
        threads.each(lambda part: add_split(*lists, part.start, part.stop, inside, count, outside), slices(n, _ROWS))
        return inside, count, outside

    def split_sums_each(self, clusterings: Sequence[NDArray[np.integer]]) -> Iterable[SplitSums]:
        """Yield the sums of each clustering (:meth:`split_sums`)."""
        return (self.split_sums(members) for members in clusterings)

    def plus(self, rows: NDArray[np.integer], cols: NDArray[np.integer], scores: NDArray[np.float32]) -> EdgeList:
        """Return the edge list with more edges (:meth:`with_edges`)."""
        return self.with_edges(rows, cols, scores)[0]

    def with_edges(
        self, rows: NDArray[np.integer], cols: NDArray[np.integer], scores: NDArray[np.float32]
    ) -> tuple[EdgeList, NDArray[np.int64]]:
        """Return the edge list with more edges, which may be in any order.

        In a symmetric list, edges that are already in the list keep their score. In other lists, the new edges must
        not be in the list.

        Returns
        -------
        EdgeList
            In a symmetric list, columns stay sorted. In other lists, new edges are at the end of their rows.
        (m,) int64
            Positions at which ``numpy.insert`` must add the values of the new edges to other arrays of the edges.
        """
        order = np.lexsort((cols, rows))
        rows, cols, scores = rows[order], cols[order], scores[order]
        if self.symmetric:
            at, known = np.empty(len(rows), np.int64), np.empty(len(rows), np.bool_)
            find_columns(self.indptr, self.cols, rows, cols, at, known)
            rows, cols, scores, at = rows[~known], cols[~known], scores[~known], at[~known]
        else:
            at = self.indptr[rows + 1]
        counts = np.diff(self.indptr) + np.bincount(rows, minlength=self.num_nodes)
        added = EdgeList(
            row_pointers(counts),
            np.insert(self.cols, at, cols.astype(self.cols.dtype)),
            np.insert(self.scores, at, scores.astype(np.float32)),
            self.symmetric,
        )
        return added, at


def row_pointers(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the row pointers (N + 1,) int64 of rows with these counts (N,)."""
    indptr = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    return indptr


def positions(starts: NDArray[np.integer], counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the positions of runs (c,), one run after the other: of each, its start and those that follow it."""
    return np.arange(counts.sum()) + np.repeat(starts - (np.cumsum(counts) - counts), counts)


def edge_confidence(edges: EdgeList, kept: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """Return the mean score of the edges at each node, incoming and outgoing, (N,) float32; 0 without an edge.

    ``kept`` (E,) says which edges count. In a symmetric list, it must be equal for both directions of an edge. Default:
    all edges.
    """
    if edges.symmetric:  # each edge is also an outgoing edge of its other end
        total, count = sums_of_rows(edges.indptr, edges.scores, kept)
    else:
        total, count = np.zeros(edges.num_nodes, np.float64), np.zeros(edges.num_nodes, np.int32)
        add_ends(edges.indptr, edges.cols, edges.scores, kept, total, count)
    return mean_score(total, count)


def mean_score(total: NDArray[np.float64], count: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return the mean of ``count`` (N,) scores of sum ``total`` (N,), float32; 0 without a score."""
    return (total / np.maximum(count, 1)).astype(np.float32)


def sums_of_rows(
    indptr: NDArray[np.int64], scores: NDArray[np.float32], kept: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Return sum (N,) float64 and number (N,) int32 of each row's scores; ``kept`` (E,) says which edges count."""
    n = len(indptr) - 1
    total, count = np.zeros(n, np.float64), np.zeros(n, np.int32)
    threads.each(lambda rows: add_leaving(indptr, scores, kept, rows.start, rows.stop, total, count), slices(n, _ROWS))
    return total, count


def undirected(edges: EdgeList) -> EdgeList:
    """Return the symmetric list of the edges: each pair in both directions, with its higher score; columns sorted.

    No comparison sort is needed: the transpose of a list has sorted columns, and so has the transpose of the transpose.
    """
    back = EdgeList(*transposed(edges.indptr, edges.cols, edges.scores))
    forth = EdgeList(*transposed(back.indptr, back.cols, back.scores))
    n, counts = edges.num_nodes, np.empty(edges.num_nodes, np.int64)
    lists = (forth.indptr, forth.cols, back.indptr, back.cols)
    threads.each(lambda part: count_pairs(*lists, part.start, part.stop, counts), slices(n, _ROWS))
    indptr = row_pointers(counts)
    cols, scores = np.empty(indptr[-1], edges.cols.dtype), np.empty(indptr[-1], np.float32)
    threads.each(
        lambda part: merge_pairs(*lists, forth.scores, back.scores, part.start, part.stop, indptr, cols, scores),
        slices(n, _ROWS),
    )
    return EdgeList(indptr, cols, scores, symmetric=True)
