"""Compiled kernels on edge lists: collect rows, transpose, merge and sum."""

from __future__ import annotations

import numba as nb
import numpy as np


@nb.njit(cache=True, nogil=True)
def place_rows(free, rows, counts, cols, scores, all_cols, all_scores) -> None:
    """Copy the entries of some rows, ``counts`` (m,) per row, to the free positions of these rows in the whole list.

    ``free`` (N,) is the next free position of each row; it moves on by the row's count.
    """
    at = 0
    for r in range(rows.size):
        for e in range(free[rows[r]], free[rows[r]] + counts[r]):
            all_cols[e] = cols[at]
            all_scores[e] = scores[at]
            at += 1
        free[rows[r]] += counts[r]


@nb.njit(cache=True, nogil=True)
def add_leaving(indptr, scores, kept, start, stop, total, count):
    """Add score and number of the kept edges of each row in [start, stop) to ``total`` and ``count``."""
    for i in range(start, stop):
        for e in range(indptr[i], indptr[i + 1]):
            if kept is None or kept[e]:
                total[i] += scores[e]
                count[i] += 1


@nb.njit(cache=True)
def add_ends(indptr, cols, scores, kept, total, count):
    """Add score and number of the kept edges at both ends of each edge to ``total`` and ``count``."""
    for i in range(total.size):
        for e in range(indptr[i], indptr[i + 1]):
            if kept is None or kept[e]:
                for end in (i, np.int64(cols[e])):
                    total[end] += scores[e]
                    count[end] += 1


@nb.njit(cache=True)
def in_lists(indptr, cols, wanted):
    """Return the sorted in-list of each node: row pointers and sources.

    The in-list of j has the nodes with an edge to j. It is empty for nodes that are not ``wanted`` (N,) bool; None
    means all nodes.
    """
    n = indptr.size - 1
    in_indptr = np.zeros(n + 1, np.int64)
    for e in range(cols.size):
        if wanted is None or wanted[cols[e]]:
            in_indptr[cols[e] + 1] += 1
    for i in range(n):
        in_indptr[i + 1] += in_indptr[i]
    in_rows = np.empty(in_indptr[n], cols.dtype)
    cursor = in_indptr[:-1].copy()
    for i in range(n):
        for e in range(indptr[i], indptr[i + 1]):
            if wanted is None or wanted[cols[e]]:
                in_rows[cursor[cols[e]]] = i
                cursor[cols[e]] += 1
    return in_indptr, in_rows


@nb.njit(cache=True)
def transposed(indptr, cols, scores):
    """Return row pointers, columns and scores of the reversed edges; columns are sorted."""
    t_indptr = np.zeros(indptr.size, np.int64)
    for e in range(cols.size):
        t_indptr[cols[e] + 1] += 1
    for i in range(indptr.size - 1):
        t_indptr[i + 1] += t_indptr[i]
    t_cols, t_scores = np.empty_like(cols), np.empty_like(scores)
    cursor = t_indptr[:-1].copy()
    for i in range(indptr.size - 1):
        for e in range(indptr[i], indptr[i + 1]):
            at = cursor[cols[e]]
            t_cols[at] = i
            t_scores[at] = scores[e]
            cursor[cols[e]] = at + 1
    return t_indptr, t_cols, t_scores


@nb.njit(cache=True, nogil=True)
def count_pairs(a_indptr, a_cols, b_indptr, b_cols, start, stop, counts):
    """Write the size of the union of two lists with sorted columns to ``counts``, for each row in [start, stop)."""
    for i in range(start, stop):
        a, a_end, b, b_end, count = a_indptr[i], a_indptr[i + 1], b_indptr[i], b_indptr[i + 1], 0
        while a < a_end and b < b_end:
            left, right = a_cols[a], b_cols[b]
            a += left <= right
            b += right <= left
            count += 1
        counts[i] = count + (a_end - a) + (b_end - b)


@nb.njit(cache=True, nogil=True)
def merge_pairs(a_indptr, a_cols, b_indptr, b_cols, a_scores, b_scores, start, stop, indptr, cols, scores):
    """Write the union of two lists with sorted columns, for the rows in [start, stop); the higher score is kept."""
    for i in range(start, stop):
        a, a_end, b, b_end = a_indptr[i], a_indptr[i + 1], b_indptr[i], b_indptr[i + 1]
        for e in range(indptr[i], indptr[i + 1]):
            if b == b_end or (a < a_end and a_cols[a] < b_cols[b]):
                cols[e], scores[e] = a_cols[a], a_scores[a]
                a += 1
            elif a == a_end or b_cols[b] < a_cols[a]:
                cols[e], scores[e] = b_cols[b], b_scores[b]
                b += 1
            else:
                cols[e], scores[e] = a_cols[a], max(a_scores[a], b_scores[b])
                a += 1
                b += 1
