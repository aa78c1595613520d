"""kNN lists that instances are added to and removed from.

The lists are under the contract of :mod:`starfc.graph.neighbours` and stay those that a search of everything would
find: new instances are compared with all others, a new one enters every list whose last similarity it exceeds, and a
list that lost an instance is searched again. Between similarities that were clipped to 0 there is no order to keep: a
full list that ends in such takes no further one.

Beside each entry of the first columns stands the code of its first-round logit (:mod:`starfc.graph.structure`), where
the model is structural: it moves with its entry.
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
from starfc.graph.rerank import ROUNDING, SUMMATION, products_of, rerank
from starfc.graph.structure import NO_LOGIT
from starfc.runtime import threads
from starfc.runtime.half import single
from starfc.runtime.products import product_dtype, slices
from starfc.runtime.progress import progress

_ROWS, _COLUMNS = 512, 1024  # of a tile: 1 or 2 MiB of products
_SMALL = 1 << 14  # below this many rows float32 is as fast
_KEEP = 2  # times k candidates are kept of rounded products
_ROUNDED = 2.0**-7 + 2.0**-16 + SUMMATION  # ε of rounded unit vectors: r <= 2^-8, and r + (1 + r) r
_LOWEST = 0.05  # floors above it, and what may round to them, are positive


@dataclass
class Lists:
    """kNN lists of N rows, k columns; arrays are changed in place.

    ``ids`` and ``sims`` (N, k); ``alive`` (N,) bool, rows that can be neighbours: valid ones that were not removed.
    ``codes`` (N, columns) int8 and ``known`` (N,) bool: first-round logits, and rows without a candidate that lacks its
    own; no columns where the model has none. ``candidates``: columns that have codes.
    """

    ids: NDArray[np.integer]
    sims: NDArray[np.float32]
    alive: NDArray[np.bool_]
    codes: NDArray[np.int8]
    known: NDArray[np.bool_]
    candidates: int

    @property
    def graph(self) -> KnnGraph:
        return KnnGraph(self.ids, self.sims)

    def __len__(self) -> int:
        return len(self.ids)

    def grown(self, alive: NDArray[np.bool_]) -> Lists:
        """With rows at the end whose lists are empty."""
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
        """Empty the lists of some rows, which are neighbours no more; other lists hold them until searched for anew."""
        self.alive[rows] = False
        self.ids[rows], self.sims[rows] = -1, 0
        self.codes[rows], self.known[rows] = NO_LOGIT, False

    def search(self, features: Features, first: int, removed: NDArray[np.int64]) -> Step:
        """What comes into the lists, after :meth:`remove`.

        The lists of the rows from ``first`` on are found, those that removed rows stood in are found anew, and the new
        rows come into the lists of others.
        """
        k, n = self.ids.shape[1], len(self)
        short = np.empty(0, np.int64)
        if removed.size:
            mark = np.zeros(n + 1, np.bool_)  # the last is what a missing entry, -1, points to
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
        """Take over what a search found."""
        self.ids[step.queries], self.sims[step.queries] = step.ids, step.sims
        self.codes[step.queries], self.known[step.queries] = NO_LOGIT, False
        _enter(self.ids, self.sims, self.codes, self.candidates, step.rows, step.cols, step.values)


@dataclass(frozen=True)
class Step:
    """What a step did to the lists: rows that were ``removed`` (r,), and what came into the lists.

    These are the lists (m, k) of ``queries`` (m,), and entries (e,) that are offered to the lists of others: ``rows``
    rise, and with them ``cols``; ``values`` are their similarities.
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
        return sum(array.nbytes for array in vars(self).values())

    def touched(self, first: int) -> NDArray[np.int64]:
        """Rows before ``first``, the first new one, whose lists this may have changed, rising."""
        others = self.rows[np.flatnonzero(np.diff(self.rows, prepend=-1))].astype(np.int64)
        return np.union1d(others, self.queries[self.queries < first]) if self.removed.size else others


@dataclass(frozen=True)
class StoredLists:
    """Lists as files have them: as they were, and what the steps since did to them.

    ``ids`` and ``sims`` (n, k) are of the first n of N rows; ``alive`` (N,) and ``codes`` (N, columns) as now.
    """

    ids: NDArray[np.integer]
    sims: NDArray[np.float32]
    steps: list[Step]
    alive: NDArray[np.bool_]
    codes: NDArray[np.int8]
    candidates: int

    def grown(self, alive: NDArray[np.bool_]) -> Lists:
        """The lists as they are now, with rows at the end whose lists are empty: read into their place at once."""
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
    """The k best of some rows among those alive, and (row, query, product) of the rows before ``first`` it reaches.

    A row's floor is what the product with a query from ``first`` on must exceed. Where bfloat16 is faster, its products
    select and float32 decides (:mod:`starfc.graph.exact`); a query that is not certain then is searched for again.
    """
    n, least = len(features), float(floor.min(initial=np.inf))
    if product_dtype() != torch.bfloat16 or n < _SMALL or not least > _LOWEST:
        pools, (rows, cols, values) = _products(features, alive, queries, k, floor, first, torch.float32)
        return *sorted_pools(pools, k), (rows, cols, values)
    low = np.where(np.isinf(floor), floor, (floor - _ROUNDED) * (1 - ROUNDING)).astype(np.float32)
    bits = (low.view(np.uint32) >> 16).astype(np.int16)  # cut off: not above the value
    pools, (rows, cols, _) = _products(features, alive, queries, min(n, _KEEP * k), bits, first, torch.bfloat16)
    sims, ids = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), id_dtype(n))
    certain, names = np.empty(len(queries), np.bool_), np.arange(n, dtype=id_dtype(n))

    def exact(part: slice) -> None:
        error = np.full(part.stop - part.start, _ROUNDED, np.float32)
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
    """Pools of the best of some rows, and (row, query, product) above the rows' floors, by products of a dtype."""
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
                rounded[lost] = 0  # they may not be finite
            for mine, vectors, pool, lock in parts:
                products = buffer[: len(mine) * size].view(len(mine), size)
                torch.mm(vectors, rounded[:size].T, out=products)
                if len(lost):
                    products[:, lost] = -torch.inf
                with lock:
                    pool.offer_rows(products, start, np.arange(len(mine)))
                new = int((mine >= first).sum())  # they come first among the queries
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
    """Rows of :attr:`starfc.data.dataset.Features.scaled`, normalised, into the first rows of ``out``, float32."""
    for i in range(scale.size):
        for c in range(array.shape[1]):
            out[i, c] = single(array[i, c]) * scale[i]


@nb.njit(cache=True, nogil=True)
def _above(products, floors):
    """Where products (m, c) exceed the floors (<= c,) of their columns: rows, columns and values."""
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
    """Put cols into the lists of rows, with their similarities; what falls out of a full list is gone.

    A list holds the best k of all with the node itself counted: of k others the last stays only where all of them come
    before the node itself, which has similarity 1 and its own place among ties.
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
