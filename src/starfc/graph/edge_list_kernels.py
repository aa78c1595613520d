"""Compiled loops over edge lists: rows put together, transposed, merged, summed up."""

from __future__ import annotations

import numba as nb
import numpy as np


@nb.njit(cache=True, nogil=True)
def place_rows(free, rows, counts, cols, scores, all_cols, all_scores) -> None:
    """Copy the entries of some rows, ``counts`` of them each, to where a row's next ones belong, and move that on."""
    at = 0
    for r in range(rows.size):
        for e in range(free[rows[r]], free[rows[r]] + counts[r]):
            all_cols[e] = cols[at]
            all_scores[e] = scores[at]
            at += 1
        free[rows[r]] += counts[r]


@nb.njit(cache=True, nogil=True)
def add_leaving(indptr, scores, kept, start, stop, total, count):
    for i in range(start, stop):
        for e in range(indptr[i], indptr[i + 1]):
            if kept is None or kept[e]:
                total[i] += scores[e]
                count[i] += 1


@nb.njit(cache=True)
def add_ends(indptr, cols, scores, kept, total, count):
    for i in range(total.size):
        for e in range(indptr[i], indptr[i + 1]):
            if kept is None or kept[e]:
                for end in (i, np.int64(cols[e])):
                    total[end] += scores[e]
                    count[end] += 1


@nb.njit(cache=True)
def in_lists(indptr, cols, wanted):
    """For every node the nodes whose edges lead to it, rising; empty lists for nodes that are not ``wanted`` (N,)."""
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
