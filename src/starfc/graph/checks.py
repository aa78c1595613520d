"""Check stored arrays before compiled kernels use them: ids in range, no repeats, valid row pointers, finite numbers.

Each check is one pass over an array, in blocks and on all threads. Nothing is copied.
"""

from __future__ import annotations

import secrets

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.runtime import threads
from starfc.runtime.products import slices

_ROWS, _ENTRIES = 1 << 14, 1 << 20
_SLOTS = 1 << 12  # size of the hash table for a row's ids; at most half of it is filled
LONGEST = _SLOTS // 2

_FAULTS = {
    1: "an id outside the graph's {n:,} nodes",
    2: "the node itself as a neighbour",
    3: "a neighbour after a missing one",
    4: "the same id twice",
    5: "a similarity that is not between 0 and 1",
}


def require_lists(ids: NDArray[np.integer], sims: NDArray[np.float32], rows: NDArray[np.integer], n: int) -> None:
    """Raise unless kNN lists follow the contract of :mod:`starfc.graph.neighbours`; their order is not checked.

    Parameters
    ----------
    ids : (m, k) integers
        Neighbours; -1 fills empty slots.
    sims : (m, k) float32
        Similarities.
    rows : (m,) integers
        The node of each list.
    n : int
        Number of nodes of the graph.

    Raises
    ------
    ValueError
        Names the first wrong row and its fault.
    """
    if ids.ndim != 2 or ids.shape != sims.shape or rows.shape != ids.shape[:1] or ids.shape[1] > LONGEST:
        raise ValueError(f"lists of {ids.shape} ids and {sims.shape} similarities")

    def work(part: slice) -> None:
        at, fault = _list_fault(ids[part], sims[part], rows[part], n)
        if fault:
            raise ValueError(f"row {int(rows[part.start + at]):,} has {_FAULTS[fault].format(n=n)}")

    threads.each(work, slices(len(ids), _ROWS))


def require_rows(indptr: NDArray[np.int64], cols: NDArray[np.integer], ordered: bool) -> None:
    """Raise unless an edge list is valid: row pointers from 0 to E, columns in range, no repeats, no self loops.

    Parameters
    ----------
    indptr : (N + 1,) int64
        Row pointers.
    cols : (E,) integers
        The other end of each edge.
    ordered : bool
        Whether the columns of a row must be sorted.

    Raises
    ------
    ValueError
        Says what is wrong.
    """
    if not len(indptr) or indptr[0] != 0 or indptr[-1] != len(cols):
        raise ValueError(f"indptr does not go from 0 to the number of entries, {len(cols):,}")
    for part in slices(len(indptr) - 1, _ENTRIES):
        if (np.diff(indptr[part.start : part.stop + 1]) < 0).any():
            raise ValueError("indptr decreases")

    def work(part: slice) -> None:
        row = _row_fault(indptr, cols, part.start, part.stop, ordered)
        if row >= 0:
            needed = "sorted ids without repeats" if ordered else "ids without repeats"
            raise ValueError(f"row {row:,}: {needed} of other nodes needed, from 0 to {len(indptr) - 2:,}")

    threads.each(work, slices(len(indptr) - 1, _ROWS))


def require_both_ways(
    indptr: NDArray[np.int64],
    cols: NDArray[np.integer],
    scores: NDArray[np.float32],
    intimacy: NDArray[np.float32],
    kept: NDArray[np.bool_],
) -> None:
    """Raise unless each edge is stored in both directions with the same numbers. Call :func:`require_rows` before.

    The edges of each direction are hashed with a random key, and the hashes are summed. If the sums are equal, the
    edges are equal (up to a negligible probability). This needs no search for the reverse edge.

    Raises
    ------
    ValueError
        If the edges of the two directions differ.
    """
    bits = (scores.view(np.uint32), intimacy.view(np.uint32), kept.view(np.uint8))
    key, sums = np.uint64(secrets.randbits(64)), []

    def work(part: slice) -> None:
        sums.append(_direction_sums(indptr, cols, *bits, part.start, part.stop, key))

    threads.each(work, slices(len(indptr) - 1, _ROWS))
    up, down = (sum(int(pair[side]) for pair in sums) % 2**64 for side in (0, 1))
    if up != down:
        raise ValueError("the edges of the two directions differ")


def require_numbers(name: str, values: NDArray[np.floating], low: float = -np.inf, high: float = np.inf) -> None:
    """Raise unless all values are finite and in [low, high].

    Raises
    ------
    ValueError
        Names the first wrong value of a block, and its position.
    """

    def work(part: slice) -> None:
        block = values[part]
        wrong = ~((block >= low) & (block <= high) & np.isfinite(block))
        if wrong.any():
            place = np.argwhere(wrong)[0]
            found = block[tuple(place)]
            place[0] += part.start
            raise ValueError(
                f"{name}: finite numbers from {low:g} to {high:g} needed; found {found} at {place.tolist()}"
            )

    threads.each(work, slices(len(values), max(1, _ENTRIES // max(1, int(np.prod(values.shape[1:]))))))


def require_ids(name: str, values: NDArray[np.integer], low: int, high: int) -> None:
    """Raise ValueError unless all integers are in [low, high). The message names the smallest and the largest."""
    if values.size and (int(values.min()) < low or int(values.max()) >= high):
        raise ValueError(
            f"{name}: whole numbers from {low} to {high - 1:,} needed; found {values.min()} to {values.max()}"
        )


@nb.njit(cache=True, nogil=True)
def _list_fault(ids, sims, rows, n):
    """Return row and fault number of the first fault; fault number 0 means none."""
    slots, stamps = np.empty(_SLOTS, np.int64), np.full(_SLOTS, -1, np.int64)
    for i in range(ids.shape[0]):
        ended = False
        for c in range(ids.shape[1]):
            j = np.int64(ids[i, c])
            if not (sims[i, c] >= 0 and sims[i, c] <= 1):
                return i, 5
            if j == -1:
                ended = True
                continue
            if j < 0 or j >= n:
                return i, 1
            if j == rows[i]:
                return i, 2
            if ended:
                return i, 3
            if _seen(slots, stamps, i, j):
                return i, 4
    return 0, 0


@nb.njit(cache=True, nogil=True, inline="always")
def _seen(slots, stamps, stamp, j):
    """Return whether j is in the hash table of this ``stamp``, and add it. A new stamp empties the table."""
    at = (j ^ (j >> 12)) & (_SLOTS - 1)
    while stamps[at] == stamp:
        if slots[at] == j:
            return True
        at = (at + 1) & (_SLOTS - 1)
    slots[at], stamps[at] = j, stamp
    return False


@nb.njit(cache=True, nogil=True)
def _row_fault(indptr, cols, first, last, ordered):
    """Return the first row in [first, last) with wrong columns, or -1."""
    n = indptr.size - 1
    slots, stamps = np.empty(_SLOTS, np.int64), np.full(_SLOTS, -1, np.int64)
    for i in range(first, last):
        before, few = np.int64(-1), indptr[i + 1] - indptr[i] <= LONGEST
        for e in range(indptr[i], indptr[i + 1]):
            j = np.int64(cols[e])
            if j < 0 or j >= n or j == i or (ordered and j <= before):
                return i
            if not ordered and few and _seen(slots, stamps, i, j):
                return i
            before = j
        if not ordered and not few:
            row = np.sort(cols[indptr[i] : indptr[i + 1]])
            for e in range(1, row.size):
                if row[e] == row[e - 1]:
                    return i
    return -1


@nb.njit(cache=True, nogil=True)
def _direction_sums(indptr, cols, scores, intimacy, kept, first, last, key):
    """Return the sum of the hashes of some rows' edges to higher ids, and the same for edges to lower ids."""
    up, down = np.uint64(0), np.uint64(0)
    for i in range(first, last):
        for e in range(indptr[i], indptr[i + 1]):
            j = np.int64(cols[e])
            numbers = (np.uint64(scores[e]) << np.uint64(32)) | np.uint64(intimacy[e])
            hashed = _mixed(_mixed(key + np.uint64(min(i, j))) + np.uint64(max(i, j)))
            hashed = _mixed(_mixed(hashed ^ numbers) + np.uint64(kept[e]))
            if i < j:
                up += hashed
            else:
                down += hashed
    return up, down


@nb.njit(cache=True, nogil=True, inline="always")
def _mixed(x):
    """Return the splitmix64 finaliser of x, a hash."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
