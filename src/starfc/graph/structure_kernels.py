"""Compiled kernels of :mod:`starfc.graph.structure`: one pass over the pairs of a block of nodes.

Common neighbours are found by a table, without a search. While node i is processed, ``place`` has one byte per node of
the graph: its position in i's list (0: not in the list; 1..k: neighbour 1..k; k + 1: i itself). All values of i that
the inner loops need are in tables of k + 2 entries, indexed by this position. An entry is 0 if there is nothing to add.
So the loops over j's list have no branches, and the compiler can vectorise them.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from starfc.runtime.half import half, single

_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
LOGIT_STEP = 16  # logits are stored in multiples of 1/16
NO_LOGIT = -128  # code of an entry without a logit
SIM_STEPS = 4096  # exp(2 s / sigma) is read from a table with this number of steps of s


# A function inherits fastmath from its caller unless it says otherwise; this division must be exact.
@nb.njit(cache=True, nogil=True, fastmath=False)
def _scaled(s, centre):
    """Return a similarity on the scale on which ``centre`` has 0 and equal rows have 1, clipped to [0, 1]."""
    return min(max((s - centre) / (np.float32(1) - centre), np.float32(0)), np.float32(1))


@nb.njit(cache=True, nogil=True, fastmath=_FASTMATH)
def pair_structure(
    rows, ids, sims, candidates, nodes, at_node, nep, nep_norm, codes, probability, degree, again, every, since, place,
    row, prefixes, centre, o_local, o_slot, o_back, out,
):  # fmt: skip
    """Write the features of the candidate edges of some rows to ``out``; return the number of edges.

    The columns are those of :mod:`starfc.graph.structure`.

    Parameters
    ----------
    again : bool
        Compute the columns from the previous round's probabilities too; they are the last columns of ``out``.
    every : bool
        Include edges that the other end owns.
    since : int
        Only edges with at least one end >= ``since``.
    at_node : (N,) integers or None
        The row of ``nodes`` that belongs to each node; None if ``nodes`` has all nodes.
    sims : (N, k) float32
        Similarities, sorted by row.
    centre : float32
        The similarity that is 0 on the common scale (:func:`_scaled`).
    place : (N,) uint8
        Work memory; must be zeros, and is zeros again at the end.
    row : (2, k) float32
        Work memory.
    """
    k = ids.shape[1]
    at = np.zeros(k, np.int32)
    depth, listed = np.full(k + 2, k + 1, np.int32), np.ones(k + 2, np.float32)
    depth[1 : k + 1] = np.arange(1, k + 1)
    depth[k + 1] = 0
    listed[0] = listed[k + 1] = 0
    own = np.empty(nodes.shape[1], np.float32)
    sim_of, nep_of, p_of = np.zeros(k + 2, np.float32), np.zeros(k + 2, np.float32), np.zeros(k + 2, np.float32)
    t0, t1, t2, t3 = prefixes[0], prefixes[1], prefixes[2], prefixes[3]
    half, scale, unit = np.float32(0.5), np.float32(SIM_STEPS), np.float32(1) / (np.float32(1) - centre)
    ahead = out.shape[1] - 30  # offset of the columns of the previous round
    e = 0
    for r in range(rows.size):
        i = np.int64(rows[r])
        count = _length(ids, i)
        for a in range(count):
            place[ids[i, a]] = a + 1
            sim_of[a + 1] = _scaled(sims[i, a], centre)
            nep_of[a + 1] = nep[np.int32(sim_of[a + 1] * scale)] * nep_norm[i]
            if again:
                p_of[a + 1] = probability[np.int32(codes[i, a]) + 128]
        place[i] = k + 1
        here = nodes[i if at_node is None else at_node[i]]
        for c in range(nodes.shape[1]):
            own[c] = single(here[c])
        for a in range(min(count, candidates)):
            j = np.int64(ids[i, a])
            if max(i, j) < since:
                continue
            back = _find(ids, j, i)
            if j < i and 0 <= back < candidates and not every:
                continue
            length = _length(ids, j)
            for b in range(length):
                at[b] = place[ids[j, b]]
            for b in range(length):
                row[0, b] = _scaled(sims[j, b], centre)
            s = sim_of[a + 1]
            n0 = n1 = n2 = n3 = common = np.int32(0)
            for b in range(length):
                d = max(depth[at[b]], np.int32(b + 1))
                n0 += d <= t0
                n1 += d <= t1
                n2 += d <= t2
                n3 += d <= t3
                common += d <= k
            least = edge_i = edge_j = np.float32(0)
            for b in range(length):
                q, other = at[b], row[0, b]
                least += min(sim_of[q], other) * listed[q]
                edge_i += nep_of[q]
                edge_j += nep[np.int32(other * scale)] * listed[q]
            shared = np.float32(common - (1 if back >= 0 else 0))  # i itself is not a common neighbour
            o_local[e], o_slot[e], o_back[e] = r, a, back
            first = np.int32(a + 1)  # depth of j in i's list; in its own list j has depth 0
            out[e, 0] = (n0 + (first <= t0)) / np.float32(t0)
            out[e, 1] = (n1 + (first <= t1)) / np.float32(t1)
            out[e, 2] = (n2 + (first <= t2)) / np.float32(t2)
            out[e, 3] = (n3 + (first <= t3)) / np.float32(t3)
            out[e, 4] = np.float32(common + 1) / np.float32(k)
            out[e, 5] = np.log(half * (edge_i + edge_j * nep_norm[j]) + np.float32(1e-4))
            out[e, 6] = least / max(shared, np.float32(1)) - s
            dense, sparse = (i, j) if _denser(sims, centre, i, j, prefixes) else (j, i)
            out[e, 7], out[e, 8] = _scaled(sims[dense, 0], centre) - s, _scaled(sims[sparse, 0], centre) - s
            for t in range(4):
                out[e, 9 + 2 * t] = _scaled(sims[dense, prefixes[t] - 1], centre) - s
                out[e, 10 + 2 * t] = _scaled(sims[sparse, prefixes[t] - 1], centre) - s
            out[e, 17] = _scaled(sims[dense, k - 1], centre) - s
            out[e, 18] = _scaled(sims[sparse, k - 1], centre) - s
            smoothed = np.float32(0)
            there = nodes[j if at_node is None else at_node[j]]
            for c in range(nodes.shape[1]):
                smoothed += own[c] * single(there[c])
            out[e, 19] = (smoothed - centre) * unit - s if nodes.shape[1] else np.float32(0)
            if again:
                _round_before(at, length, codes, j, probability, p_of, listed, shared, degree[i], degree[j],
                              codes[i, a], 0 <= back < candidates, out[e, ahead:])  # fmt: skip
            e += 1
        for a in range(count):
            place[ids[i, a]] = 0
        place[i] = 0
    return e


@nb.njit(cache=True, nogil=True, fastmath=_FASTMATH)
def _round_before(at, length, codes, j, probability, p_of, listed, shared, degree_i, degree_j, code, mutual, out):
    """Write columns 20 to 29, from the previous round's probabilities of the pair and its common neighbours."""
    product = least = best = apart = np.float32(0)
    for b in range(length):
        q = at[b]
        p, r = p_of[q], probability[np.int32(codes[j, b]) + 128]
        lower = min(p, r)
        product += p * r
        least += lower
        best = max(best, lower)
        apart += abs(p - r) * listed[q]
    own, half = probability[np.int32(code) + 128], np.float32(0.5)
    one = degree_i - own + half
    other = degree_j - (own if mutual else np.float32(0)) + half
    low, high = min(one, other), max(one, other)
    out[20] = np.float32(code) / np.float32(LOGIT_STEP)
    out[21] = product / low
    out[22] = product / high
    out[23] = product / np.sqrt(low * high)
    out[24] = np.log(product + np.float32(0.1))
    out[25] = np.log(low)
    out[26] = np.log(high)
    out[27] = best
    out[28] = least / high
    out[29] = apart / (shared + 1)


@nb.njit(cache=True, nogil=True)
def absolute_structure(rows, local, slots, back, ids, sims, strangers, degrees, log_nodes, count, out):
    """Write columns 20 to 30 of ``count`` candidate edges: similarity relative to strangers, ranks, in-degrees.

    ``strangers`` are median and spread over all pairs, and median (N,) and spread (N,) of each node. ``degrees`` (2, N)
    are the logarithms of the in-degrees.
    """
    median, spread, node_median, node_spread = strangers
    k = ids.shape[1]
    for e in range(count):
        i = np.int64(rows[local[e]])
        j = np.int64(ids[i, slots[e]])
        s = sims[i, slots[e]]
        here, there = (s - node_median[i]) / node_spread[i], (s - node_median[j]) / node_spread[j]
        low, high = min(here, there), max(here, there)
        first, second = np.float32(slots[e] + 1), np.float32(back[e] + 1 if back[e] >= 0 else k + 1)
        out[e, 20] = _quarter((s - median) / spread)
        out[e, 21], out[e, 22] = _quarter(low), _quarter(high)
        out[e, 23] = (s - max(median, np.float32(0))) / (np.float32(1) - max(median, np.float32(0)))
        out[e, 24], out[e, 25] = np.log(min(first, second)), np.log(max(first, second))
        for t in range(2):
            a, b = degrees[t, i], degrees[t, j]
            out[e, 26 + 2 * t], out[e, 27 + 2 * t] = min(a, b), max(a, b)
        out[e, 30] = min(max(log_nodes + _log_tail(low), -40.0), 10.0) / 5.0


@nb.njit(cache=True, nogil=True)
def _quarter(z):
    """Return z / 4, clipped to [-2, 8]: values beyond 32 standard deviations carry no more information."""
    return min(max(z / np.float32(4), np.float32(-2)), np.float32(8))


@nb.njit(cache=True, nogil=True)
def _log_tail(z):
    """Return log P(Z > z) for a standard normal Z; for z >= 8 by the asymptotic series."""
    z = np.float64(z)
    if z < 8.0:
        return np.log(0.5 * math.erfc(z / math.sqrt(2.0)))
    return -0.5 * z * z - np.log(z * math.sqrt(2.0 * math.pi)) - 1.0 / (z * z)


@nb.njit(cache=True, nogil=True)
def in_degrees(ids, first, out):
    """Count the lists that have each node, ``out`` (2, N): among the first ``first`` entries, and in all entries."""
    for i in range(ids.shape[0]):
        for a in range(ids.shape[1]):
            j = ids[i, a]
            if j >= 0:
                out[1, j] += 1
                if a < first:
                    out[0, j] += 1


@nb.njit(cache=True, nogil=True)
def _denser(sims, centre, i, j, prefixes):
    """Return whether i is at least as dense as j. The result is True for both orders of i and j only if they tie.

    Similarities are compared on the common scale.
    """
    here, there = _scaled(sims[i, prefixes[2] - 1], centre), _scaled(sims[j, prefixes[2] - 1], centre)
    if here != there:
        return here > there
    here, there = _scaled(sims[i, 0], centre), _scaled(sims[j, 0], centre)
    if here != there:
        return here > there
    for t in range(4):
        here, there = _scaled(sims[i, prefixes[t] - 1], centre), _scaled(sims[j, prefixes[t] - 1], centre)
        if here != there:
            return here > there
    last = sims.shape[1] - 1
    return _scaled(sims[i, last], centre) >= _scaled(sims[j, last], centre)


@nb.njit(cache=True, nogil=True)
def _length(ids, i):
    """Return the number of neighbours of a row; empty slots are at the end."""
    length = ids.shape[1]
    while length > 0 and ids[i, length - 1] < 0:
        length -= 1
    return length


@nb.njit(cache=True, nogil=True)
def longest(ids):
    """Return the number of neighbours of the longest row; empty slots are at the end of a row."""
    width = 0
    for i in range(ids.shape[0]):
        while width < ids.shape[1] and ids[i, width] >= 0:
            width += 1
        if width == ids.shape[1]:
            break
    return width


@nb.njit(cache=True, nogil=True)
def _find(ids, j, i):
    """Return the position of i in j's list, or -1."""
    found = -1
    for b in range(ids.shape[1]):
        if ids[j, b] == i:
            found = b
    return found


@nb.njit(cache=True, nogil=True, error_model="numpy")
def store_divided(values, divisors, rows, out):
    """Write values (m, d) / divisors (m,) to the rows ``rows`` of ``out`` (N, d), as bits of float16."""
    for r in range(rows.size):
        for c in range(values.shape[1]):
            out[rows[r], c] = half(values[r, c] / divisors[r])


@nb.njit(cache=True, nogil=True, fastmath=_FASTMATH)
def nep_norms(rows, sims, ids, centre, nep, row, out):
    """Write 1 / Σ_m exp(-d_im^2 / σ) of some rows; 0 for a row without neighbours. ``row`` (2, k) is work memory."""
    scale = np.float32(SIM_STEPS)
    for i in rows:
        total = np.float32(0)
        length = _length(ids, i)
        for a in range(length):
            row[0, a] = _scaled(sims[i, a], centre)
        for a in range(length):
            total += nep[np.int32(row[0, a] * scale)]
        out[i] = np.float32(1) / total if total > 0 else np.float32(0)


@nb.njit(cache=True, nogil=True)
def row_sums(rows, codes, probability, out):
    """Write the sums of the probabilities of some rows' codes."""
    for i in rows:
        total = np.float32(0)
        for a in range(codes.shape[1]):
            total += probability[np.int32(codes[i, a]) + 128]
        out[i] = total
