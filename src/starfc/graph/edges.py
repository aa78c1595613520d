"""The edge list that every stage after scoring takes and returns, and what the edges at each node say together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from starfc.graph.edge_list_kernels import add_ends, add_leaving, count_pairs, merge_pairs, place_rows, transposed
from starfc.runtime import threads
from starfc.runtime.products import slices

_ROWS = 1 << 13

Block = tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.integer], NDArray[np.float32]]


@dataclass(frozen=True)
class EdgeList:
    """Directed edges among N nodes, row by row, with scores (probabilities p).

    The edges of node i go to ``cols[indptr[i] : indptr[i + 1]]``: ``indptr`` (N + 1,) int64, ``cols`` (E,) int32 (int64
    from 2^31 nodes), ``scores`` (E,) float32. No self loops, no repeated edge; columns in any order within a row.
    ``symmetric``: every edge is there in either direction with the same score, and columns are sorted.
    """

    indptr: NDArray[np.int64]
    cols: NDArray[np.integer]
    scores: NDArray[np.float32]
    symmetric: bool = False

    @classmethod
    def from_rows(
        cls, rows: NDArray[np.integer], cols: NDArray[np.integer], scores: NDArray[np.float32], num_nodes: int
    ) -> EdgeList:
        """From edges rows_e -> cols_e that are sorted by row."""
        return cls(row_pointers(np.bincount(rows, minlength=num_nodes)), cols, scores)

    @classmethod
    def from_blocks(cls, blocks: list[Block], num_nodes: int, dtype: DTypeLike) -> EdgeList:
        """From blocks of rows in any order, a row in one block or in several; ``blocks`` is emptied on the way.

        A block is its rows (m,), how many edges each has there (m,), and these edges' columns and scores, row by row.
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

    @property
    def num_nodes(self) -> int:
        return len(self.indptr) - 1

    @property
    def rows(self) -> NDArray[np.integer]:
        """The node that each edge leaves, (E,), made anew at every call."""
        return np.repeat(np.arange(self.num_nodes, dtype=self.cols.dtype), np.diff(self.indptr))

    def __len__(self) -> int:
        return len(self.cols)

    @property
    def num_edges(self) -> int:
        """Edges, of which a symmetric list has two entries each."""
        return len(self) // 2 if self.symmetric else len(self)

    def select(self, mask: NDArray[np.bool_]) -> EdgeList:
        """The edges where ``mask`` (E,) holds, in the same order; of a symmetric list, both directions or none."""
        before = np.zeros(len(mask) + 1, np.int64)
        np.cumsum(mask, out=before[1:])
        return EdgeList(before[self.indptr], self.cols[mask], self.scores[mask], self.symmetric)

    def with_edges(
        self, rows: NDArray[np.integer], cols: NDArray[np.integer], scores: NDArray[np.float32]
    ) -> tuple[EdgeList, NDArray[np.int64]]:
        """The edges and others, in any order; of those that are there already the score stays.

        Returns
        -------
        EdgeList
            In a symmetric list the new ones are among the others of their row, in order of columns; else behind them.
        (m,) int64
            Where each one that was added went, for ``numpy.insert`` of other arrays of the edges.
        """
        order = np.lexsort((cols, rows))
        rows, cols, scores = rows[order], cols[order], scores[order]
        if self.symmetric:
            own, new = self.rows.astype(np.int64) * self.num_nodes + self.cols, rows * np.int64(self.num_nodes) + cols
            at = np.searchsorted(own, new)
            known = own[np.minimum(at, len(own) - 1)] == new if len(own) else np.zeros(len(new), np.bool_)
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
    """Counts per row (N,) -> where each row starts, and the end: (N + 1,) int64."""
    indptr = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    return indptr


def edge_confidence(edges: EdgeList, kept: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """Mean score of the edges at every node, either direction: (N,) float32, 0 for a node without an edge.

    ``kept`` (E,): those of the edges that count; of a symmetric list, both directions or none.
    """
    if edges.symmetric:  # what leads to a node leaves it, too
        total, count = sums_of_rows(edges.indptr, edges.scores, kept)
    else:
        total, count = np.zeros(edges.num_nodes, np.float64), np.zeros(edges.num_nodes, np.int32)
        add_ends(edges.indptr, edges.cols, edges.scores, kept, total, count)
    return (total / np.maximum(count, 1)).astype(np.float32)


def sums_of_rows(
    indptr: NDArray[np.int64], scores: NDArray[np.float32], kept: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Sum and number of the scores that each row lists, of those that are kept: (N,) each."""
    n = len(indptr) - 1
    total, count = np.zeros(n, np.float64), np.zeros(n, np.int32)
    threads.each(lambda rows: add_leaving(indptr, scores, kept, rows.start, rows.stop, total, count), slices(n, _ROWS))
    return total, count


def undirected(edges: EdgeList) -> EdgeList:
    """The edges taken as undirected: every pair once in either direction, with its higher score; columns sorted.

    Sorted by counting: the transpose of a list has sorted columns, and so has the transpose of that.
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
