"""Compute exact similarities of candidates from rounded products, and find the rows whose k nearest are certain."""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.graph.pools import Pools, _cut, insert
from starfc.runtime.half import number, single

ROUNDING = 2.0**-8  # relative rounding error of a bfloat16 product
SUMMATION = 2.0**-14  # upper bound on the error of 2^9 float32 additions
ROUNDED = 2.0**-7 + 2.0**-16 + SUMMATION  # ε of rounded unit vectors: r + (1 + r) r with r <= 2^-8


def rerank(
    pools: Pools,
    scaled: tuple[NDArray[np.float32] | NDArray[np.uint16], NDArray[np.float32]],
    own: NDArray[np.integer],
    names: NDArray[np.integer],
    error: NDArray[np.float32],
    sims: NDArray[np.float32],
    ids: NDArray[np.integer],
) -> NDArray[np.bool_]:
    """Compute the similarities of each row's best candidates in float32, and sort them.

    Parameters
    ----------
    pools : Pools
        The candidates of n rows, with similarities s̃ from bfloat16 products.
    scaled : (array, scale)
        The features (:attr:`starfc.data.dataset.Features.scaled`).
    own : (n,) integers
        The ids of the n rows in the features.
    names : (N,) integers
        Candidate c of a pool is the row ``names[c]`` of the features.
    error : (n,) float32
        The bound ε, with |s - s̃| <= ε + 2^-8 |s̃|. Candidates that cannot be among the first k are skipped.
    sims, ids : (n, k)
        Output: sorted by decreasing similarity, ties by increasing id; -inf and -1 if a pool has fewer than k.

    Returns
    -------
    (n,) bool
        Whether a row's k-th similarity is above all similarities that its pool dropped.
    """
    certain = np.empty(len(own), np.bool_)
    sims[:], ids[:] = -np.inf, -1
    _rerank(pools.values, pools.ids, pools.fill, pools.floor, *scaled, own, names, error, sims, ids, certain)
    return certain


@nb.njit(cache=True, nogil=True)
def products_of(array, scale, rows, cols):
    """Return the similarities (m,) of pairs of rows of features (:attr:`starfc.data.dataset.Features.scaled`)."""
    out = np.empty(rows.size, np.float32)
    own = np.empty(array.shape[1], np.float32)
    for e in range(rows.size):
        for c in range(own.size):
            own[c] = single(array[rows[e], c])
        out[e] = _dot(own, array[cols[e]]) * scale[rows[e]] * scale[cols[e]]
    return out


@nb.njit(cache=True, fastmath={"reassoc", "contract", "nsz"})
def _dot(a, b):
    total = np.float32(0.0)
    for c in range(a.size):
        total += a[c] * single(b[c])
    return total


@nb.njit(cache=True, nogil=True)
def _rerank(values, candidates, fill, floor, array, scale, own, names, error, sims, ids, certain):
    k = sims.shape[1]
    mine = np.empty(array.shape[1], np.float32)
    for r in range(own.size):
        i = own[r]
        for c in range(mine.size):
            mine[c] = single(array[i, c])
        size = fill[r]
        line = -np.inf
        if size > k:
            last = number(_cut(values[r], candidates[r], size, k))
            line = last - 2 * (error[r] + ROUNDING * abs(last))
        found = 0
        for c in range(size):
            if number(values[r, c]) >= line:
                j = names[candidates[r, c]]
                insert(sims[r], ids[r], found, _dot(mine, array[j]) * scale[i] * scale[j], j)
                found = min(found + 1, k)
        left_out = number(floor[r])
        certain[r] = found == k and sims[r, k - 1] > left_out + error[r] + ROUNDING * abs(left_out)
