"""Find the exact k nearest neighbours of all rows of a set among the rows of the same set.

Similarity is symmetric. The product of two row blocks F_I F_Jᵀ serves the rows of I and, read by columns, the rows of
J. So half of the products of a general search are enough. If the processor multiplies bfloat16 several times faster
than float32, the features are rounded to bfloat16 for the products. The result is still exact:

* A rounded similarity s̃ differs from s by at most ε_i + 2^-8 |s̃|, where ε_i = r_i + (1 + r_i) max_j r_j, and r_i is
  the norm of the rounding error of f_i (Cauchy-Schwarz). 2^-8 is the rounding error of the product itself.
* For each row, the best candidates by s̃ are kept. Those that could be among the first k are computed again in float32.
* A row is certain if its k-th similarity is above the largest possible s of all candidates that were dropped. The few
  other rows are searched again in float32.
* The denser the data, the more candidates lie within the error of the k-th one. A sample of the rows shows how many
  must be kept, so that nearly all rows are certain.
"""

from __future__ import annotations

import logging
import math
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.data.dataset import BLOCK_BYTES, Features, as_features
from starfc.graph.cells import make_cells
from starfc.graph.neighbours import id_dtype
from starfc.graph.pools import Pools
from starfc.graph.rerank import ROUNDING, SUMMATION, rerank
from starfc.runtime import threads
from starfc.runtime.products import product_dtype, slices
from starfc.runtime.progress import progress

log = logging.getLogger("starfc")

BLOCK = 1024  # rows per block: 1024 x 1024 products, 2 or 4 MiB, stay in a core's cache between product and selection
_ROWS = 512  # maximum number of rows per block in search_rows
_CELL = 256  # average number of rows per cell
_SAMPLE = 1 << 13  # number of sampled rows from which the initial floors are estimated
_SPARE = 8  # candidates beyond k that float32 products keep: more than the rows whose rounded products tie at the k-th
SMALL = 1 << 14  # with fewer rows, float32 is as fast
_MEASURED = 256  # number of sampled rows from which the number of candidates is estimated
MOST_KEPT = 3  # maximum number of candidates that are kept, in multiples of k


def exact_search(
    features: Features | NDArray[np.float32], k: int, block: int = BLOCK
) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """Return the k largest inner products of each row with all rows, itself included.

    Parameters
    ----------
    features : Features, or (N, d) float32 L2-normalised
    k : int
        1 <= k <= N.
    block : int
        Rows per block.

    Returns
    -------
    sims (N, k) float32, ids (N, k)
        Sorted by decreasing product. Of equal products, the lower ids are kept and come first. Products that are equal
        in exact arithmetic only, such as those of rows of 0 and 1 after normalisation, differ in their last bits. If
        more than 8 of them lie at the k-th place, float32 products with blocks of another size, or rounded ones, may
        keep others of them. Memory in addition to the result: a bfloat16 copy of the features, and up to 3 k + 64
        candidates of 6 bytes per row.
    """
    features = as_features(features)
    if len(features) >= SMALL and product_dtype() == torch.bfloat16:
        return rounded_search(features, k, block)
    n = len(features)
    pools = Pools.empty(n, min(n, k + _SPARE), torch.float32, id_dtype(n))
    _offer_tiles(torch.from_numpy(features.all()), pools, block)
    return _sorted(pools, features, np.arange(n), k)


def rounded_search(features: Features, k: int, block: int = BLOCK) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """Do the same as :func:`exact_search` with products of features rounded to bfloat16.

    Rows are processed cell by cell (:mod:`starfc.graph.cells`), so that the candidates of similar rows are in the
    cache. The initial floor of each row is estimated from a sample of the rows. Few products reach it.
    """
    n = len(features)
    order = make_cells(features, max(1, n // _CELL)).order
    rounded, residual = round_features(features, order)
    error = error_bound(residual, residual.max(initial=0))
    keep = _needed(features, order, rounded, error, k)
    pools = Pools.empty(n, keep, torch.bfloat16, id_dtype(n))
    pools.floor[:] = _sampled_floors(rounded, rounded[_sampled(n)], n, keep)
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
        log.debug("kNN graph: %d rows searched again in float32", again.size)
        sims[again], ids[again] = search_rows(features, again, k, sims[again, -1])
    return sims, ids


def round_features(features: Features, rows: NDArray[np.integer]) -> tuple[Tensor, NDArray[np.float32]]:
    """Return some rows (m,), rounded to bfloat16 (m, d), and the norm of each one's rounding error (m,)."""
    rounded = torch.empty(len(rows), features.dim, dtype=torch.bfloat16)
    residual = np.empty(len(rows), np.float32)
    for part in slices(len(rows), max(1, BLOCK_BYTES // (4 * max(1, features.dim)))):
        rounded[part], residual[part] = _rounded(features.rows(rows[part]))
    return rounded, residual


def _rounded(rows: NDArray[np.float32]) -> tuple[Tensor, NDArray[np.float32]]:
    block = torch.from_numpy(rows)
    rounded = block.bfloat16()
    return rounded, torch.linalg.vector_norm(block - rounded.float(), dim=1).numpy()


def error_bound(residual: NDArray[np.float32], largest: np.float32) -> NDArray[np.float32]:
    """Return ε of some rows (m,), from the norms of their rounding errors and the largest one of all rows."""
    return residual + (1 + residual) * largest + np.float32(SUMMATION)


def _needed(features: Features, order: NDArray[np.integer], rounded: Tensor, error: NDArray[np.float32], k: int) -> int:
    """Return the number of candidates with which nearly all rows are certain.

    A row is certain if the worst candidate that is kept has s̃ + ε + 2^-8 |s̃| < s_k, the exact k-th similarity. The
    result is the largest number that a sampled row needs, between k + k / 4 + 4 and 3 k.
    """
    n = len(rounded)
    sample = np.random.default_rng(0).choice(n, min(n, _MEASURED), replace=False)
    sims, _ = search_rows(features, order[sample].astype(np.int64), k)
    least = torch.from_numpy(sims[:, -1] - error[sample])[:, None]
    queries, most = rounded[torch.from_numpy(sample)], min(n, MOST_KEPT * k)

    def work(part: slice) -> Tensor:
        products = (queries @ rounded[part].T).float()
        return (products + ROUNDING * products.abs() >= least).sum(dim=1)

    needed = torch.stack(threads.results(work, slices(n, BLOCK))).sum(dim=0)
    return max(min(n, k + k // 4 + 4), min(int(needed.max()) + 1, most))


def _sampled(n: int) -> NDArray[np.int64]:
    """Return the rows from which floors are estimated."""
    return np.random.default_rng(0).choice(n, min(n, _SAMPLE), replace=False)


def _sampled_floors(queries: Tensor, sample: Tensor, n: int, keep: int) -> NDArray[np.float32] | NDArray[np.int16]:
    """Return a floor for each query (bfloat16 bits) that its best ``keep`` products with n rows very likely reach.

    Of S sampled rows, keep · S / n are expected to be among a row's best ``keep``. The search finds the best (expected
    count + 4 sigma + 4) rows of the sample; the worst of them gives the floor. For about one row in 10^5 the floor is
    too high; such a row is then not certain, and it is searched again.
    """
    expected = keep * len(sample) / n
    found = Pools.empty(len(queries), math.ceil(expected + 4 * math.sqrt(expected)) + 4, queries.dtype, np.int32)

    def work(rows: slice) -> None:
        for part in slices(len(sample), BLOCK):
            found[rows].offer_rows(queries[rows] @ sample[part].T, part.start, np.arange(rows.stop - rows.start))

    threads.each(work, slices(len(queries), BLOCK))
    found.cut()
    return found.floor


def _offer_tiles(matrix: Tensor, pools: Pools, block: int) -> None:
    """Compute the product of each pair of rows once and offer it to the pools of both rows.

    Pairs within a block come first, to raise the floors.
    """
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


def nearest_of_rows(
    features: Features, rows: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """Return similarities and ids (m, k) of the k most similar rows of some rows (m,), as :func:`exact_search` does.

    Where this is faster, products are made of features rounded to bfloat16, with the same proof that the result is
    exact; otherwise :func:`search_rows` makes them in float32.
    """
    n = len(features)
    if n < SMALL or product_dtype() != torch.bfloat16:
        return search_rows(features, rows, k)
    queries, residual = round_features(features, rows)
    pools = Pools.empty(len(rows), min(n, MOST_KEPT * k), torch.bfloat16, id_dtype(n))
    pools.floor[:] = _sampled_floors(queries, round_features(features, _sampled(n))[0], n, pools.keep)
    parts = [(queries[part], pools[part], Lock()) for part in slices(len(rows), BLOCK)]

    def work(columns: slice) -> np.float32:
        others, residual = _rounded(features.rows(columns))
        for mine, pool, lock in parts:
            products = mine @ others.T
            with lock:
                pool.offer_rows(products, columns.start, np.arange(len(mine)))
        bar.update(columns.stop - columns.start)
        return residual.max()

    with progress("kNN of some rows", total=n, unit="row") as bar:
        largest = max(threads.results(work, slices(n, BLOCK)))
    error = error_bound(residual, largest)
    sims, ids = np.empty((len(rows), k), np.float32), np.empty((len(rows), k), id_dtype(n))
    certain, scaled, names = np.empty(len(rows), np.bool_), features.scaled, np.arange(n, dtype=id_dtype(n))

    def finish(part: slice) -> None:
        certain[part] = rerank(pools[part], scaled, rows[part], names, error[part], sims[part], ids[part])

    threads.each(finish, slices(len(rows), BLOCK))
    again = np.flatnonzero(~certain)
    if again.size:
        sims[again], ids[again] = search_rows(features, rows[again], k, sims[again, -1])
    return sims, ids


def search_rows(
    features: Features, rows: NDArray[np.int64], k: int, known: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """Return similarities and ids (m, k) of the k most similar rows of some rows (m,), computed in float32.

    The result is as that of :func:`exact_search`. ``known`` (m,) are lower bounds on the k-th similarity of each row,
    if they are known; they make the search faster.
    """
    n = len(features)
    pools = Pools.empty(len(rows), min(n, k + _SPARE), torch.float32, id_dtype(n))
    if known is not None:
        pools.floor[:] = known - 1e-5  # a float32 sum in another order can be lower by this much
    step = min(_ROWS, max(16, len(rows) // 16))  # not of the number of threads, which must not change a last bit
    parts = [(part, torch.from_numpy(features.rows(rows[part]))) for part in slices(len(rows), step)]
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
    return _sorted(pools, features, rows, k)


def _sorted(
    pools: Pools, features: Features, rows: NDArray[np.integer], k: int
) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """Return the sorted best k of pools with float32 products, as :func:`starfc.graph.rerank.rerank` computes them.

    The last bits of a matrix product depend on its shape, those of this function do not: a list is the same, however it
    was searched.
    """
    n, m = len(features), len(rows)
    sims, ids = np.empty((m, k), np.float32), np.empty((m, k), id_dtype(n))
    scaled, names = features.scaled, np.arange(n, dtype=id_dtype(n))

    def work(part: slice) -> None:
        error = np.full(part.stop - part.start, SUMMATION, np.float32)
        rerank(pools[part], scaled, rows[part], names, error, sims[part], ids[part])

    threads.each(work, slices(m, BLOCK))
    return sims, ids
