"""Divide rows into cells (spherical k-means), and offer each row the members of its nearest cells as neighbours.

This is an inverted file that is read cell by cell instead of query by query. All rows of a chunk that probe a cell are
multiplied with all members of the cell at once: one matrix product instead of many vector products. A chunk is a
contiguous part of the cell order, so its rows are near each other and probe the same cells. In another partition they
probe more cells; a cell that only few rows probe is read by a compiled loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numba as nb
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from starfc.data.dataset import Features
from starfc.graph.neighbours import KnnGraph, id_dtype
from starfc.graph.order import locality_order
from starfc.graph.pools import Pools, numeric, sorted_pools
from starfc.runtime import threads
from starfc.runtime.half import number
from starfc.runtime.products import product_dtype, slices

Rows = Callable[[slice | NDArray[np.integer]], Tensor]  # returns the features of some rows, in any number type

_SAMPLE = 16  # rows per cell on which k-means runs
_ITERATIONS = 4
_NEAR_GROUPS = 16  # groups in which the nearest cells of a row are searched
_BLOCK = 1 << 16  # rows whose nearest centroids are searched at a time
_TILE = 1024
_ROWS, _COLUMNS = 512, 2048  # maximum size of a product, 2 MiB; most cells fit into one
_FEW_ROWS = 16  # up to this number of rows that probe a cell, a compiled loop is faster than a matrix product
_EDGE = 64  # sizes of products are rounded up to multiples of this, so that there are few shapes to compile


@dataclass(frozen=True)
class Centroids:
    """C centroids in about √C groups, so that the nearest ones are found without comparing with all.

    Attributes
    ----------
    vectors : (C, d) float32
        The centroids, of norm 1, group by group. Consecutive centroids are similar.
    coarse : (G, d) float32
        The centroid of each group.
    starts : (G + 1,) int64
        Group g has the centroids ``starts[g] : starts[g + 1]``.
    near : (G, n) integers
        The groups nearest to each group, itself included. The nearest centroids of a row are searched in these groups
        of its nearest group. If there are at most 16 groups, these are all of them.
    """

    vectors: Tensor
    coarse: Tensor
    starts: NDArray[np.int64]
    near: NDArray[np.integer]

    def __len__(self) -> int:
        return len(self.vectors)

    def nearest(self, points: Tensor, count: int) -> NDArray[np.integer]:
        """Return the ``count`` nearest centroids of each point, nearest first, (n, count) integers.

        ``points`` (n, d) are of any number type; ``count`` is at most :attr:`searched`.
        """
        points = points.to(product_dtype())
        out = np.empty((len(points), count), np.int32)
        rows, starts = _by_cell(_nearest_one(points, self.coarse), len(self.coarse))
        for group in np.flatnonzero(np.diff(starts)).tolist():
            mine = rows[starts[group] : starts[group + 1]]
            names = np.concatenate([np.arange(self.starts[g], self.starts[g + 1]) for g in self.near[group]])
            chosen, some = points[torch.from_numpy(mine)], self.vectors[torch.from_numpy(names)]
            out[mine] = names[_nearest(chosen, some, count)]
        return out

    @property
    def searched(self) -> int:
        """The least number of centroids that a row is compared with."""
        return int(np.diff(self.starts)[self.near].sum(axis=1).min())


@dataclass(frozen=True)
class Cells:
    """A division of N rows into C cells: each row is in the cell of its nearest centroid.

    ``order`` (N,) are the rows, cell by cell: the members of cell c are ``order[starts[c] : starts[c + 1]]``.
    """

    centroids: Centroids
    order: NDArray[np.integer]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.centroids)


def make_cells(features: Features, count: int, seed: int = 0) -> Cells:
    """Divide the rows of features into about ``count`` cells (:func:`divide`)."""
    return divide(lambda rows: torch.from_numpy(features.rows(rows)), len(features), count, seed)


def divide(rows_of: Rows, n: int, count: int, seed: int = 0) -> Cells:
    """Divide n rows into about ``count`` cells by spherical k-means in two levels, on 16 sampled rows per cell.

    The sample is divided into about √count groups, and each group into a number of cells that is proportional to its
    share of the sample. k-means runs 4 iterations. Then each row goes to its nearest centroid.
    """
    rng = np.random.default_rng(seed)
    points = rows_of(np.sort(rng.choice(n, min(n, _SAMPLE * count), replace=False))).float()
    groups = max(1, round(math.sqrt(count)))
    coarse = _means(points, groups, rng)
    coarse = coarse[torch.from_numpy(_beside_each_other(coarse))]
    order, starts = _by_cell(_assign(lambda rows: _nearest_one(points[rows], coarse), len(points)), groups)
    used = np.diff(starts) > 0
    coarse, starts, groups = coarse[torch.from_numpy(used)], np.append(starts[:-1][used], starts[-1]), int(used.sum())
    shares = np.ceil(np.diff(starts) * (count / len(points))).astype(np.int64)
    seeds = rng.integers(0, 2**32, groups)

    def split(group: int) -> Tensor:
        mine = points[torch.from_numpy(order[starts[group] : starts[group + 1]])]
        means = _means(mine, int(shares[group]), np.random.default_rng(seeds[group]))
        return means[torch.from_numpy(_beside_each_other(means))]

    parts = threads.results(split, range(groups))
    ends = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    near = _nearest(coarse.to(product_dtype()), coarse, min(groups, _NEAR_GROUPS))
    centroids = Centroids(torch.cat(parts), coarse, ends, near)
    cell_of = _assign(lambda rows: centroids.nearest(rows_of(rows), 1)[:, 0], n)
    order, starts = _by_cell(cell_of, len(centroids))
    return Cells(centroids, order.astype(id_dtype(n), copy=False), starts)


def _means(points: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Return ``count`` centroids (count, d) of points by spherical k-means; count <= number of points."""
    means = points[torch.from_numpy(rng.choice(len(points), count, replace=False))].clone()
    for _ in range(_ITERATIONS if count > 1 else 1):
        nearest = torch.from_numpy(_nearest_one(points, means)).long()
        sums = torch.zeros_like(means).index_add_(0, nearest, points)
        empty = torch.bincount(nearest, minlength=count) == 0
        sums[empty] = points[torch.from_numpy(rng.choice(len(points), int(empty.sum()), replace=False))]
        means = functional.normalize(sums, dim=1)
    return means


@dataclass(frozen=True)
class Members:
    """All N rows of a set as a search reads them: in an order that places similar rows beside each other.

    Attributes
    ----------
    vectors : (N, d) float32 or bfloat16
        The features, in the number type of the products.
    names : (N,) integers
        The row of the set at each place.
    """

    vectors: Tensor
    names: NDArray[np.integer]

    @classmethod
    def of(cls, features: Features, names: NDArray[np.integer]) -> Members:
        vectors = torch.empty(len(features), features.dim, dtype=product_dtype())

        def fill(places: slice) -> None:
            vectors[places] = torch.from_numpy(features.rows(names[places]))

        threads.each(fill, slices(len(features), _BLOCK))
        return cls(vectors, names)

    def __len__(self) -> int:
        return len(self.vectors)

    def at(self, places: slice | NDArray[np.integer]) -> Tensor:
        """Return the vectors at some places."""
        return self.vectors[places if isinstance(places, slice) else torch.from_numpy(places)]


def nearest_cells(points: Tensor, cells: Cells, probes: int) -> NDArray[np.integer]:
    """Return the ``probes`` nearest cells of points (m, d), nearest first, (m, probes)."""
    return np.concatenate([cells.centroids.nearest(points[part], probes) for part in slices(len(points), _BLOCK)])


def probe_cells(
    members: Members,
    cells: Cells,
    probed: NDArray[np.integer],
    chunk: slice,
    known: NDArray[np.integer] | None,
    pools: Pools,
) -> None:
    """Offer each place of a chunk (m places) the members of the cells that it probes (m, probes), nearest first.

    ``cells`` divide the places of ``members``. ``known`` (m, k) are the present lists of the chunk, and ``pools`` its
    pools; candidates are places.
    """
    buffer = torch.empty(_ROWS * _COLUMNS, dtype=members.vectors.dtype)
    # The nearest cells first: this raises the floors, and most later products are skipped.
    for some in (probed[:, :1], probed[:, 1:]):
        queries, starts = _by_cell(some.ravel(), len(cells))
        queries //= max(1, some.shape[1])
        counts = np.diff(starts)
        few = (counts > 0) & (counts <= _FEW_ROWS)
        pools.offer_members(
            numeric(members.vectors), chunk.start, queries[np.repeat(few, counts)],
            np.repeat(np.flatnonzero(few), counts[few]), cells.order, cells.starts, known,
        )  # fmt: skip
        for cell in np.flatnonzero(counts > _FEW_ROWS).tolist():
            mine = queries[starts[cell] : starts[cell + 1]]
            inside = cells.order[cells.starts[cell] : cells.starts[cell + 1]]
            for part in slices(len(inside), _COLUMNS):
                names = inside[part]
                others = members.at(padded(names))
                for rows in slices(len(mine), _ROWS):
                    left = members.at(chunk.start + padded(mine[rows]))
                    products = buffer[: len(left) * len(others)].view(len(left), len(others))
                    torch.mm(left, others.T, out=products)
                    pools.offer_new(products, names, mine[rows], known)


def padded(names: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return names repeated up to the next multiple of :data:`_EDGE`."""
    return np.resize(names, -(-len(names) // _EDGE) * _EDGE)


def _nearest(points: Tensor, centroids: Tensor, count: int) -> NDArray[np.integer]:
    """Return the ``count`` nearest centroids of each point, nearest first, (n, count); count <= their number."""
    if count == 1:
        return _nearest_one(points, centroids)[:, None]
    ids = _best(points, centroids.to(points.dtype), count)
    short = ids[:, -1] < 0  # bfloat16 pools ignore products below 0, so a row may have found too few
    if short.any():
        ids[short] = _best(points[torch.from_numpy(short)].float(), centroids.float(), count)
    return ids


def _best(points: Tensor, centroids: Tensor, count: int) -> NDArray[np.integer]:
    """Return the ``count`` columns of the largest products, (n, count); -1 where there are too few of at least 0."""
    pools = Pools.empty(len(points), count, points.dtype, np.int32)
    for rows in slices(len(points), _TILE):
        mine = np.arange(rows.start, rows.stop)
        for some in slices(len(centroids), _TILE):
            pools.offer_rows(points[rows] @ centroids[some].T, some.start, mine)
    return sorted_pools(pools, count)[1]


def _nearest_one(points: Tensor, centroids: Tensor) -> NDArray[np.int32]:
    """Return the nearest centroid of each point, (n,); of equal products the first."""
    points, centroids = points.to(product_dtype()), centroids.to(product_dtype())
    best = np.zeros(len(points), np.int32)
    for rows in slices(len(points), _ROWS):
        most = np.full(rows.stop - rows.start, -np.inf, np.float32)
        for some in slices(len(centroids), _COLUMNS):
            _larger(numeric(points[rows] @ centroids[some].T), some.start, most, best[rows])
    return best


@nb.njit(cache=True, nogil=True)
def _larger(products, first, most, best):
    """Where a row has a larger product than ``most`` (n,), replace that, and set ``best`` (n,) to its column.

    Products are float32, or the bits of bfloat16 as int16. The bits of negative numbers are below those of positive
    ones, but in reverse order. ``first`` is added to the columns.
    """
    for r in range(products.shape[0]):
        row = products[r]
        largest = row[0]
        for c in range(row.size):
            largest = max(largest, row[c])
        if products.itemsize == 2 and largest < 0:
            for c in range(row.size):
                largest = min(largest, row[c])
        if number(largest) > most[r]:
            most[r] = number(largest)
            at = 0
            while row[at] != largest:
                at += 1
            best[r] = first + at


def _assign(cells_of: Callable[[slice], NDArray[np.integer]], n: int) -> NDArray[np.int32]:
    """Return the cell of each of n rows, (n,); ``cells_of`` returns those of a slice of rows."""
    found = np.empty(n, np.int32)

    def work(rows: slice) -> None:
        found[rows] = cells_of(rows)

    threads.each(work, slices(n, _BLOCK))
    return found


def _beside_each_other(centroids: Tensor) -> NDArray[np.integer]:
    """Return an order of the centroids in which similar ones are close to each other."""
    near = _nearest(centroids.to(product_dtype()), centroids, min(len(centroids), 16))
    return locality_order(KnnGraph(near, np.ones(near.shape, np.float32)))


@nb.njit(cache=True, nogil=True)
def _by_cell(cell_of, count):
    """Return the positions sorted by cell (stable counting sort), and the start of each cell (count + 1,)."""
    starts = np.zeros(count + 1, np.int64)
    for c in cell_of:
        starts[c + 1] += 1
    for c in range(count):
        starts[c + 1] += starts[c]
    cursor = starts[:-1].copy()
    order = np.empty(cell_of.size, np.int64)
    for at in range(cell_of.size):
        order[cursor[cell_of[at]]] = at
        cursor[cell_of[at]] += 1
    return order, starts
