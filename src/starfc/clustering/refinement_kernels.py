"""Compiled kernels of graph refinement. Common neighbours are counted for existing edges only."""

from __future__ import annotations

import numba as nb
import numpy as np


@nb.njit(cache=True, nogil=True)
def count_marked(marked, indptr, cols, j):
    """Return how many members of j's list are marked, int32."""
    common = np.int32(0)
    for a in range(indptr[j], indptr[j + 1]):
        common += marked[cols[a]]
    return common


@nb.njit(cache=True, nogil=True)
def intimacy_of_rows(indptr, cols, in_indptr, in_rows, rows, out):
    """Write NI of the directed edges of some rows to ``out`` (E,) float32; ``in_rows`` are the in-lists."""
    marked = np.zeros(indptr.size - 1, np.uint8)  # 1 for the members of the current row's out-list
    for i in rows:
        first, last = indptr[i], indptr[i + 1]
        for e in range(first, last):
            marked[cols[e]] = 1
        for e in range(first, last):
            j = cols[e]
            degree = indptr[j + 1] - indptr[j]
            common = count_marked(marked, in_indptr, in_rows, j) if degree > 0 else np.int32(0)
            out[e] = np.float32(common) / np.float32(max(1, min(last - first, degree)))
        for e in range(first, last):
            marked[cols[e]] = 0


@nb.njit(cache=True, nogil=True)
def intimacy_of_pairs(indptr, cols, rows, out):
    """Write NI of each pair at the end with more neighbours; if both have the same number, at the higher id."""
    marked = np.zeros(indptr.size - 1, np.uint8)
    for i in rows:
        first, last = indptr[i], indptr[i + 1]
        for e in range(first, last):
            marked[cols[e]] = 1
        for e in range(first, last):
            j = cols[e]
            degree = indptr[j + 1] - indptr[j]
            if degree < last - first or (degree == last - first and j < i):
                out[e] = np.float32(count_marked(marked, indptr, cols, j)) / np.float32(degree)
        for e in range(first, last):
            marked[cols[e]] = 0


@nb.njit(cache=True)
def mirror(indptr, cols, out):
    """Copy NI of each pair to its other end.

    Columns are sorted. Rows are visited in increasing order, so the cursor of row j always points at the edge j -> i.
    """
    cursor = indptr[:-1].copy()
    for i in range(cursor.size):
        for e in range(indptr[i], indptr[i + 1]):
            j = cols[e]
            back = cursor[j]  # the edge j -> i
            cursor[j] += 1
            ours, theirs = indptr[i + 1] - indptr[i], indptr[j + 1] - indptr[j]
            if theirs < ours or (theirs == ours and j < i):
                out[back] = out[e]


@nb.njit(cache=True, nogil=True)
def dynamic_of_rows(indptr, cols, by_tens, start, stop, out):
    """Write the dynamic threshold of each edge of the rows [start, stop); ``by_tens`` (3,) by degree // 10."""
    for i in range(start, stop):
        for e in range(indptr[i], indptr[i + 1]):
            degree = min(indptr[i + 1] - indptr[i], indptr[cols[e] + 1] - indptr[cols[e]])
            out[e] = by_tens[min(degree // 10, 2)]
