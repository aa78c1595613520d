"""Compiled loops over the edges inside and between clusters."""

from __future__ import annotations

import numba as nb
import numpy as np


@nb.njit(cache=True, nogil=True)
def sum_clusters(indptr, cols, scores, labels, inside, leaving):
    """Add p of the edges inside each cluster, and of those that leave it, to ``inside`` and ``leaving`` (C,)."""
    for i in range(labels.size):
        for e in range(indptr[i], indptr[i + 1]):
            if labels[i] < 0:
                continue
            if labels[cols[e]] == labels[i]:
                inside[labels[i]] += scores[e] / 2
            else:
                leaving[labels[i]] += scores[e]


@nb.njit(cache=True, nogil=True)
def crossing(indptr, cols, scores, labels):
    """Return the clusters of the two ends, lower first, and p, of each edge between two clusters."""
    count = 0
    for i in range(labels.size):
        for e in range(indptr[i], indptr[i + 1]):
            j = np.int64(cols[e])
            count += i < j and labels[i] != labels[j] and labels[i] >= 0 and labels[j] >= 0
    low, high, p, at = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.float64), 0
    for i in range(labels.size):
        for e in range(indptr[i], indptr[i + 1]):
            j = np.int64(cols[e])
            if i < j and labels[i] != labels[j] and labels[i] >= 0 and labels[j] >= 0:
                low[at], high[at] = min(labels[i], labels[j]), max(labels[i], labels[j])
                p[at] = scores[e]
                at += 1
    return low, high, p
