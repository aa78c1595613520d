"""Cells of similar features (spherical k-means), and approximate kNN search within each row's nearest cells.

An inverted file that is read cell by cell instead of query by query: of a chunk of rows, all that probe a cell are
multiplied with all its members at once, a matrix product instead of many vector products. The rows of a chunk are
neighbours (a chunk is a run of the cells' order), so they probe the same cells. What the products select (rounded to
bfloat16 where that is faster) is computed again in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
from starfc.graph.pools import Pools, sorted_pools
from starfc.graph.rerank import rerank
from starfc.runtime import threads
from starfc.runtime.products import product_dtype, slices

_SAMPLE = 64  # rows per cell that k-means sees
_ITERATIONS = 6
_BLOCK = 1 << 13
_TILE = 1024
_ROWS, _COLUMNS = 512, 2048  # of a product: most cells in one piece, and 2 MiB
_EDGE = 64  # tiles are filled up to multiples of it: few shapes, each compiled once


@dataclass(frozen=True)
class Cells:
    """C cells of N rows.

    ``centroids`` (C, d) float32 of norm 1; ``order`` (N,) ids of the rows, cell by cell; the members of cell c are
    ``order[starts[c] : starts[c + 1]]``. Cells that stand together are similar.
    """

    centroids: Tensor
    order: NDArray[np.integer]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.centroids)


def make_cells(features: Features, count: int, seed: int = 0) -> Cells:
    """Cells by k-means on a sample of 64 rows per cell, 6 rounds; every row then goes to its nearest centroid."""
    rng = np.random.default_rng(seed)
    n = len(features)
    sample = np.sort(rng.choice(n, min(n, _SAMPLE * count), replace=False))
    points = torch.from_numpy(features.rows(sample))
    centroids = points[torch.from_numpy(rng.choice(len(points), count, replace=False))].clone()
    for _ in range(_ITERATIONS):
        nearest = torch.from_numpy(_assign(lambda rows: points[rows], len(points), centroids)).long()
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        empty = torch.bincount(nearest, minlength=count) == 0
        sums[empty] = points[torch.from_numpy(rng.choice(len(points), int(empty.sum()), replace=False))]
        centroids = functional.normalize(sums, dim=1)
    centroids = centroids[torch.from_numpy(_beside_each_other(centroids))]
    cell_of = _assign(lambda rows: torch.from_numpy(features.rows(rows)), n, centroids)
    order, starts = _by_cell(cell_of, count)
    return Cells(centroids, order.astype(id_dtype(n), copy=False), starts)


def nearest_cells(points: Tensor, centroids: Tensor, count: int) -> NDArray[np.integer]:
    """The ``count`` nearest centroids of every point, nearest first: (n, d) and (C, d) float32 -> (n, count)."""
    ids = _nearest(points, centroids, count, product_dtype())
    short = ids[:, -1] < 0  # bfloat16 pools take no products below 0
    if short.any():
        ids[short] = _nearest(points[torch.from_numpy(short)], centroids, count, torch.float32)
    return ids


def search_cells(
    features: Features,
    k: int,
    cells: Cells,
    probes: int,
    chunks: Iterable[slice],
    finished: Callable[[slice, NDArray[np.integer], NDArray[np.float32], NDArray[np.integer]], None],
) -> None:
    """The k most similar of every row among the members of its ``probes`` nearest cells, itself included.

    Parameters
    ----------
    chunks : iterable of slices
        Which rows to search, as slices of ``cells.order``.
    finished : callable
        Gets a chunk, its rows (m,), and their similarities and ids (m, k), in any order of chunks and from any thread.
        Rows fall by similarity; -inf and -1 fill what a row found too few for.
    """
    n = len(features)
    members = torch.zeros(n + _EDGE, features.dim, dtype=product_dtype())

    def fill(rows: slice) -> None:
        members[rows] = torch.from_numpy(features.rows(cells.order[rows]))

    threads.each(fill, slices(n, _BLOCK))
    error = np.zeros(n, np.float32)  # recall is what is asked for here, not certainty: k / 4 more candidates see to it
    keep, scaled = k + k // 4 + 8, features.scaled

    def work(chunk: slice) -> None:
        rows = cells.order[chunk]
        pools = Pools.empty(len(rows), keep, members.dtype, id_dtype(n))
        probed = np.concatenate(
            [
                nearest_cells(torch.from_numpy(features.rows(rows[part])), cells.centroids, probes)
                for part in slices(len(rows), _BLOCK)
            ]
        )
        queries, starts = _by_cell(probed.ravel(), len(cells))
        queries //= probes
        buffer = torch.empty(_ROWS * _COLUMNS, dtype=members.dtype)

        def offer(cell: int, mine: NDArray[np.int64]) -> None:
            for some in slices(len(mine), _ROWS):
                queries = members[torch.from_numpy(chunk.start + np.resize(mine[some], _ceil(some.stop - some.start)))]
                for part in slices(int(cells.starts[cell + 1] - cells.starts[cell]), _COLUMNS):
                    first, width = int(cells.starts[cell]) + part.start, part.stop - part.start
                    others = members[first : first + _ceil(width)]
                    products = buffer[: len(queries) * len(others)].view(len(queries), len(others))
                    torch.mm(queries, others.T, out=products)
                    pools.offer_rows(products, first, mine[some], width)

        # every row's own cell before all others: floors are high from then on
        bounds = np.clip(cells.starts - chunk.start, 0, len(rows))
        for cell in np.flatnonzero(np.diff(bounds)).tolist():
            offer(cell, np.arange(bounds[cell], bounds[cell + 1]))
        for cell in np.flatnonzero(np.diff(starts)).tolist():
            mine = queries[starts[cell] : starts[cell + 1]]
            offer(cell, mine[(mine < bounds[cell]) | (mine >= bounds[cell + 1])])
        sims, ids = np.empty((len(rows), k), np.float32), np.empty((len(rows), k), id_dtype(n))
        rerank(pools, scaled, rows, cells.order, error[chunk], sims, ids)
        finished(chunk, rows, sims, ids)

    threads.each(work, chunks)


def _ceil(size: int) -> int:
    return -(-size // _EDGE) * _EDGE


def _nearest(points: Tensor, centroids: Tensor, count: int, dtype: torch.dtype) -> NDArray[np.integer]:
    pools = Pools.empty(len(points), count, dtype, np.int32)
    points, centroids = points.to(dtype), centroids.to(dtype)
    for rows in slices(len(points), _TILE):
        mine = np.arange(rows.start, rows.stop)
        for some in slices(len(centroids), _TILE):
            pools.offer_rows(points[rows] @ centroids[some].T, some.start, mine)
    return sorted_pools(pools, count)[1]


def _assign(rows_of: Callable[[slice], Tensor], n: int, centroids: Tensor) -> NDArray[np.int32]:
    nearest = np.empty(n, np.int32)

    def work(rows: slice) -> None:
        nearest[rows] = nearest_cells(rows_of(rows), centroids, 1)[:, 0]

    threads.each(work, slices(n, _BLOCK))
    return nearest


def _beside_each_other(centroids: Tensor) -> NDArray[np.integer]:
    """An order of the centroids in which similar ones stand together."""
    near = nearest_cells(centroids, centroids, min(len(centroids), 16))
    return locality_order(KnnGraph(near, np.ones(near.shape, np.float32)))


@nb.njit(cache=True, nogil=True)
def _by_cell(cell_of, count):
    """Positions sorted by their cell (counting sort, stable), and where each cell starts."""
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
