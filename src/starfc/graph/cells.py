"""Divide rows into cells (spherical k-means), and offer each row the members of its nearest cells as neighbours.

This is an inverted file that is read cell by cell instead of query by query. All rows of a chunk that probe a cell are
multiplied with all members of the cell at once: one matrix product instead of many vector products. A chunk is a
contiguous part of the cell order, so its rows are near each other and probe the same cells. In another partition they
probe more cells; a cell that only few rows probe is read by a compiled loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

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
from starfc.runtime.device import block_rows, retry_smaller, uses_torch
from starfc.runtime.half import number
from starfc.runtime.products import product_dtype, slices

Rows = Callable[[slice | NDArray[np.integer]], Tensor]  # returns the features of some rows, in any number type

_SAMPLE = 16  # rows per cell on which k-means runs
_ITERATIONS = 4
_NEAR_GROUPS = 16  # groups in which the nearest cells of a row are searched
_BLOCK = 1 << 16  # rows whose nearest centroids are searched at a time
_TILE = 1024
_ROWS, _COLUMNS = 512, 2048  # a product has at most 512 x 2048 entries, 2 MiB; most cells fit into one
_FEW_ROWS = 16  # up to this number of rows that probe a cell, a compiled loop is faster than a matrix product
_PRODUCTS = 1 << 24  # maximum number of products with centroids at a time on a device
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
        device = self.vectors.device
        points = points.to(device, product_dtype(device))
        search = _nearest_in_torch if uses_torch(device) else _nearest
        out = np.empty((len(points), count), np.int32)
        rows, starts = _by_cell(search(points, self.coarse, 1)[:, 0], len(self.coarse))
        for group in np.flatnonzero(np.diff(starts)).tolist():
            mine = rows[starts[group] : starts[group + 1]]
            names = np.concatenate([np.arange(self.starts[g], self.starts[g + 1]) for g in self.near[group]])
            chosen, some = (x[torch.from_numpy(at).to(device)] for x, at in ((points, mine), (self.vectors, names)))
            out[mine] = names[search(chosen, some, count)]
        return out

    def to(self, device: str | torch.device) -> Centroids:
        """Return the same centroids on another device, where :meth:`nearest` then makes its products."""
        return replace(self, vectors=self.vectors.to(device), coarse=self.coarse.to(device))

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


def make_cells(features: Features, count: int, seed: int = 0, device: str | torch.device = "cpu") -> Cells:
    """Divide the rows of features into about ``count`` cells (:func:`divide`)."""
    return divide(lambda rows: torch.from_numpy(features.rows(rows)), len(features), count, seed, device)


def divide(rows_of: Rows, n: int, count: int, seed: int = 0, device: str | torch.device = "cpu") -> Cells:
    """Divide n rows into about ``count`` cells by spherical k-means in two levels, on 16 sampled rows per cell.

    The sample is divided into about √count groups, and each group into a number of cells that is proportional to its
    share of the sample. k-means runs 4 iterations. Then each row goes to its nearest centroid, on ``device``. k-means
    itself runs on the CPU, where its sums have one order.
    """
    rng = np.random.default_rng(seed)
    points = rows_of(np.sort(rng.choice(n, min(n, _SAMPLE * count), replace=False))).float().cpu()
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
    there = centroids.to(device)
    cell_of = _assign(lambda rows: there.nearest(rows_of(rows), 1)[:, 0], n)
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
class Offers:
    """Groups of rows, and the candidates that all rows of a group are compared with.

    Group g has the rows ``rows[row_starts[g] : row_starts[g + 1]]``, counted from the first place of a chunk, and the
    places ``names[name_starts[g] : name_starts[g + 1]]`` as candidates.
    """

    rows: NDArray[np.integer]
    row_starts: NDArray[np.int64]
    names: NDArray[np.integer]
    name_starts: NDArray[np.int64]

    def groups(self, least: int) -> Iterator[tuple[NDArray[np.integer], NDArray[np.integer]]]:
        """Yield rows and candidates of each group of at least ``least`` rows."""
        for group in np.flatnonzero(np.diff(self.row_starts) >= least).tolist():
            yield (
                self.rows[self.row_starts[group] : self.row_starts[group + 1]],
                self.names[self.name_starts[group] : self.name_starts[group + 1]],
            )


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
    blocks: ClassVar[int] = 1  # blocks of a sweep that are offered at a time

    @classmethod
    def of(cls, features: Features, names: NDArray[np.integer]) -> Members:
        """Return the rows in the order ``names``."""
        return cls(cls.rounded(features, names, product_dtype()), names)

    @staticmethod
    def rounded(features: Features, names: NDArray[np.integer], dtype: torch.dtype) -> Tensor:
        """Return the rows ``names`` of features in a number type, (N, d)."""
        vectors = torch.empty(len(features), features.dim, dtype=dtype)

        def fill(places: slice) -> None:
            vectors[places] = torch.from_numpy(features.rows(names[places]))

        threads.each(fill, slices(len(features), _BLOCK))
        return vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def at(self, places: slice | NDArray[np.integer]) -> Tensor:
        """Return the vectors at some places."""
        return self.vectors[places if isinstance(places, slice) else torch.from_numpy(places)]

    def pools(self, count: int, lists: KnnGraph | None, wanted: int, keep: int) -> Any:
        """Return pools for a chunk of ``count`` rows, which hold its present lists (:meth:`Pools.of_lists`) if any."""
        dtype, id_type = self.vectors.dtype, id_dtype(len(self))
        if lists is None:
            return Pools.empty(count, keep, dtype, id_type)
        return Pools.of_lists(lists, wanted, keep, dtype)

    def offer(self, pools: Any, offers: Offers, start: int, known: NDArray[np.integer] | None) -> None:
        """Offer the rows of a chunk that begins at ``start`` their candidates, except for those in ``known`` (m, k).

        Each group is a matrix product. Groups of few rows are read by a compiled loop.
        """
        counts = np.diff(offers.row_starts)
        few = (counts > 0) & (counts <= _FEW_ROWS)
        pools.offer_members(
            numeric(self.vectors), start, offers.rows[np.repeat(few, counts)],
            np.repeat(np.flatnonzero(few), counts[few]), offers.names, offers.name_starts, known,
        )  # fmt: skip
        buffer = torch.empty(_ROWS * _COLUMNS, dtype=self.vectors.dtype)
        for mine, inside in offers.groups(_FEW_ROWS + 1):
            for rows in slices(len(mine), _ROWS):
                left = self.at(start + padded(mine[rows]))
                for part in slices(len(inside), len(buffer) // len(left) // _EDGE * _EDGE):
                    others = self.at(padded(inside[part]))
                    products = buffer[: len(left) * len(others)].view(len(left), len(others))
                    torch.mm(left, others.T, out=products)
                    pools.offer_new(products, inside[part], mine[rows], known)


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
    # The nearest cells first: this raises the floors, and most later products are skipped.
    for some in (probed[:, :1], probed[:, 1:]):
        queries, starts = _by_cell(some.ravel(), len(cells))
        queries //= max(1, some.shape[1])
        members.offer(pools, Offers(queries, starts, cells.order, cells.starts), chunk.start, known)


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


def _nearest_in_torch(points: Tensor, centroids: Tensor, count: int) -> NDArray[np.int32]:
    """Do the same as :func:`_nearest` on any device, in torch.

    Many products of bfloat16 are equal, and the first of them comes first. So each is lowered a little by its column,
    by less than its distance to the next one of bfloat16 (up to 8,192 columns).
    """
    ids, centroids = np.empty((len(points), count), np.int32), centroids.to(points.dtype)
    lower = 2.0**-23 if points.dtype == torch.bfloat16 else 0.0
    columns = torch.arange(len(centroids), device=points.device)

    def search(allowed: int) -> None:
        step = block_rows(allowed // 4, 16 * len(centroids), max(1, _PRODUCTS // len(centroids)))
        for rows in slices(len(points), step):
            products = (points[rows] @ centroids.T).float()
            products -= lower * columns * products.abs()
            ids[rows] = products.topk(count).indices.cpu().numpy()

    retry_smaller(search, points.device)
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
