"""Exact kNN of a set within itself.

Similarity is symmetric: the product of two row blocks F_I F_Jᵀ serves the rows of I and, read by columns, those of J,
so half of the products that a general search makes are enough. Where the processor multiplies bfloat16 several times
faster than float32, products are made of features rounded to it, and what they select is certain all the same:

* a rounded similarity s̃ is within ε_i + 2^-8 |s̃| of s, where ε_i = r_i + (1 + r_i) max_j r_j and r_i is the norm of
  what rounding took from f_i (Cauchy-Schwarz; 2^-8 is the rounding of the product itself);
* the best k + margin of every row by s̃ are kept, and what could be among the first k is computed in float32;
* a row is certain where the k-th similarity found exceeds every s that was left out. The few other rows are searched
  again, in float32 throughout.
"""

from __future__ import annotations

import logging
import math
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.data.dataset import Features, as_features
from starfc.graph.cells import make_cells
from starfc.graph.neighbours import id_dtype
from starfc.graph.pools import Pools, sorted_pools
from starfc.graph.rerank import SUMMATION, rerank
from starfc.runtime import threads
from starfc.runtime.products import product_dtype, slices
from starfc.runtime.progress import progress

log = logging.getLogger("starfc")

BLOCK = 1024  # 1024 x 1024 products, 2 or 4 MiB: they stay in a core's cache between product and selection
_ROWS = 512  # per block of the search of some rows
_CELL = 256  # rows per cell, on average
_SAMPLE = 1 << 13  # rows that say how high floors may start
_SMALL = 1 << 14  # below this many rows float32 is as fast


def exact_search(
    features: Features | NDArray[np.float32], k: int, block: int = BLOCK
) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """The k largest inner products of every row with all rows, itself included.

    Parameters
    ----------
    features : Features, or (N, d) float32 L2-normalised
    k : int
        1 <= k <= N.

    Returns
    -------
    sims (N, k) float32, ids (N, k)
        Rows fall by product; of equal products the lower ids come first and stay. Memory beyond the result: a bfloat16
        copy of the features and 1.5 (k + margin) candidates of 6 bytes a row.
    """
    features = as_features(features)
    if len(features) >= _SMALL and product_dtype() == torch.bfloat16:
        return rounded_search(features, k, block)
    matrix = torch.from_numpy(features.all())
    pools = Pools.empty(len(features), k, torch.float32, id_dtype(len(features)))
    _offer_tiles(matrix, pools, block)
    return sorted_pools(pools, k)


def rounded_search(features: Features, k: int, block: int = BLOCK) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """:func:`exact_search` by products of features rounded to bfloat16.

    Rows are taken cell by cell (:mod:`starfc.graph.cells`), so that neighbours find their candidates in the cache, and
    start with a floor that a sample of the rows says to be low enough: few products reach it.
    """
    n = len(features)
    keep = min(n, k + k // 4 + 4)
    order = make_cells(features, max(1, n // _CELL)).order
    rounded, residual = round_features(features, order)
    error = residual + (1 + residual) * residual.max(initial=0) + SUMMATION
    pools = Pools.empty(n, keep, torch.bfloat16, id_dtype(n))
    pools.floor[:] = _sampled_floors(rounded, keep)
    _offer_tiles(rounded, pools, block)
    del rounded
    sims, ids = np.empty((n, k), np.float32), np.empty((n, k), id_dtype(n))
    certain, scaled = np.empty(n, np.bool_), features.scaled

    def work(part: slice) -> None:
        rows = order[part]
        mine, my_ids = np.empty((len(rows), k), np.float32), np.empty((len(rows), k), id_dtype(n))
        certain[rows] = rerank(pools[part], scaled, rows, order, error[part], mine, my_ids)
        sims[rows], ids[rows] = mine, my_ids

    threads.each(work, slices(n, block))
    again = np.flatnonzero(~certain)
    if again.size:
        log.info("kNN graph: %d rows searched again in float32", again.size)
        sims[again], ids[again] = search_rows(features, again, k, sims[again, -1])
    return sims, ids


def round_features(features: Features, order: NDArray[np.integer]) -> tuple[Tensor, NDArray[np.float32]]:
    """Rows of the features in an order, rounded to bfloat16 (N, d), and the norm of what rounding took from each."""
    rounded = torch.empty(len(features), features.dim, dtype=torch.bfloat16)
    residual = np.empty(len(features), np.float32)
    for rows in features.blocks():
        block = torch.from_numpy(features.rows(order[rows]))
        rounded[rows] = block
        residual[rows] = torch.linalg.vector_norm(block - rounded[rows].float(), dim=1).numpy()
    return rounded, residual


def _sampled_floors(rounded: Tensor, keep: int) -> NDArray[np.float32] | NDArray[np.int16]:
    """A value of every row (bfloat16 bits) that its best ``keep`` products very likely reach.

    Of S sampled rows, keep · S / N are expected among a row's best ``keep``; so many, and four standard deviations and
    four more, are looked for in the sample, and the last of them is the floor. Where it is too high, as it will be for
    a row in 10^5, the row comes out uncertain.
    """
    n = len(rounded)
    sample = torch.from_numpy(np.random.default_rng(0).choice(n, min(n, _SAMPLE), replace=False))
    expected = keep * len(sample) / n
    found = Pools.empty(n, math.ceil(expected + 4 * math.sqrt(expected)) + 4, rounded.dtype, np.int32)
    columns = rounded[sample]

    def work(rows: slice) -> None:
        for part in slices(len(columns), BLOCK):
            found[rows].offer_rows(rounded[rows] @ columns[part].T, part.start, np.arange(rows.stop - rows.start))

    threads.each(work, slices(n, BLOCK))
    found.cut()
    return found.floor


def _offer_tiles(matrix: Tensor, pools: Pools, block: int) -> None:
    """Offer every pair of rows once, to the pool of either: first within blocks, then block by block."""
    blocks = slices(len(matrix), block)
    locks = [Lock() for _ in blocks]
    with progress("kNN graph", total=len(blocks) * (len(blocks) + 1) // 2, unit="block") as bar:

        def offer(at: int, others: range) -> None:
            i = blocks[at]
            buffer = torch.empty(block * block, dtype=matrix.dtype)
            for other in others:
                j = blocks[other]
                shape = (i.stop - i.start, j.stop - j.start)
                products = buffer[: shape[0] * shape[1]].view(shape)
                torch.mm(matrix[i], matrix[j].T, out=products)
                with locks[at]:
                    pools[i].offer_rows(products, j.start, np.arange(shape[0]))
                if other != at:
                    with locks[other]:
                        pools[j].offer_columns(products, i.start)
            bar.update(len(others))

        every = range(len(blocks))
        threads.each(lambda at: offer(at, range(at, at + 1)), every)
        threads.each(lambda at: offer(at, range(at + 1, len(blocks))), every)


def search_rows(
    features: Features, rows: NDArray[np.int64], k: int, known: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """The k best of some rows (m,) in float32, as :func:`exact_search` gives them: sims and ids (m, k).

    ``known`` (m,) are similarities that at least k of a row's reach, where such are known.
    """
    pools = Pools.empty(len(rows), k, torch.float32, id_dtype(len(features)))
    if known is not None:
        pools.floor[:] = known - 1e-5  # float32 sums of another order may fall that much lower
    parts = [(part, torch.from_numpy(features.rows(rows[part]))) for part in slices(len(rows), _ROWS)]
    with progress("kNN of some rows", total=len(features), unit="row") as bar:
        for columns in features.blocks():
            others = torch.from_numpy(features.rows(columns))

            def work(item: tuple[slice, Tensor], others: Tensor = others, first: int = columns.start) -> None:
                part, queries = item
                mine = np.arange(len(queries))
                for some in slices(len(others), BLOCK):
                    pools[part].offer_rows(queries @ others[some].T, first + some.start, mine)

            threads.each(work, parts)
            bar.update(columns.stop - columns.start)
    return sorted_pools(pools, k)
