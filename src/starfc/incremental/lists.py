"""Add instances to kNN lists and remove instances from them.

The lists follow the contract of :mod:`starfc.graph.neighbours`. They are always equal to the lists that a search of
all instances would find. New instances are compared with all others. A new instance enters each list whose last
similarity it exceeds, and a list that has lost an instance is searched again. One exception: similarities that were
clipped to 0 have no order, so a full list that ends with similarity 0 takes no other instance of similarity 0.

For a structural model, each entry of the first columns has the code of its first-round logit
(:mod:`starfc.graph.structure`). The code moves with its entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import numba as nb
import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from starfc.data.dataset import Features
from starfc.graph.neighbours import KnnGraph, id_dtype, tidy
from starfc.graph.pools import Pools, numeric, sorted_pools
from starfc.graph.rerank import ROUNDED, ROUNDING, products_of, rerank
from starfc.graph.structure import NO_LOGIT
from starfc.runtime import threads
from starfc.runtime.half import single
from starfc.runtime.products import product_dtype, slices
from starfc.runtime.progress import progress

_ROWS, _COLUMNS = 512, 1024  # size of a tile: 1 or 2 MiB of products
_SMALL = 1 << 14  # with fewer rows, float32 is as fast
_KEEP = 2  # of rounded products, this many times k candidates are kept
_LOWEST = 0.05  # floors above this stay positive after rounding


@dataclass
class Lists:
    """The kNN lists of N rows with k columns. The methods change the arrays in place.

    Attributes
    ----------
    ids, sims : (N, k)
        Neighbours and similarities.
    alive : (N,) bool
        The rows that have a list and can be neighbours: valid rows that are not removed and not copies.
    codes : (N, columns) int8
        First-round logits of the entries; no columns if the model has none.
    known : (N,) bool
        The rows in which all candidates have a code.
    candidates : int
        Number of columns that are candidates and can have codes.
    """

    ids: NDArray[np.integer]
    sims: NDArray[np.float32]
    alive: NDArray[np.bool_]
    codes: NDArray[np.int8]
    known: NDArray[np.bool_]
    candidates: int

    @property
    def graph(self) -> KnnGraph:
        """The lists as a kNN graph."""
        return KnnGraph(self.ids, self.sims)

    def __len__(self) -> int:
        return len(self.ids)

    def grown(self, alive: NDArray[np.bool_]) -> Lists:
        """Return the lists with empty lists added at the end, one for each entry of ``alive`` (m,) bool."""
        n, m = len(self), len(alive)
        return Lists(
            _padded(self.ids, m, -1, id_dtype(n + m)),
            _padded(self.sims, m, 0),
            np.concatenate([self.alive, alive]),
            _padded(self.codes, m, NO_LOGIT),
            _padded(self.known, m, False),
            self.candidates,
        )

    def remove(self, rows: NDArray[np.integer]) -> None:
        """Remove rows and empty their lists. Other lists contain the rows until :meth:`search` and :meth:`enter`."""
        self.alive[rows] = False
        self.ids[rows], self.sims[rows] = -1, 0
        self.codes[rows], self.known[rows] = NO_LOGIT, False

    def search(self, features: Features, first: int, removed: NDArray[np.int64]) -> Step:
        """Search the changes of the lists; call :meth:`remove` before.

        The lists of new rows (id >= ``first``) are searched. Lists that contain ``removed`` rows are searched again.
        The entries of new rows in other lists are found.
        """
        k, n = self.ids.shape[1], len(self)
        short = np.empty(0, np.int64)
        if removed.size:
            mark = np.zeros(n + 1, np.bool_)  # the last entry is for empty slots, id -1
            mark[removed] = True
            short = np.flatnonzero(mark[self.ids].any(axis=1) & self.alive)
        queries = np.concatenate([np.flatnonzero(self.alive[first:]) + first, short])
        if not queries.size:
            none, no_values = self.ids[:0], self.sims[:0]
            return Step(removed, queries, none, no_values, none[:, 0], none[:, 0], no_values[:, 0])
        floor = np.where(self.ids[:first, k - 1] >= 0, self.sims[:first, k - 1], self.sims[:first, max(k - 2, 0)])
        floor[self.ids[:first, max(k - 2, 0)] < 0] = -np.inf
        floor[short], floor[~self.alive[:first]] = np.inf, np.inf
        sims, ids, (rows, cols, values) = _search(features, self.alive, queries, k, floor, first)
        ids[np.isneginf(sims)] = -1
        found = tidy(ids, sims, queries, n)
        order = np.lexsort([cols, rows])
        rows, cols = rows[order].astype(ids.dtype), cols[order].astype(ids.dtype)
        return Step(removed, queries, found.ids, found.sims, rows, cols, values[order])

    def enter(self, step: Step) -> None:
        """Write the changes that :meth:`search` found to the lists."""
        self.ids[step.queries], self.sims[step.queries] = step.ids, step.sims
        self.codes[step.queries], self.known[step.queries] = NO_LOGIT, False
        _enter(self.ids, self.sims, self.codes, self.candidates, step.rows, step.cols, step.values)


@dataclass(frozen=True)
class Step:
    """The changes of the lists by a step.

    Attributes
    ----------
    removed : (r,) int64
        The removed rows.
    queries : (m,) int64
        The rows whose lists were searched.
    ids, sims : (m, k)
        Their new lists.
    rows, cols, values : (e,)
        Entries that are offered to the lists of other rows: row, new neighbour and similarity, sorted by row, then
        neighbour.
    """

    removed: NDArray[np.int64]
    queries: NDArray[np.int64]
    ids: NDArray[np.integer]
    sims: NDArray[np.float32]
    rows: NDArray[np.integer]
    cols: NDArray[np.integer]
    values: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return sum(array.nbytes for array in vars(self).values())

    def touched(self, first: int) -> NDArray[np.int64]:
        """Return the sorted earlier rows (id < ``first``) whose lists the step may have changed."""
        others = self.rows[np.flatnonzero(np.diff(self.rows, prepend=-1))].astype(np.int64)
        return np.union1d(others, self.queries[self.queries < first]) if self.removed.size else others


@dataclass(frozen=True)
class StoredLists:
    """The lists as stored on disk: earlier lists, and the steps since then.

    Attributes
    ----------
    ids, sims : (n, k)
        The earlier lists, of the first n of N rows.
    steps : list of Step
        The later changes.
    alive, codes, candidates
        The current values for all N rows, as for :class:`Lists`.
    """

    ids: NDArray[np.integer]
    sims: NDArray[np.float32]
    steps: list[Step]
    alive: NDArray[np.bool_]
    codes: NDArray[np.int8]
    candidates: int

    def grown(self, alive: NDArray[np.bool_]) -> Lists:
        """Return the current lists of the N rows, with empty lists added at the end.

        ``alive`` (m,) bool is that of the new rows. The arrays are read directly into their final place.
        """
        before, m, alive = len(self.alive), len(alive), np.concatenate([self.alive, alive])
        n, dtype = len(alive), id_dtype(len(alive))
        parts: list[tuple[NDArray, int, DTypeLike]] = [(self.ids, -1, dtype), (self.sims, 0, self.sims.dtype)]
        ids, sims = threads.results(lambda part: _padded(part[0], n - len(self.ids), part[1], part[2]), parts)
        bare = Lists(ids, sims, alive, np.empty((n, 0), np.int8), np.empty(n, np.bool_), 0)
        for step in self.steps:
            bare.remove(step.removed)
            bare.enter(step)
        known = (self.codes[:, :1] != NO_LOGIT).all(axis=1) | (ids[:before, 0] < 0)
        return Lists(ids, sims, alive, _padded(self.codes, m, NO_LOGIT), _padded(known, m, False), self.candidates)


def _padded(array: NDArray, rows: int, value: float, dtype: DTypeLike | None = None) -> NDArray:
    """Return a copy of an array with ``rows`` rows of ``value`` added at the end."""
    out = np.empty((len(array) + rows, *array.shape[1:]), dtype or array.dtype)
    out[: len(array)] = array
    out[len(array) :] = value
    return out


def _search(
    features: Features,
    alive: NDArray[np.bool_],
    queries: NDArray[np.integer],
    k: int,
    floor: NDArray[np.float32],
    first: int,
) -> tuple[NDArray[np.float32], NDArray[np.integer], tuple[NDArray, NDArray, NDArray]]:
    """Search the k best neighbours of some rows among those alive, and the earlier lists that new rows enter.

    If bfloat16 is faster, its products select candidates, and float32 decides (:mod:`starfc.graph.exact`). A query
    whose result is not certain is searched again.

    Parameters
    ----------
    alive : (N,) bool
        The rows that can be neighbours.
    queries : (m,) integers
        The rows to search, new rows first.
    floor : (first,) float32
        For each earlier row, the similarity that a new row must exceed to enter its list.
    first : int
        The first new row.

    Returns
    -------
    sims, ids : (m, k)
        The best neighbours of the queries.
    (rows, cols, values)
        Earlier rows, the new rows that enter their lists, and the similarities.
    """
    n, least = len(features), float(floor.min(initial=np.inf))
    if product_dtype() != torch.bfloat16 or n < _SMALL or not least > _LOWEST:
        pools, (rows, cols, values) = _products(features, alive, queries, k, floor, first, torch.float32)
        return *sorted_pools(pools, k), (rows, cols, values)
    low = np.where(np.isinf(floor), floor, (floor - ROUNDED) * (1 - ROUNDING)).astype(np.float32)
    bits = (low.view(np.uint32) >> 16).astype(np.int16)  # truncation: the floor never gets higher
    pools, (rows, cols, _) = _products(features, alive, queries, min(n, _KEEP * k), bits, first, torch.bfloat16)
    sims, ids = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), id_dtype(n))
    certain, names = np.empty(len(queries), np.bool_), np.arange(n, dtype=id_dtype(n))

    def exact(part: slice) -> None:
        error = np.full(part.stop - part.start, ROUNDED, np.float32)
        certain[part] = rerank(pools[part], features.scaled, queries[part], names, error, sims[part], ids[part])

    threads.each(exact, slices(len(queries), _ROWS))
    again = np.flatnonzero(~certain)
    if again.size:
        nothing = np.empty(0, np.float32)
        pools, _ = _products(features, alive, queries[again], k, nothing, n, torch.float32)
        sims[again], ids[again] = sorted_pools(pools, k)
    values = np.empty(len(rows), np.float32)

    def product(part: slice) -> None:
        values[part] = products_of(*features.scaled, cols[part], rows[part])

    threads.each(product, slices(len(rows), 16 * _ROWS))
    over = values > floor[rows]
    return sims, ids, (rows[over], cols[over], values[over])


def _products(
    features: Features,
    alive: NDArray[np.bool_],
    queries: NDArray[np.integer],
    keep: int,
    floor: NDArray[np.float32] | NDArray[np.int16],
    first: int,
    dtype: torch.dtype,
) -> tuple[Pools, tuple[NDArray, NDArray, NDArray]]:
    """Return the pools of the queries, and (row, query, product) above the rows' floors, by products in ``dtype``."""
    array, scale = features.scaled
    n = len(features)
    pools, dead = Pools.empty(len(queries), keep, dtype, id_dtype(n)), np.flatnonzero(~alive)
    parts = [
        (queries[part], torch.from_numpy(features.rows(queries[part])).to(dtype), pools[part], Lock())
        for part in slices(len(queries), _ROWS)
    ]
    entering: list[tuple[NDArray, NDArray, NDArray]] = []

    def work(run: slice) -> None:
        buffer, rounded = torch.empty(_ROWS * _COLUMNS, dtype=dtype), torch.empty((_COLUMNS, features.dim), dtype=dtype)
        normalised = np.empty((_COLUMNS, features.dim), np.float32)
        for start in range(run.start, run.stop, _COLUMNS):
            tile = slice(start, min(start + _COLUMNS, run.stop))
            size = tile.stop - start
            _normalise(array[tile], scale[tile], normalised)
            rounded[:size] = torch.from_numpy(normalised[:size])
            lost = torch.from_numpy(dead[slice(*np.searchsorted(dead, (start, tile.stop)))] - start)
            if len(lost):
                rounded[lost] = 0  # these rows may have values that are not finite
            for mine, vectors, pool, lock in parts:
                products = buffer[: len(mine) * size].view(len(mine), size)
                torch.mm(vectors, rounded[:size].T, out=products)
                if len(lost):
                    products[:, lost] = -torch.inf
                with lock:
                    pool.offer_rows(products, start, np.arange(len(mine)))
                new = int((mine >= first).sum())  # new rows come first among the queries
                if new and start < len(floor):
                    above = _above(numeric(products[:new]), floor[tile])
                    entering.append((above[1] + start, mine[above[0]], above[2]))
        bar.update(run.stop - run.start)

    with progress("kNN of new rows", total=n, unit="row") as bar:
        threads.each(work, slices(n, 8 * _COLUMNS))
    none = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    rows, cols, values = (np.concatenate(x) for x in zip(none, *entering, strict=True))
    return pools, (rows, cols, values)


@nb.njit(cache=True, nogil=True)
def _normalise(array, scale, out):
    """Write rows of :attr:`starfc.data.dataset.Features.scaled`, normalised, to the first rows of ``out``, float32."""
    for i in range(scale.size):
        for c in range(array.shape[1]):
            out[i, c] = single(array[i, c]) * scale[i]


@nb.njit(cache=True, nogil=True)
def _above(products, floors):
    """Return rows, columns and values of the products (m, c) that exceed the floors (at most c) of their columns."""
    m, c = products.shape[0], floors.size
    counts = np.zeros(m, np.int32)
    for r in range(m):
        count = np.int32(0)
        for j in range(c):
            count += products[r, j] > floors[j]
        counts[r] = count
    total = counts.sum()
    rows, cols, values = np.empty(total, np.int64), np.empty(total, np.int64), np.empty(total, np.float32)
    at = 0
    for r in range(m):
        if counts[r] > 0:
            for j in range(c):
                if products[r, j] > floors[j]:
                    rows[at], cols[at], values[at] = r, j, products[r, j]
                    at += 1
    return rows, cols, values


@nb.njit(cache=True)
def _enter(ids, sims, codes, candidates, rows, cols, values):
    """Insert ``cols`` into the lists of ``rows`` with their similarities; a full list drops its last entry.

    A list has the best k entries, the node itself included. The node itself has similarity 1 and is sorted among ties
    by id. So a list keeps k other nodes only if all of them are sorted before the node itself.
    """
    k, coded = ids.shape[1], codes.shape[1]
    for e in range(rows.size):
        i, j = rows[e], cols[e]
        s = min(max(values[e], np.float32(0)), np.float32(1))
        at = k
        while at > 0 and (ids[i, at - 1] < 0 or sims[i, at - 1] < s or (sims[i, at - 1] == s and ids[i, at - 1] > j)):
            at -= 1
            if at + 1 < k:
                ids[i, at + 1], sims[i, at + 1] = ids[i, at], sims[i, at]
                if at + 1 < coded:
                    codes[i, at + 1] = codes[i, at] if at + 1 < candidates else np.int8(-128)
        if at < k:
            ids[i, at], sims[i, at] = j, s
            if at < coded:
                codes[i, at] = -128
        if ids[i, k - 1] >= 0 and not (sims[i, k - 1] >= 1 and ids[i, k - 1] < i):
            ids[i, k - 1], sims[i, k - 1] = -1, 0
            if k <= coded:
                codes[i, k - 1] = -128
