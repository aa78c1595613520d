"""Divide a cluster where it may be two identities: the candidates of the questions about splits.

Two ways, because each finds pieces that the other does not. Both are nested: a piece of a piece is a side, too.

* by the edges: the second eigenvector of the normalised p (Shi and Malik, PAMI 2000), at the place of the least
  normalised cut; the parts are divided again, :data:`DEPTH` times;
* by the features: the last merges of Ward's method (Ward, JASA 1963).

Clusters of more than :data:`DENSE` rows are divided by 2-means of the features, started at the first principal
component, and their parts again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.cluster.hierarchy import ward

DENSE = 1000
DEPTH = 3  # times that parts are divided
MERGES = 4  # last merges of Ward's method
LEAST = 4  # rows of a part that is divided
_ROUNDS = 10

Half = Callable[[NDArray[np.int64]], NDArray[np.bool_]]


def divisions(matrix: sparse.csr_matrix, features: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return divisions of a cluster of n rows as masks (v, n) bool: True for one side. Neither side is empty.

    Parameters
    ----------
    matrix : (n, n) sparse
        p of the edges inside the cluster, symmetric.
    features : (n, d) float32
        Normalised features; d = 0 if there are none.
    """
    n, every = len(features), np.arange(len(features))
    found: list[NDArray[np.int64]] = []
    if n <= DENSE:
        p = matrix.toarray().astype(np.float64)
        found += nested(lambda rows: by_edges(p[np.ix_(rows, rows)]), every, DEPTH)
        if features.shape[1]:
            found += by_ward(features)
    elif features.shape[1]:
        found += nested(lambda rows: by_features(features[rows]), every, DEPTH)
    masks = np.zeros((len(found), n), np.bool_)
    for mask, rows in zip(masks, found, strict=True):
        mask[rows] = True
    masks = masks ^ masks[:, :1]  # the side without the first row, so that equal divisions are equal masks
    masks = np.unique(masks, axis=0)
    return masks[masks.any(axis=1) & ~masks.all(axis=1)]


def nested(half: Half, rows: NDArray[np.int64], depth: int) -> list[NDArray[np.int64]]:
    """Return the parts of some rows, and the parts of these, down to ``depth``. ``half`` marks one part of its rows."""
    if depth == 0 or len(rows) < LEAST:
        return []
    side = half(rows)
    parts = [part for part in (rows[side], rows[~side]) if 0 < len(part) < len(rows)]
    return [*parts, *(piece for part in parts for piece in nested(half, part, depth - 1))]


def by_edges(p: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the side (n,) bool of a division by the edges; ``p`` is (n, n), symmetric."""
    degree = p.sum(axis=1) + 1e-9
    scale = 1 / np.sqrt(degree)
    second = np.linalg.eigh(scale[:, None] * p * scale)[1][:, -2] * scale
    order = np.argsort(second, kind="stable")
    inside = np.cumsum(np.cumsum(p[order][:, order], axis=0), axis=1).diagonal()[:-1]  # of the first 1, 2, ... rows
    volume = np.cumsum(degree[order])[:-1]
    cut = volume - inside
    least = int(np.argmin(cut / volume + cut / np.maximum(degree.sum() - volume, 1e-9)))
    side = np.zeros(len(p), np.bool_)
    side[order[: least + 1]] = True
    return side


def by_ward(features: NDArray[np.float32]) -> list[NDArray[np.int64]]:
    """Return the two parts of each of the last merges of Ward's method."""
    n, tree = len(features), ward(features.astype(np.float64))

    def leaves(node: int) -> Iterator[int]:
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if node < n:
                yield node
            else:
                waiting += [int(child) for child in tree[node - n, :2]]

    return [np.sort([*leaves(int(child))]) for merge in tree[-MERGES:] for child in merge[:2]]


def by_features(rows: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the side (n,) bool of a division by the features (n, d)."""
    centred = rows - rows.mean(axis=0)
    tall = len(rows) > rows.shape[1]
    values, vectors = np.linalg.eigh(centred.T @ centred if tall else centred @ centred.T)
    first = vectors[:, np.argmax(values)]
    side = (centred @ first if tall else first) > 0
    for _ in range(_ROUNDS):
        if side.all() or not side.any():
            break
        one, other = rows[side].mean(axis=0), rows[~side].mean(axis=0)
        after = rows @ (one - other) > (one @ one - other @ other) / 2
        if (after == side).all():
            break
        side = after
    return side
