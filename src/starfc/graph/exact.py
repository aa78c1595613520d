"""Exact kNN of a set within itself.

Similarity is symmetric: the product of two row blocks F_I F_Jᵀ serves the rows of I and, read by columns, those of J,
so half of the products that a general search makes are enough. Each block of products is offered at once to the running
lists of its rows and of its columns; a list lets in what beats its last entry, which soon is next to nothing, and 64
products are passed over with one comparison.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import torch
from numpy.typing import NDArray

from starfc.graph.neighbours import id_dtype
from starfc.runtime.progress import progress

BLOCK = 1024  # 1024 x 1024 float32 products: 4 MiB, which stay in the cache between product and selection
_CHUNK = 64


def exact_search(
    features: NDArray[np.float32], k: int, block: int = BLOCK
) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """The k largest inner products of every row with all rows, itself included.

    Parameters
    ----------
    features : (N, d) float32, C-contiguous
    k : int
        1 <= k <= N.

    Returns
    -------
    sims (N, k) float32, ids (N, k)
        Rows fall by product; of equal products the lower ids come first and stay. Memory: the result and one block.
    """
    n = len(features)
    sims = np.full((n, k), -np.inf, np.float32)
    ids = np.full((n, k), -1, id_dtype(n))
    blocks = [slice(start, min(start + block, n)) for start in range(0, n, block)]
    rows, buffer = torch.from_numpy(features), torch.empty(block * block)
    with progress("kNN graph", total=len(blocks) * (len(blocks) + 1) // 2, unit="block") as bar:
        for at, i in enumerate(blocks):
            for j in blocks[at:]:
                shape = (i.stop - i.start, j.stop - j.start)
                products = buffer[: shape[0] * shape[1]].view(shape)
                torch.mm(rows[i], rows[j].T, out=products)
                _offer_rows(products.numpy(), sims[i], ids[i], j.start)
                if j is not i:
                    _offer_columns(products.numpy(), sims[j], ids[j], i.start)
            bar.update(len(blocks) - at)
    return sims, ids


@nb.njit(cache=True, inline="always")
def _insert(sims, ids, s, j):
    """Put (s, j) into a falling list behind its equals; the last entry falls out."""
    at = sims.size - 1
    while at > 0 and sims[at - 1] < s:
        sims[at] = sims[at - 1]
        ids[at] = ids[at - 1]
        at -= 1
    sims[at] = s
    ids[at] = j


@nb.njit(parallel=True, cache=True, fastmath={"reassoc", "nsz"})
def _offer_rows(products, sims, ids, first):
    k = sims.shape[1]
    for r in nb.prange(products.shape[0]):
        row, mine, my_ids = products[r], sims[r], ids[r]
        for start in range(0, row.size, _CHUNK):
            end = min(start + _CHUNK, row.size)
            highest = row[start]
            for c in range(start, end):
                highest = max(highest, row[c])
            if highest > mine[k - 1]:
                for c in range(start, end):
                    if row[c] > mine[k - 1]:
                        _insert(mine, my_ids, row[c], first + c)


@nb.njit(parallel=True, cache=True, fastmath={"reassoc", "nsz"})
def _offer_columns(products, sims, ids, first):
    k = sims.shape[1]
    columns = products.shape[1]
    for part in nb.prange((columns + _CHUNK - 1) // _CHUNK):
        start = part * _CHUNK
        width = min(_CHUNK, columns - start)
        last = np.empty(_CHUNK, np.float32)
        for c in range(width):
            last[c] = sims[start + c, k - 1]
        for r in range(products.shape[0]):
            row = products[r]
            lead = row[start] - last[0]
            for c in range(width):
                lead = max(lead, row[start + c] - last[c])
            if lead > 0:
                for c in range(width):
                    if row[start + c] > last[c]:
                        _insert(sims[start + c], ids[start + c], row[start + c], first + r)
                        last[c] = sims[start + c, k - 1]
