"""Improve neighbour lists by comparing each row with the neighbours of its neighbours.

The border of a cell cuts neighbour lists. But a neighbour that a list misses is usually in the list of another
neighbour. A *sweep* therefore compares each row with the rows that two steps in the lists reach, where a step goes to
the first neighbours of a row, or to rows that have it among their first neighbours. This is the local join of
NN-descent (Dong et al., WWW 2011), arranged for the processor: rows are processed in blocks in which neighbours follow
each other, so the rows of a block share most of their candidates. All rows of the block are multiplied with all
candidates of the block at once, and each product is compared with the floor of its row.

A sweep reads the lists of the previous one only. So blocks can be processed in any order, and the result does not
depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.graph.cells import Members, Offers
from starfc.graph.neighbours import KnnGraph
from starfc.graph.order import locality_order
from starfc.graph.pools import Pools
from starfc.runtime.products import slices

NEAR = 10  # first neighbours that a step follows, in each direction
_BLOCK = 128  # rows per block
_MOST = 8192  # candidates per block: those that most pairs of steps reach


@dataclass(frozen=True)
class Steps:
    """The steps between N places: the first neighbours of each, and the places that have it as a first neighbour.

    Attributes
    ----------
    near, back : (N, 10) integers
        The neighbours; -1 where there are fewer. Of more than 10 places, those that have it at the front of their
        lists are kept.
    """

    near: NDArray[np.integer]
    back: NDArray[np.integer]

    @classmethod
    def of(cls, lists: NDArray[np.integer]) -> Steps:
        """Return the steps of the lists (N, k) of all places."""
        near = np.ascontiguousarray(lists[:, :NEAR])
        back = np.full_like(near, -1)
        _reverse(near, back)
        return cls(near, back)


def sweep(members: Members, steps: Steps, chunk: slice, ids: NDArray[np.integer], pools: Pools) -> None:
    """Offer each place of a chunk the places that two steps reach.

    ``ids`` (m, k) are the present lists of the chunk, ``pools`` its pools; candidates are places.
    """
    n = len(members)
    order = chunk.start + locality_order(KnnGraph(_inside(ids, chunk.start), np.empty((0, 0), np.float32)))
    paths = np.zeros(n, np.uint16)
    width = 1 + 2 * steps.near.shape[1]
    first, second = np.empty(_BLOCK * width, ids.dtype), np.empty(min(n, _BLOCK * width**2), ids.dtype)
    for some in slices(len(order), _BLOCK * members.blocks):
        rows, names = order[some], []
        for part in slices(len(rows), _BLOCK):
            count = _two_steps(rows[part], steps.near, steps.back, paths, first, second, _MOST)
            names.append(second[:count].copy())
        ends = np.minimum(np.arange(len(names) + 1) * _BLOCK, len(rows))
        name_ends = np.cumsum([0, *map(len, names)])
        members.offer(pools, Offers(rows - chunk.start, ends, np.concatenate(names), name_ends), chunk.start, ids)


def _inside(ids: NDArray[np.integer], start: int) -> NDArray[np.integer]:
    """Return the lists of a chunk of places, counted from its first place; -1 for places outside."""
    local = ids - ids.dtype.type(start)
    local[(ids < start) | (local >= len(ids))] = -1
    return local


@nb.njit(cache=True, nogil=True)
def _reverse(near, back):
    """Write the places that have each place in their list: by position in the list, then by place."""
    fill = np.zeros(near.shape[0], np.int32)
    for c in range(near.shape[1]):
        for i in range(near.shape[0]):
            j = near[i, c]
            if j >= 0 and fill[j] < back.shape[1]:
                back[j, fill[j]] = i
                fill[j] += 1


@nb.njit(cache=True)
def _reach(i, found, size, paths):
    if paths[i] == 0:
        found[size] = i
        size += 1
    paths[i] += np.uint16(1)
    return size


@nb.njit(cache=True)
def _step(places, count, near, back, paths, found):
    """Write the places that no or one step reaches from some places; return their number.

    ``paths`` counts how often each place is reached; it must be zeros before.
    """
    size = 0
    for q in range(count):
        i = places[q]
        size = _reach(i, found, size, paths)
        for c in range(near.shape[1]):
            if near[i, c] >= 0:
                size = _reach(near[i, c], found, size, paths)
            if back[i, c] >= 0:
                size = _reach(back[i, c], found, size, paths)
    return size


@nb.njit(cache=True, nogil=True)
def _two_steps(rows, near, back, paths, first, second, most):
    """Write the at most ``most`` places that two steps reach by the most paths; return their number.

    ``paths`` (N,) uint16 is work memory; it must be zeros, and is zeros again at the end.
    """
    size = _step(rows, rows.size, near, back, paths, first)
    for q in range(size):
        paths[first[q]] = 0
    size = _step(first, size, near, back, paths, second)
    least, room = np.int64(1), most
    if size > most:
        times = np.zeros(65536, np.int64)
        for q in range(size):
            times[paths[second[q]]] += 1
        least = 65535
        while times[least] <= room:
            room -= times[least]
            least -= 1
    kept = 0
    for q in range(size):
        i = second[q]
        if paths[i] > least or (paths[i] == least and room > 0):
            room -= paths[i] == least
            second[kept] = i
            kept += 1
        paths[i] = 0
    return kept
