"""Find copies: rows that have the same direction as an earlier row.

A picture that was saved twice gives the same embedding twice, except for a factor and the rounding of the stored type.
The time of the search is practically linear. A few random projections of each normalised row are rounded to cells of a
grid, and the cells are hashed. Rows with equal hashes are compared. Two equal rows may lie on different sides of a cell
border. For this reason there are three grids, shifted by a third of a cell: such rows are well inside a cell of another
grid.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from starfc.data.dataset import BLOCK_BYTES, Features, within_range
from starfc.runtime.memory import release
from starfc.runtime.products import slices
from starfc.runtime.union_find_kernels import find_root, flatten

DISTANCE = 1e-6  # maximum cosine distance of copies; two float16 roundings of one row differ by at most 5e-7
_GRIDS, _PROJECTIONS, _CELL = 3, 12, 0.25  # projections of a unit vector have a size of about 1
_WINDOW = 64  # a row is compared with at most this many rows of equal hash


def find_copies(features: Features, rows: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
    """Find for every row the lowest row with the same direction. Without an earlier copy this is the row itself.

    Two directions are the same if their cosine distance is at most 1e-6. A row without a direction (NaN, infinity, only
    zeros) has no copies. The search needs about 60 bytes of memory per row, and one block of rows.

    Parameters
    ----------
    features : Features
        Features (N, d), which are read in blocks.
    rows : (m,) integers, optional
        Sorted rows to compare. Other rows are treated as rows without copies.

    Returns
    -------
    (N,) int64
        The lowest row with the same direction.
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
    """Return a projection of each row (m,), and the hash of its cells in each grid (3, m); 0 if it has no direction."""
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
    """Read some sorted rows with :func:`within_range`, and their norms (NaN for a row without a direction)."""
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
    """Find rows that share their key with a row of another root.

    Returns
    -------
    places : (p,) int64
        Positions of these rows in ``keys``, sorted by key, then by ``fine``.
    first : (p,) int64
        For each, the position in ``places`` of the first row with the same key.
    """
    order = np.argsort(keys, kind="stable")
    places = order[_adjacent(keys[order]) & (keys[order] != 0)]
    number = np.cumsum(np.diff(keys[places], prepend=np.uint64(0)) != 0) - 1
    lowest, highest = (np.full(len(places), value) for value in (np.iinfo(np.int64).max, -1))
    np.minimum.at(lowest, number, roots[places])
    np.maximum.at(highest, number, roots[places])
    several = (lowest < highest)[number]  # rows with one root are already known to be copies
    places, number = places[several], number[several]
    places = places[np.lexsort((places, fine[places], number))]
    return places, np.searchsorted(number, number)


def _adjacent(ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which of the sorted values occur more than once."""
    out = np.zeros(len(ordered), np.bool_)
    same = ordered[1:] == ordered[:-1]
    out[1:] |= same
    out[:-1] |= same
    return out


def _compare(features: Features, rows: NDArray[np.int64], first: NDArray[np.int64], parent: NDArray[np.int64]) -> None:
    """Join rows with the same direction. Each row is compared with earlier rows of equal hash, from ``first`` (m,)."""
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
    """Join near rows. ``units`` are the normalised rows from position ``offset``; a group's root is its lowest row."""
    for p in range(start, stop):
        i = find_root(parent, rows[p])
        for q in range(p - 1, max(first[p], p - _WINDOW) - 1, -1):
            j = find_root(parent, rows[q])
            if i != j and _near(units[p - offset], units[q - offset]):
                parent[max(i, j)] = min(i, j)
                i = min(i, j)


@nb.njit(cache=True, nogil=True)
def _near(x, y):
    """Return whether the cosine distance of two unit vectors, which is |x - y|^2 / 2, is at most that of copies."""
    total = 0.0
    for c in range(x.size):
        total += (x[c] - y[c]) ** 2
        if total > 2 * DISTANCE:
            return False
    return True


def _let_go(features: Features, parent: NDArray[np.int64]) -> None:
    """Remove rows from a group whose lowest row is farther away than a copy may be.

    Such rows were joined through other rows between the two.
    """
    copies = np.flatnonzero(parent != np.arange(len(parent)))
    for part in slices(len(copies), _block_rows(features)):
        some = copies[part]
        apart = _unit(features, some) - _unit(features, parent[some])
        far = some[np.einsum("ij,ij->i", apart, apart, dtype=np.float64) > 2 * DISTANCE]
        parent[far] = far
