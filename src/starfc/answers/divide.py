"""Divide a cluster in two where it is most probably two identities: the candidates of the questions about splits.

Two ways, because each finds pieces that the other does not:

* by the edges: the second eigenvector of the normalised p (Shi and Malik, PAMI 2000), at the place of the least
  normalised cut;
* by the features: 2-means, started at the first principal component.

Clusters of more than :data:`DENSE` rows are divided by the features only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

DENSE = 1000
_ROUNDS = 10


def divisions(matrix: sparse.csr_matrix, features: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return divisions of a cluster of n rows as masks (v, n) bool: True for one side. Neither side is empty.

    Parameters
    ----------
    matrix : (n, n) sparse
        p of the edges inside the cluster, symmetric.
    features : (n, d) float32
        Normalised features; d = 0 if there are none.
    """
    n, found = len(features), np.empty((0, len(features)), np.bool_)
    if n <= DENSE:
        found = by_edges(matrix.toarray().astype(np.float64))[None]
    if features.shape[1]:
        found = np.vstack([found, by_features(features)])
    found = found ^ found[:, :1]  # the side without the first row, so that equal divisions are equal masks
    found = np.unique(found, axis=0)
    return found[found.any(axis=1) & ~found.all(axis=1)]


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
