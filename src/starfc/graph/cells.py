"""Divide features into cells (spherical k-means), and search approximate neighbours in each row's nearest cells.

This is an inverted file that is read cell by cell instead of query by query. All rows of a chunk that probe a cell are
multiplied with all members of the cell at once: one matrix product instead of many vector products. A chunk is a
contiguous part of the cell order, so its rows are near each other and probe the same cells. Products are computed in
bfloat16 where this is faster. The similarities of the selected candidates are computed again in float32.
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

_SAMPLE = 64  # rows per cell on which k-means runs
_ITERATIONS = 6
_BLOCK = 1 << 13
_TILE = 1024
_ROWS, _COLUMNS = 512, 2048  # maximum size of a product, 2 MiB; most cells fit into one
_EDGE = 64  # sizes of products are rounded up to multiples of this, so that there are few shapes to compile


@dataclass(frozen=True)
class Cells:
    """A division of N rows into C cells. Consecutive cells are similar.

    ``centroids`` (C, d) float32 have norm 1. ``order`` (N,) are the ids of the rows, cell by cell: the members of cell
    c are ``order[starts[c] : starts[c + 1]]``.
    """

    centroids: Tensor
    order: NDArray[np.integer]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.centroids)


def make_cells(features: Features, count: int, seed: int = 0) -> Cells:
    """Divide the rows into ``count`` cells: k-means on a sample, then each row goes to its nearest centroid.

    The sample has 64 rows per cell; k-means runs 6 iterations.
    """
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
    """Return the ``count`` nearest centroids of each point, nearest first, (n, count) integers.

    ``points`` (n, d) and ``centroids`` (C, d) are float32.
    """
    ids = _nearest(points, centroids, count, product_dtype())
    short = ids[:, -1] < 0  # bfloat16 pools ignore products below 0, so a row may have found too few
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
    """Find the k most similar rows of each row, itself included, among the members of its ``probes`` nearest cells.

    Parameters
    ----------
    chunks : iterable of slices
        The rows to search, as slices of ``cells.order``.
    finished : function (chunk, rows, sims, ids)
        Is called for each chunk, in any order and from any thread, with its rows (m,), and their similarities and ids
        (m, k), sorted by decreasing similarity. If a row has fewer than k candidates, the rest is -inf and -1.
    """
    n = len(features)
    members = torch.zeros(n + _EDGE, features.dim, dtype=product_dtype())

    def fill(rows: slice) -> None:
        members[rows] = torch.from_numpy(features.rows(cells.order[rows]))

    threads.each(fill, slices(n, _BLOCK))
    # The search is approximate, so no error bound is needed; k / 4 more candidates keep the recall high.
    error = np.zeros(n, np.float32)
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

        # Search each row's own cell first: this raises the floors, and most later products are skipped.
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
    """Round up to a multiple of :data:`_EDGE`."""
    return -(-size // _EDGE) * _EDGE


def _nearest(points: Tensor, centroids: Tensor, count: int, dtype: torch.dtype) -> NDArray[np.integer]:
    """Return the ``count`` nearest centroids of each point by products in ``dtype``; -1 where too few were found."""
    pools = Pools.empty(len(points), count, dtype, np.int32)
    points, centroids = points.to(dtype), centroids.to(dtype)
    for rows in slices(len(points), _TILE):
        mine = np.arange(rows.start, rows.stop)
        for some in slices(len(centroids), _TILE):
            pools.offer_rows(points[rows] @ centroids[some].T, some.start, mine)
    return sorted_pools(pools, count)[1]


def _assign(rows_of: Callable[[slice], Tensor], n: int, centroids: Tensor) -> NDArray[np.int32]:
    """Return the nearest centroid of each of n rows, (n,); ``rows_of`` returns the features of a slice of rows."""
    nearest = np.empty(n, np.int32)

    def work(rows: slice) -> None:
        nearest[rows] = nearest_cells(rows_of(rows), centroids, 1)[:, 0]

    threads.each(work, slices(n, _BLOCK))
    return nearest


def _beside_each_other(centroids: Tensor) -> NDArray[np.integer]:
    """Return an order of the centroids in which similar ones are close to each other."""
    near = nearest_cells(centroids, centroids, min(len(centroids), 16))
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
