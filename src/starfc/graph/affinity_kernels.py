"""Compiled kernels of :mod:`starfc.graph.affinity`.

``widths`` (S,) are in increasing order. The graph of scale s has the first ``widths[s]`` columns of the kNN graph, so
the column of an entry determines its first scale. Columns from ``widths[-1]`` on are in no graph.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from starfc.runtime.half import single
from starfc.runtime.simd import prefetch_row

# Kinds of an entry (i, j). A mutual entry has the code MUTUAL + 3 · (first scale at which j's list has i) + sign, where
# sign says whether s_ji is EQUAL to, LOWER or HIGHER than s_ij.
MISSING, ONE_SIDED, MUTUAL = range(3)
EQUAL, LOWER, HIGHER = range(3)
_AHEAD = 4  # rows are prefetched this many entries ahead


@nb.njit(cache=True)
def _find(ids, node):
    """Return the position of a node in a row without repeats, or -1. The loop has no branch, so it is vectorised."""
    at = np.int32(0)
    for c in range(ids.size):
        at += np.int32(c + 1) * np.int32(ids[c] == node)
    return at - 1


@nb.njit(cache=True, nogil=True)
def entry_kinds(ids, sims, th_sim, widths, rows, wanted, kinds):
    """Write the kinds of the entries of some rows. Entries with no end in ``wanted`` (N,) bool or None are MISSING."""
    for i in rows:
        for c in range(widths[-1]):
            j, s = ids[i, c], sims[i, c]
            if wanted is not None and not wanted[i] and (j < 0 or not wanted[j]):
                kinds[i, c] = MISSING
                continue
            ahead = ids[i, min(c + _AHEAD, widths[-1] - 1)]
            if ahead >= 0:
                prefetch_row(ids, ahead, widths[-1])
            if j < 0 or s < th_sim:
                kinds[i, c] = MISSING
                continue
            at = _find(ids[j, : widths[-1]], i)
            if at < 0 or sims[j, at] < th_sim:
                kinds[i, c] = ONE_SIDED
                continue
            scale = 0
            while at >= widths[scale]:
                scale += 1
            reverse = sims[j, at]
            kinds[i, c] = MUTUAL + 3 * scale + (HIGHER if reverse > s else LOWER if reverse < s else EQUAL)


@nb.njit(cache=True, nogil=True)
def one_sided(ids, sims, kinds, widths):
    """Return the one-sided entries by target and first scale: row pointers (N S + 1,), sources and similarities."""
    n, scales = ids.shape[0], widths.size
    indptr = np.zeros(n * scales + 1, np.int64)
    for i in range(n):
        c = 0
        for s in range(scales):
            while c < widths[s]:
                if kinds[i, c] == ONE_SIDED:
                    indptr[np.int64(ids[i, c]) * scales + s + 1] += 1
                c += 1
    for at in range(n * scales):
        indptr[at + 1] += indptr[at]
    sources = np.empty(indptr[-1], ids.dtype)
    weights = np.empty(indptr[-1], np.float32)
    cursor = indptr[:-1].copy()
    for i in range(n):
        c = 0
        for s in range(scales):
            while c < widths[s]:
                if kinds[i, c] == ONE_SIDED:
                    slot = np.int64(ids[i, c]) * scales + s
                    sources[cursor[slot]] = i
                    weights[cursor[slot]] = sims[i, c]
                    cursor[slot] += 1
                c += 1
    return indptr, sources, weights


@nb.njit(cache=True, fastmath={"reassoc", "contract", "nsz"})
def _add_row(total, weight, row):
    for c in range(total.size):
        total[c] += weight * single(row[c])


@nb.njit(cache=True, nogil=True)
def aggregate(rows, ids, sims, kinds, widths, indptr, sources, weights, array, scale, out):
    """Write ÂF of some rows at all scales.

    Each neighbour is added to the total of the first scale that has the edge. At the end, the totals are accumulated
    over the scales.
    """
    scales = widths.size
    degrees = np.empty(scales, out.dtype)
    for r in range(rows.size):
        i = rows[r]
        degrees[:] = 0.0
        out[:, r] = 0.0
        degrees[0] = 1.0
        _add_row(out[0, r], scale[i], array[i])
        c = 0
        for own in range(scales):
            while c < widths[own]:
                ahead = ids[i, min(c + _AHEAD, widths[-1] - 1)]
                if ahead >= 0:
                    prefetch_row(array, ahead, array.shape[1])
                kind = kinds[i, c]
                if kind != MISSING:
                    j, weight, first = ids[i, c], sims[i, c], own
                    if kind >= MUTUAL:
                        reverse, sign = (kind - MUTUAL) // 3, (kind - MUTUAL) % 3
                        if sign != EQUAL and (sign == HIGHER or reverse < own):
                            other = sims[j, _find(ids[j], i)]
                            # At the scale that adds the higher direction, add the difference to the lower one.
                            if reverse > own or (reverse < own and sign == LOWER):
                                more = abs(other - weight)
                                degrees[max(reverse, own)] += more
                                _add_row(out[max(reverse, own), r], more * scale[j], array[j])
                            if reverse <= own:
                                weight = other
                        first = min(reverse, own)
                    degrees[first] += weight
                    _add_row(out[first, r], weight * scale[j], array[j])
                c += 1
        for s in range(scales):
            for e in range(indptr[i * scales + s], indptr[i * scales + s + 1]):
                prefetch_row(array, sources[min(e + _AHEAD, sources.size - 1)], array.shape[1])
                degrees[s] += weights[e]
                _add_row(out[s, r], weights[e] * scale[sources[e]], array[sources[e]])
        for s in range(1, scales):
            degrees[s] += degrees[s - 1]
            for c in range(out.shape[2]):
                out[s, r, c] += out[s - 1, r, c]
        for s in range(scales):
            for c in range(out.shape[2]):
                out[s, r, c] /= degrees[s]


@nb.njit(cache=True)
def transpose(ids, sims, th_sim, widths):
    """Return the incoming entries of each node with their similarities and first scales; sources are sorted."""
    n = ids.shape[0]
    indptr = np.zeros(n + 1, np.int64)
    for i in range(n):
        for c in range(widths[-1]):
            if ids[i, c] >= 0 and sims[i, c] >= th_sim:
                indptr[ids[i, c] + 1] += 1
    for i in range(n):
        indptr[i + 1] += indptr[i]
    rows = np.empty(indptr[n], ids.dtype)
    values = np.empty(indptr[n], np.float32)
    levels = np.empty(indptr[n], np.uint8)
    cursor = indptr[:-1].copy()
    for i in range(n):
        c = 0
        for s in range(widths.size):
            while c < widths[s]:
                j = ids[i, c]
                if j >= 0 and sims[i, c] >= th_sim:
                    rows[cursor[j]] = i
                    values[cursor[j]] = sims[i, c]
                    levels[cursor[j]] = s
                    cursor[j] += 1
                c += 1
    return indptr, rows, values, levels


@nb.njit(cache=True)
def _outgoing(ids, sims, i, th_sim, widths):
    """Return row i's neighbours with similarity >= th_sim, sorted by id, with similarities and first scales."""
    out_ids = np.empty(widths[-1], ids.dtype)
    out_sims = np.empty(widths[-1], np.float32)
    out_levels = np.empty(widths[-1], np.uint8)
    count, c = 0, 0
    for s in range(widths.size):
        while c < widths[s]:
            if ids[i, c] >= 0 and sims[i, c] >= th_sim:
                out_ids[count] = ids[i, c]
                out_sims[count] = sims[i, c]
                out_levels[count] = s
                count += 1
            c += 1
    order = np.argsort(out_ids[:count])
    return out_ids[:count][order], out_sims[:count][order], out_levels[:count][order]


@nb.njit(parallel=True, cache=True)
def count_unions(ids, sims, th_sim, widths, t_indptr, t_rows, counts):
    """Write the number of entries of each row of Â to ``counts`` (N,)."""
    for i in nb.prange(ids.shape[0]):
        out_ids, _, _ = _outgoing(ids, sims, i, th_sim, widths)
        a, b, b_end, union = 0, t_indptr[i], t_indptr[i + 1], 1
        while a < out_ids.size or b < b_end:
            if b == b_end or (a < out_ids.size and out_ids[a] < t_rows[b]):
                a += 1
            elif a == out_ids.size or t_rows[b] < out_ids[a]:
                b += 1
            else:
                a += 1
                b += 1
            union += 1
        counts[i] = union


@nb.njit(parallel=True, cache=True)
def fill_unions(ids, sims, th_sim, widths, t_indptr, t_rows, t_sims, t_levels, indptr, indices, data, levels):
    """Write columns, values and first scales of the entries of Â: merge each row's sorted outgoing and incoming."""
    for i in nb.prange(ids.shape[0]):
        out_ids, out_sims, out_levels = _outgoing(ids, sims, i, th_sim, widths)
        a, b, b_end, at = 0, t_indptr[i], t_indptr[i + 1], indptr[i]
        self_done = False
        total = 1.0
        while a < out_ids.size or b < b_end:
            if b == b_end or (a < out_ids.size and out_ids[a] < t_rows[b]):
                j, s, level = out_ids[a], out_sims[a], out_levels[a]
                a += 1
            elif a == out_ids.size or t_rows[b] < out_ids[a]:
                j, s, level = t_rows[b], t_sims[b], t_levels[b]
                b += 1
            else:
                j, s, level = out_ids[a], max(out_sims[a], t_sims[b]), min(out_levels[a], t_levels[b])
                a += 1
                b += 1
            if not self_done and j > i:
                indices[at] = i
                data[at] = 1.0
                levels[at] = 0
                at += 1
                self_done = True
            indices[at] = j
            data[at] = s
            levels[at] = level
            total += s
            at += 1
        if not self_done:
            indices[at] = i
            data[at] = 1.0
            levels[at] = 0
        for e in range(indptr[i], indptr[i + 1]):
            data[e] = np.float32(data[e] / total)


@nb.njit(parallel=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def spmm(indptr, indices, data, features, out):
    """Write the product of a sparse matrix and dense features (N, d) to ``out``."""
    for i in nb.prange(out.shape[0]):
        row = out[i]
        row[:] = 0.0
        for e in range(indptr[i], indptr[i + 1]):
            weight = data[e]
            source = features[indices[e]]
            for c in range(row.size):
                row[c] += weight * source[c]
