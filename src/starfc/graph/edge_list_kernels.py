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
def count_ends(rows, counts, cols, totals) -> None:
    """Count each edge of a block at both of its ends; the block is as for :func:`place_rows`."""
    at = 0
    for r in range(rows.size):
        totals[rows[r]] += counts[r]
        for _ in range(counts[r]):
            totals[cols[at]] += 1
            at += 1


@nb.njit(cache=True, nogil=True)
def place_ends(free, rows, counts, cols, scores, all_cols, all_scores) -> None:
    """Copy each edge of a block to the free positions of both of its ends; as :func:`place_rows` otherwise."""
    at = 0
    for r in range(rows.size):
        i = np.int64(rows[r])
        for _ in range(counts[r]):
            j = np.int64(cols[at])
            all_cols[free[i]], all_scores[free[i]] = j, scores[at]
            all_cols[free[j]], all_scores[free[j]] = i, scores[at]
            free[i] += 1
            free[j] += 1
            at += 1


@nb.njit(cache=True, nogil=True)
def sort_rows(indptr, cols, scores, start, stop) -> None:
    """Sort the edges of each row in [start, stop) by column, in place."""
    for i in range(start, stop):
        first, last = indptr[i], indptr[i + 1]
        if last - first > 64:
            order = np.argsort(cols[first:last])
            cols[first:last], scores[first:last] = cols[first:last][order], scores[first:last][order]
            continue
        for e in range(first + 1, last):
            col, score, at = cols[e], scores[e], e
            while at > first and cols[at - 1] > col:
                cols[at], scores[at] = cols[at - 1], scores[at - 1]
                at -= 1
            cols[at], scores[at] = col, score


@nb.njit(cache=True, nogil=True)
def kept_pointers(indptr, kept):
    """Return the row pointers of the edges with ``kept`` (E,) True."""
    out, count = np.zeros(indptr.size, np.int64), np.int64(0)
    for i in range(indptr.size - 1):
        for e in range(indptr[i], indptr[i + 1]):
            count += kept[e]
        out[i + 1] = count
    return out


@nb.njit(cache=True, nogil=True)
def find_columns(indptr, cols, rows, wanted, at, known) -> None:
    """Find columns in rows whose columns are sorted.

    For each (rows[m], wanted[m]), ``at`` is its entry, or the entry before which it would be inserted; ``known`` is
    whether the entry exists.
    """
    for m in range(rows.size):
        first, last = indptr[rows[m]], indptr[rows[m] + 1]
        place = first + np.searchsorted(cols[first:last], wanted[m])
        at[m], known[m] = place, place < last and cols[place] == wanted[m]


@nb.njit(cache=True, nogil=True)
def mark_inside(indptr, cols, members, start, stop, out) -> None:
    """Write whether each edge of the rows in [start, stop) lies inside one cluster; ``members`` (N,) are clusters."""
    for i in range(start, stop):
        for e in range(indptr[i], indptr[i + 1]):
            out[e] = members[i] == members[cols[e]]


@nb.njit(cache=True, nogil=True)
def add_split(indptr, cols, scores, members, line, start, stop, inside, count, outside) -> None:
    """Add up the scores of each row's edges inside and outside of its cluster, and count the edges inside.

    Scores up to ``line`` do not count. The sums of rows in [start, stop) are written; ``members`` (N,) are clusters.
    """
    for i in range(start, stop):
        for e in range(indptr[i], indptr[i + 1]):
            if not scores[e] > line:
                continue
            if members[i] == members[cols[e]]:
                inside[i] += scores[e]
                count[i] += 1
            else:
                outside[i] += scores[e]


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
