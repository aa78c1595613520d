"""Copies: rows that have the direction of an earlier row.

A picture that was saved twice gives the same embedding twice, up to a factor and to the rounding of the type it is
stored in. Copies are found in time that is linear for all purposes: a few random projections of the normalised row are
rounded to cells of a grid and hashed, and rows of equal hash are compared. Two equal rows on either side of a border of
one grid lie well within the cells of another, so there are three grids, apart by a third of a cell.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.data.dataset import BLOCK_BYTES, Features, within_range
from starfc.runtime.memory import release
from starfc.runtime.products import slices
from starfc.runtime.union_find_kernels import find_root, flatten

DISTANCE = 1e-6  # cosine distance of copies; two roundings to float16 are 5e-7 apart at most
_GRIDS, _PROJECTIONS, _CELL = 3, 12, 0.25  # projections of a unit vector are about as large as 1
_WINDOW = 64  # rows of equal hash that a row is compared with


def find_copies(features: Features, rows: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
    """For every row, the lowest row of the same direction: itself, where it has no earlier copy.

    Directions are the same where their cosine distance is 1e-6 at most. Rows without a direction (NaN, infinity, zeros)
    stand for themselves. Memory beside the features: some 60 bytes a row, and a block of rows.

    Parameters
    ----------
    features : Features
        (N, d), read block by block.
    rows : (m,) integers, optional
        Rising; only these are compared, and the others stand for themselves.

    Returns
    -------
    (N,) int64
    """
    every = np.arange(len(features)) if rows is None else np.asarray(rows, np.int64)
    parent = np.arange(len(features))
    fine, hashes = _hashes(features, every)
    for keys in hashes:
        places, first = _repeated(keys, fine, parent[every])
        if places.size:
            _compare(features, every[places], first, parent)
        flatten(parent)
    _let_go(features, parent)
    release(features.array)
    return parent


def _hashes(features: Features, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.uint64]]:
    """A projection of each row (m,), and the hash of its cells in each grid (3, m); 0 for one without direction."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(features.dim, _PROJECTIONS)).astype(np.float32)
    factors = rng.integers(1 << 62, size=_PROJECTIONS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    fine, hashes = np.empty(len(rows), np.float32), np.empty((_GRIDS, len(rows)), np.uint64)
    for part in slices(len(rows), _block_rows(features)):
        block, norms = _block(features, rows[part])
        with np.errstate(invalid="ignore", over="ignore"):
            points = block @ directions / norms[:, None]
        release(features.array)
        known = np.isfinite(points).all(axis=1) & np.isfinite(norms)
        points[~known] = 0
        fine[part] = points[:, 0]
        for grid, keys in enumerate(hashes):
            cells = np.floor(points / np.float32(_CELL) + np.float32(grid / _GRIDS)).astype(np.int64).view(np.uint64)
            keys[part] = np.where(known, (cells * factors).sum(axis=1, dtype=np.uint64) | np.uint64(1), 0)
    return fine, hashes


def _block(features: Features, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Some rows, which rise, of any length, and their norms; NaN for those without direction."""
    whole = len(rows) and rows[-1] - rows[0] == len(rows) - 1
    stored = features.array[int(rows[0]) : int(rows[-1]) + 1] if whole else features.array[rows]
    block, norms = within_range(stored)
    norms[norms == 0] = np.nan
    return block, norms


def _block_rows(features: Features) -> int:
    return max(1, BLOCK_BYTES // (4 * max(1, features.dim)))


def _repeated(
    keys: NDArray[np.uint64], fine: NDArray[np.float32], roots: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places whose key a row of another root has too, by key, then by ``fine``; and where each one's key begins."""
    order = np.argsort(keys, kind="stable")
    places = order[_adjacent(keys[order]) & (keys[order] != 0)]
    number = np.cumsum(np.diff(keys[places], prepend=np.uint64(0)) != 0) - 1
    lowest, highest = (np.full(len(places), value) for value in (np.iinfo(np.int64).max, -1))
    np.minimum.at(lowest, number, roots[places])
    np.maximum.at(highest, number, roots[places])
    several = (lowest < highest)[number]  # others are known to be of one direction
    places, number = places[several], number[several]
    places = places[np.lexsort((places, fine[places], number))]
    return places, np.searchsorted(number, number)


def _adjacent(ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of some sorted values are there more than once."""
    out = np.zeros(len(ordered), np.bool_)
    same = ordered[1:] == ordered[:-1]
    out[1:] |= same
    out[:-1] |= same
    return out


def _compare(features: Features, rows: NDArray[np.int64], first: NDArray[np.int64], parent: NDArray[np.int64]) -> None:
    """Join rows of the same direction among those of equal hash, which begin at ``first`` (m,)."""
    for part in slices(len(rows), _block_rows(features)):
        start = max(0, part.start - _WINDOW)
        _join(_unit(features, rows[start : part.stop]), rows, first, part.start, part.stop, start, parent)
        release(features.array)


def _unit(features: Features, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    block, norms = within_range(features.array[rows])
    block /= norms[:, None]
    return block


@nb.njit(cache=True, nogil=True)
def _join(units, rows, first, start, stop, offset, parent):
    """``units`` are the normalised rows from place ``offset`` on; a group's root is its lowest row."""
    for p in range(start, stop):
        i = find_root(parent, rows[p])
        for q in range(p - 1, max(first[p], p - _WINDOW) - 1, -1):
            j = find_root(parent, rows[q])
            if i != j and _near(units[p - offset], units[q - offset]):
                parent[max(i, j)] = min(i, j)
                i = min(i, j)


@nb.njit(cache=True, nogil=True)
def _near(x, y):
    """Whether the cosine distance of two unit vectors, half of |x - y|^2, is no more than that of copies."""
    total = 0.0
    for c in range(x.size):
        total += (x[c] - y[c]) ** 2
        if total > 2 * DISTANCE:
            return False
    return True


def _let_go(features: Features, parent: NDArray[np.int64]) -> None:
    """Rows that only others between lead to the lowest one of their group, and which are farther from it, stay."""
    copies = np.flatnonzero(parent != np.arange(len(parent)))
    for part in slices(len(copies), _block_rows(features)):
        some = copies[part]
        apart = _unit(features, some) - _unit(features, parent[some])
        far = some[np.einsum("ij,ij->i", apart, apart, dtype=np.float64) > 2 * DISTANCE]
        parent[far] = far
