"""Find exact k nearest neighbours on a device in torch: the same lists as :mod:`starfc.graph.exact`, bit for bit.

The device makes the products and selects candidates (:mod:`starfc.graph.device_pools`). At the same time the processor
computes the similarities of the candidates of the block before, with the kernel of all searches
(:func:`starfc.graph.rerank.rerank`). So a list does not depend on the device that found it.

Products are made in bfloat16 where the device has units for it, with sums in float32. The bound on the rounding error
is that of :mod:`starfc.graph.exact`. Tensor cores may truncate sums instead of rounding them; the bound's term for sums
allows for that up to d = 512. Rows that the bound leaves undecided are searched again in float32. Those that this
leaves undecided are searched by :func:`starfc.graph.exact.search_rows` on the processor, for example if more copies of
a row tie at the k-th place than candidates are kept.

The features are on the device if they take at most half of the room there. Otherwise they are read from the host block
by block, once for each block of queries.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.data.dataset import Features
from starfc.graph.device_pools import ENTRY_BYTES, DevicePools
from starfc.graph.exact import BLOCK, MOST_KEPT, SMALL, search_rows
from starfc.graph.neighbours import id_dtype
from starfc.graph.pools import Pools
from starfc.graph.rerank import ROUNDING, SUMMATION, rerank
from starfc.runtime import threads
from starfc.runtime.device import block_rows, retry_smaller
from starfc.runtime.products import product_dtype, slices
from starfc.runtime.progress import progress
from starfc.runtime.simd import LANES

log = logging.getLogger("starfc")

SIDE = 1 << 15  # maximum rows and columns of a product on a GPU: 2 GiB of bfloat16, to which the calls add little time
_READ = 1 << 16  # maximum number of rows that are read from the host at a time
_SAMPLE = 1 << 14  # number of sampled rows from which the initial floors are estimated
_MEASURED = 256  # number of sampled rows from which the number of candidates is estimated


class DeviceFeatures:
    """Features as a search on a device reads them: normalised, and rounded to the number type of its products.

    Parameters
    ----------
    features : Features
        The features (N, d).
    dtype : float32 or bfloat16
        The number type.
    device : torch device
        Where the blocks are.
    allowed : int
        The bytes that they may take: all features if these take at most half of it, otherwise one block at a time.

    Attributes
    ----------
    residual : (N,) float32
        The norm of each row's rounding error.
    left : int
        The bytes of ``allowed`` that are left.
    """

    def __init__(self, features: Features, dtype: torch.dtype, device: torch.device, allowed: int) -> None:
        self.features, self.dtype, self.device = features, dtype, device
        whole = len(features) * features.dim * dtype.itemsize
        held = whole <= allowed // 2
        self.left = allowed - whole if held else allowed
        self.residual = np.zeros(len(features), np.float32)
        self._whole: Tensor | None = None
        if held:
            self._whole = torch.empty(len(features), features.dim, dtype=dtype, device=device)
        if held or dtype != torch.float32:
            step = block_rows(self.left // 2, 16 * features.dim, _READ)
            for rows in slices(len(features), step):
                exact = self._read(rows)
                rounded = exact.to(dtype)
                self.residual[rows] = torch.linalg.vector_norm(exact - rounded.float(), dim=1).cpu().numpy()
                if self._whole is not None:
                    self._whole[rows] = rounded

    def __len__(self) -> int:
        return len(self.features)

    def at(self, rows: slice | NDArray[np.integer]) -> Tensor:
        """Return some rows (m, d)."""
        if self._whole is None:
            return self._read(rows).to(self.dtype)
        return self._whole[rows if isinstance(rows, slice) else torch.from_numpy(rows).to(self.device)]

    def blocks(self, step: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield all rows in blocks (step, d) of rows; the last block is filled up to a multiple of 64 rows."""
        for rows in slices(len(self), step):
            block = self.at(rows)
            yield rows, torch.nn.functional.pad(block, (0, 0, 0, -len(block) % LANES))

    def _read(self, rows: slice | NDArray[np.integer]) -> Tensor:
        """Return normalised rows (m, d) in float32 from the host."""
        array, scale = self.features.scaled
        some: NDArray = array[rows]
        raw = self._copied(some.view(np.float16) if some.dtype == np.uint16 else some)
        return raw.float() * self._copied(scale[rows])[:, None]

    def _copied(self, array: NDArray) -> Tensor:
        """Return a copy of an array on the device. From pinned memory, the copy does not wait for the device."""
        pinned = self.device.type == "cuda"
        there = torch.empty(array.shape, dtype=torch.from_numpy(array[:0].copy()).dtype, pin_memory=pinned)
        np.copyto(there.numpy(), array)
        return there.to(self.device, non_blocking=True)


def device_search(
    features: Features,
    k: int,
    device: torch.device,
    rows: NDArray[np.int64] | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """Return the k largest inner products of some rows with all rows, themselves included.

    Parameters
    ----------
    features : Features
    k : int
        1 <= k <= N.
    device : torch device
        Where products are made. On the CPU this is slower than :func:`starfc.graph.exact.exact_search`.
    rows : (m,) int64, optional
        The rows. Default: all.
    dtype : torch dtype, optional
        Number type of the first products. Default: :func:`starfc.runtime.products.product_dtype`; float32 for few rows.

    Returns
    -------
    sims (m, k) float32, ids (m, k)
        As those of :func:`starfc.graph.exact.exact_search`.

    Raises
    ------
    InputError
        If the device has too little memory.
    """
    n = len(features)
    rows = np.arange(n) if rows is None else rows
    first = dtype or (product_dtype(device) if n >= SMALL else torch.float32)
    sims, ids = np.empty((len(rows), k), np.float32), np.empty((len(rows), k), id_dtype(n))
    left = np.arange(len(rows))
    for kind in dict.fromkeys((first, torch.float32)):

        def search(allowed: int, kind: torch.dtype = kind, left: NDArray[np.int64] = left) -> NDArray[np.bool_]:
            return _Search(features, k, kind, device, allowed).fill(rows[left], left, sims, ids)

        left = left[~retry_smaller(search, device)]
        if not left.size:
            return sims, ids
        log.debug("kNN graph: %d rows are undecided after products in %s", left.size, str(kind).partition(".")[2])
    sims[left], ids[left] = search_rows(features, rows[left], k, sims[left, -1])
    return sims, ids


class _Search:
    """A search with products of one number type."""

    def __init__(self, features: Features, k: int, dtype: torch.dtype, device: torch.device, allowed: int) -> None:
        self.features, self.k, self.dtype, self.device, n = features, k, dtype, device, len(features)
        self.names = np.arange(n, dtype=id_dtype(n))
        self.on = DeviceFeatures(features, dtype, device, allowed)
        # Half of the room is for products, the other half for the features and candidates of their rows.
        half = self.on.left // 2
        most = min(BLOCK if device.type == "cpu" else SIDE, -(-n // LANES) * LANES)
        tall = block_rows(half, LANES * ENTRY_BYTES, most, LANES)
        self.columns = min(tall, math.isqrt(half // ENTRY_BYTES) // LANES * LANES)
        self.rows = block_rows(half, 8 * (MOST_KEPT * k + features.dim), self.columns)
        residual = self.on.residual
        self.error = residual + (1 + residual) * residual.max(initial=0) + SUMMATION
        self.relative = ROUNDING if dtype == torch.bfloat16 else 0.0
        rng = np.random.default_rng(0)
        self.sample: Tensor | None = None
        if n > 4 * _SAMPLE and self.on.left // 8 > _SAMPLE * features.dim * dtype.itemsize:
            self.sample = self.on.at(np.sort(rng.choice(n, _SAMPLE, replace=False)))
        self.keep = min(n, k + k // 4 + 4)
        if dtype == torch.bfloat16:
            self.keep = self._needed(rng.choice(n, min(n, _MEASURED), replace=False))

    def fill(
        self, rows: NDArray[np.int64], at: NDArray[np.int64], sims: NDArray[np.float32], ids: NDArray[np.integer]
    ) -> NDArray[np.bool_]:
        """Write the lists of some rows (m,) to the places ``at`` (m,) of the output; return which are certain."""
        certain = np.empty(len(rows), np.bool_)

        def finish(part: slice, pools: Pools) -> None:
            def work(some: slice) -> None:
                whole = slice(part.start + some.start, part.start + some.stop)
                found = self._ranked(pools[some], rows[whole])
                sims[at[whole]], ids[at[whole]], certain[whole] = found

            threads.each(work, slices(part.stop - part.start, BLOCK))
            bar.update(part.stop - part.start)

        with progress("kNN graph", total=len(rows), unit="row") as bar, ThreadPoolExecutor(1) as processor:
            before: Future[None] | None = None
            for part in slices(len(rows), self.rows):
                pools = self._candidates(rows[part], self.keep)
                if before is not None:
                    before.result()
                before = processor.submit(finish, part, pools)
            if before is not None:
                before.result()
        return certain

    def _candidates(self, rows: NDArray[np.int64], keep: int) -> Pools:
        """Return the best ``keep`` candidates of some rows."""
        queries, n = self.on.at(rows), len(self.on)
        pools = DevicePools.empty(len(rows), keep, self.dtype, id_dtype(n), self.device)
        if self.sample is not None:
            pools.floor.copy_(self._sampled_floor(queries, keep))
        for columns, block in self.on.blocks(self.columns):
            pools.offer_rows(queries @ block.T, columns.start, columns.stop - columns.start)
        return pools.on_host()

    def _sampled_floor(self, queries: Tensor, keep: int) -> Tensor:
        """Return a floor for each query that its best ``keep`` products very likely reach, from the sampled rows.

        This is the rule of :func:`starfc.graph.exact.rounded_search`.
        """
        assert self.sample is not None
        expected = keep * len(self.sample) / len(self.on)
        rank = math.ceil(expected + 4 * math.sqrt(expected)) + 4
        best = [
            (queries @ part.T).topk(min(rank, len(part)), sorted=False)[0] for part in self.sample.split(self.columns)
        ]
        return torch.cat(best, dim=1).topk(rank)[0][:, -1]

    def _ranked(
        self, pools: Pools, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.integer], NDArray[np.bool_]]:
        """Return similarities and ids (m, k) of the best candidates, and whether no other row could be among them."""
        error, floor = self.error[rows], pools.floor
        sims, ids = np.empty((len(rows), self.k), np.float32), np.empty((len(rows), self.k), id_dtype(len(self.names)))
        rerank(pools, self.features.scaled, rows, self.names, error, sims, ids)
        return sims, ids, sims[:, -1] > floor + error + self.relative * np.abs(floor)

    def _needed(self, rows: NDArray[np.int64]) -> int:
        """Return the number of candidates with which nearly all rows are certain, measured on sampled rows.

        This is the rule of :func:`starfc.graph.exact.rounded_search`; it is counted among the best 3 k candidates.
        """
        n, needed = len(self.on), 0
        for part in slices(len(rows), self.rows):
            pools = self._candidates(rows[part], min(n, MOST_KEPT * self.k))
            possible = pools.values.copy()  # re-ranking changes their order
            sims, _, _ = self._ranked(pools, rows[part])
            most = possible + self.error[rows[part], None] + self.relative * np.abs(possible)
            needed = max(needed, int((most >= sims[:, -1:]).sum(axis=1).max()) + 1)
        return max(min(n, self.k + self.k // 4 + 4), min(needed, min(n, MOST_KEPT * self.k)))
