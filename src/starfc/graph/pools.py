"""Candidate pools: collect the best entries of each row from a stream of matrix products.

Each row has a *floor*, the value that an entry must reach to be a candidate. The product of two row blocks is compared
with the floors, 64 entries at a time. Entries that reach the floor are appended to the row's pool. A full pool is cut
to its best ``keep`` entries, and its floor rises to the worst of them. After a few blocks, few entries reach the floor.
None of the best ``keep`` entries is ever lost; of equal values, the lower ids are kept.

Values are float32, or the bits of bfloat16 as int16. For values >= 0, the bits have the same order as the values.
Negative values are below all floors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.graph.neighbours import KnnGraph
from starfc.runtime.half import like, number
from starfc.runtime.simd import LANES, lowest_bit, reached, reached_each


@dataclass(frozen=True)
class Pools:
    """The candidates of n rows.

    ``values`` and ``ids`` (n, capacity) are the candidates; the first ``fill`` (n,) of each row are in use. ``floor``
    (n,) is the value that a new candidate must reach. ``keep`` is the number of best candidates that are never lost.
    """

    values: NDArray[np.float32] | NDArray[np.int16]
    ids: NDArray[np.integer]
    fill: NDArray[np.int32]
    floor: NDArray[np.float32] | NDArray[np.int16]
    keep: int

    @classmethod
    def empty(cls, n: int, keep: int, dtype: torch.dtype, id_type: type[np.integer]) -> Pools:
        """Return empty pools for products of dtype float32 or bfloat16. bfloat16 pools ignore values below 0."""
        shape = (n, keep + 64)
        ids, fill = np.empty(shape, id_type), np.zeros(n, np.int32)
        if dtype == torch.bfloat16:
            return cls(np.empty(shape, np.int16), ids, fill, np.zeros(n, np.int16), keep)
        return cls(np.empty(shape, np.float32), ids, fill, np.full(n, -np.inf, np.float32), keep)

    @classmethod
    def of_lists(cls, graph: KnnGraph, wanted: int, keep: int, dtype: torch.dtype) -> Pools:
        """Return pools that hold the neighbours of n lists.

        If a list has the ``wanted`` number of neighbours, the floor is the similarity of the last one: a worse
        candidate cannot improve the list.
        """
        pools = cls.empty(graph.num_nodes, keep, dtype, graph.ids.dtype.type)
        pools.fill[:] = (graph.ids >= 0).sum(axis=1)
        pools.ids[:, : graph.k] = graph.ids
        pools.values[:, : graph.k] = numeric(torch.tensor(graph.sims).to(dtype))
        full = pools.fill >= wanted
        pools.floor[full] = pools.values[full, wanted - 1]
        return pools

    def __getitem__(self, rows: slice) -> Pools:
        return Pools(self.values[rows], self.ids[rows], self.fill[rows], self.floor[rows], self.keep)

    def offer_rows(self, products: Tensor, first: int, rows: NDArray[np.int64], width: int | None = None) -> None:
        """Offer products to the pools of their rows.

        Entry (r, c) of the contiguous ``products``, with c < ``width``, is the candidate ``first + c`` of the pool
        ``rows[r]``. Default width: all columns.
        """
        width = products.shape[1] if width is None else width
        _offer_rows(
            numeric(products).ravel(),
            products.shape[1],
            first,
            rows,
            width,
            self.values,
            self.ids,
            self.fill,
            self.floor,
            self.keep,
        )

    def offer_new(
        self,
        products: Tensor,
        names: NDArray[np.integer],
        rows: NDArray[np.integer],
        known: NDArray[np.integer] | None = None,
    ) -> None:
        """Offer products to the pools of their rows, except for candidates that are known.

        Entry (r, c) of the contiguous ``products``, with c < len(``names``), is the candidate ``names[c]`` of the pool
        ``rows[r]``. The number of columns of ``products`` is a multiple of 64. Candidates in the row ``rows[r]`` of
        ``known`` (n, k) are left out.
        """
        known = self.ids[:, :0] if known is None else known
        _offer_new(
            numeric(products).ravel(), products.shape[1], names, rows, known,
            self.values, self.ids, self.fill, self.floor, self.keep,
        )  # fmt: skip

    def offer_members(
        self,
        vectors: NDArray[np.float32] | NDArray[np.int16],
        start: int,
        rows: NDArray[np.integer],
        cell_of: NDArray[np.integer],
        order: NDArray[np.integer],
        starts: NDArray[np.int64],
        known: NDArray[np.integer] | None = None,
    ) -> None:
        """Offer each of some rows (m,) the members of a cell.

        The row ``rows[r]`` is the place ``start + rows[r]`` of ``vectors`` (N, d), which have the number type of the
        pools. Its candidates are the places ``order[starts[c] : starts[c + 1]]`` of the cell c = ``cell_of[r]``, except
        for those in the row ``rows[r]`` of ``known`` (n, k).
        """
        known = self.ids[:, :0] if known is None else known
        _offer_members(
            vectors, start, rows, cell_of, order, starts, known,
            self.values, self.ids, self.fill, self.floor, self.keep,
        )  # fmt: skip

    def offer_columns(self, products: Tensor, first: int) -> None:
        """Offer products to the pools of their columns.

        Entry (r, c) of the contiguous ``products`` is the candidate ``first + r`` of the pool c.
        """
        height, width = products.shape
        _offer_columns(
            numeric(products).ravel(), height, width, first, self.values, self.ids, self.fill, self.floor, self.keep
        )

    def on_host(self) -> Pools:
        """Return the pools where :func:`starfc.graph.rerank.rerank` reads them: these are in host memory."""
        return self

    def cut(self) -> None:
        """Cut each pool to its best ``keep`` entries. If it had more, its floor becomes the worst of these."""
        _cut_all(self.values, self.ids, self.fill, self.floor, self.keep)


def numeric(products: Tensor) -> NDArray[np.float32] | NDArray[np.int16]:
    """Return a tensor's values as the kernels compare them: float32, or the bits of bfloat16 as int16."""
    return (products.view(torch.int16) if products.dtype == torch.bfloat16 else products).numpy()


def sorted_pools(pools: Pools, k: int) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """Return the sorted best k of float32 pools: sims and ids (n, k); -inf and -1 if a pool has fewer than k."""
    n = len(pools.fill)
    sims, ids = np.full((n, k), -np.inf, np.float32), np.full((n, k), -1, pools.ids.dtype)
    _sort_pools(pools.values, pools.ids, pools.fill, sims, ids)
    return sims, ids


@nb.njit(cache=True, nogil=True)
def _sort_pools(values, ids, fill, out_values, out_ids):
    keep = out_values.shape[1]
    for r in range(fill.size):
        size = fill[r]
        if size > keep:
            _cut(values[r], ids[r], size, keep)
            size = keep
        for c in range(size):
            insert(out_values[r], out_ids[r], c, values[r, c], ids[r, c])


@nb.njit(cache=True)
def insert(values, ids, size, value, new):
    """Insert (value, new) into a list of ``size`` entries, sorted by decreasing value, ties by increasing id.

    If the list is full, its worst entry is dropped.
    """
    at = min(size, values.size - 1)
    if size == values.size and not (value > values[at] or (value == values[at] and new < ids[at])):
        return
    while at > 0 and (values[at - 1] < value or (values[at - 1] == value and ids[at - 1] > new)):
        values[at] = values[at - 1]
        ids[at] = ids[at - 1]
        at -= 1
    values[at] = value
    ids[at] = new


@nb.njit(cache=True)
def _before(values, ids, a, b):
    return values[a] > values[b] or (values[a] == values[b] and ids[a] < ids[b])


@nb.njit(cache=True)
def _swap(values, ids, a, b):
    values[a], values[b] = values[b], values[a]
    ids[a], ids[b] = ids[b], ids[a]


@nb.njit(cache=True)
def _cut(values, ids, size, keep):
    """Move the best ``keep`` of ``size`` > keep entries to the front (quickselect); return the worst value of them."""
    low, high, last = 0, size - 1, keep - 1
    while low < high:
        middle = (low + high) // 2
        if _before(values, ids, middle, low):
            _swap(values, ids, middle, low)
        if _before(values, ids, high, low):
            _swap(values, ids, high, low)
        if _before(values, ids, middle, high):
            _swap(values, ids, middle, high)
        border = low  # the pivot, the median of three, is at `high`
        for at in range(low, high):
            if _before(values, ids, at, high):
                _swap(values, ids, at, border)
                border += 1
        _swap(values, ids, border, high)
        if border == last:
            break
        if border < last:
            low = border + 1
        else:
            high = border - 1
    return values[last]


@nb.njit(cache=True, nogil=True)
def _cut_all(values, ids, fill, floor, keep):
    for r in range(fill.size):
        if fill[r] > keep:
            floor[r] = _cut(values[r], ids[r], fill[r], keep)
            fill[r] = keep


@nb.njit(cache=True)
def _append(values, ids, size, floor, value, new, keep):
    """Append an entry to a pool, cut the pool if it is then full, and return its size and floor."""
    values[size] = value
    ids[size] = new
    if size + 1 < values.size:
        return size + 1, floor
    return keep, _cut(values, ids, values.size, keep)


@nb.njit(cache=True, nogil=True)
def _offer_rows(products, stride, first, rows, width, values, ids, fill, floor, keep):
    for r in range(rows.size):
        row, start = rows[r], r * stride
        mine, my_ids, size, lowest = values[row], ids[row], fill[row], floor[row]
        for at in range(0, width - width % LANES, LANES):
            mask = reached(products, start + at, lowest)
            while mask:
                c = at + lowest_bit(mask)
                mask &= mask - np.uint64(1)
                if products[start + c] >= lowest:  # the floor may have risen since the comparison
                    size, lowest = _append(mine, my_ids, size, lowest, products[start + c], first + c, keep)
        for c in range(width - width % LANES, width):
            if products[start + c] >= lowest:
                size, lowest = _append(mine, my_ids, size, lowest, products[start + c], first + c, keep)
        fill[row], floor[row] = size, lowest


@nb.njit(cache=True, nogil=True)
def _offer_new(products, stride, names, rows, known, values, ids, fill, floor, keep):
    capacity = values.shape[1]
    for r in range(rows.size):
        row, start = rows[r], r * stride
        size, lowest = fill[row], floor[row]
        for at in range(0, names.size, LANES):
            mask = reached(products, start + at, lowest)
            while mask:
                c = at + lowest_bit(mask)
                mask &= mask - np.uint64(1)
                if c >= names.size or products[start + c] < lowest:
                    continue
                name, held = names[c], False
                for q in range(known.shape[1]):  # without a branch, so that the loop is vectorised
                    held |= known[row, q] == name
                if held:
                    continue
                values[row, size], ids[row, size] = products[start + c], name
                size += 1
                if size == capacity:
                    lowest, size = _cut(values[row], ids[row], size, keep), keep
        fill[row], floor[row] = size, lowest


@nb.njit(cache=True, nogil=True)
def _offer_members(vectors, start, rows, cell_of, order, starts, known, values, ids, fill, floor, keep):
    own = np.empty(vectors.shape[1], np.float32)
    for r in range(rows.size):
        row = rows[r]
        for c in range(own.size):
            own[c] = number(vectors[start + row, c])
        size, lowest = fill[row], floor[row]
        for at in range(starts[cell_of[r]], starts[cell_of[r] + 1]):
            name = order[at]
            product = like(_product(own, vectors[name]), lowest)
            if product < lowest:
                continue
            held = False
            for q in range(known.shape[1]):
                held |= known[row, q] == name
            if held:
                continue
            values[row, size], ids[row, size] = product, name
            size += 1
            if size == values.shape[1]:
                lowest, size = _cut(values[row], ids[row], size, keep), keep
        fill[row], floor[row] = size, lowest


@nb.njit(cache=True, fastmath={"reassoc", "contract", "nsz"})
def _product(own, vector):
    total = np.float32(0.0)
    for c in range(own.size):
        total += own[c] * number(vector[c])
    return total


@nb.njit(cache=True, nogil=True)
def _offer_columns(products, height, width, first, values, ids, fill, floor, keep):
    for at in range(0, width - width % LANES, LANES):
        for r in range(height):
            start = r * width
            mask = reached_each(products, start + at, floor, at)
            while mask:
                c = at + lowest_bit(mask)
                mask &= mask - np.uint64(1)
                fill[c], floor[c] = _append(values[c], ids[c], fill[c], floor[c], products[start + c], first + r, keep)
    for c in range(width - width % LANES, width):
        for r in range(height):
            value = products[r * width + c]
            if value >= floor[c]:
                fill[c], floor[c] = _append(values[c], ids[c], fill[c], floor[c], value, first + r, keep)
