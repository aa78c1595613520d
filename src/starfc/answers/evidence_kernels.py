"""Compiled loops over the edges inside and between clusters, and over pairs of them."""

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
def crossing(indptr, cols, scores, labels, count):
    """Return, for each row and each other cluster to which it has edges, what these edges say.

    Returns
    -------
    here, there : (r,) int64
        The cluster of the row, and the other cluster.
    total, number : (r,) float64
        Σ p and the number of the edges.
    cover : (r,) float64
        1 - Π (1 - p).
    """
    slot, met = np.full(count, -1, np.int64), np.empty(count, np.int64)
    most = 0
    for i in range(labels.size):
        found = 0
        for e in range(indptr[i], indptr[i + 1]):
            other = labels[cols[e]]
            if labels[i] >= 0 and other >= 0 and other != labels[i] and slot[other] < 0:
                slot[other] = 0
                met[found] = other
                found += 1
        slot[met[:found]] = -1
        most += found
    here, there = np.empty(most, np.int64), np.empty(most, np.int64)
    total, number, cover = np.zeros(most), np.zeros(most), np.ones(most)
    at = 0
    for i in range(labels.size):
        start = at
        for e in range(indptr[i], indptr[i + 1]):
            other = labels[cols[e]]
            if labels[i] < 0 or other < 0 or other == labels[i]:
                continue
            if slot[other] < 0:
                slot[other] = at
                here[at], there[at] = labels[i], other
                at += 1
            total[slot[other]] += scores[e]
            number[slot[other]] += 1
            cover[slot[other]] *= 1 - scores[e]
        slot[there[start:at]] = -1
    return here, there, total, number, 1 - cover


@nb.njit(cache=True, nogil=True)
def covariance_odds(a, b, first, second, between):
    """Return the log-odds (m,) of one identity by the two-covariance model.

    Parameters
    ----------
    a, b : (m, d) float32
        Means of the sides in the axes of the model.
    first, second : (m,) float64
        Variances of the means around that of their identity, along each axis.
    between : (d,) float64
        φ, the variances between identities.
    """
    found = np.zeros(len(a))
    for i in range(len(a)):
        distance, ratio, logs = 0.0, 1.0, 0.0
        for d in range(len(between)):
            phi = between[d]
            one, other, x, y = phi + first[i], phi + second[i], a[i, d], b[i, d]
            both = one * other - phi * phi
            distance += x * x / one + y * y / other
            distance -= (x * x * other + y * y * one - 2 * x * y * phi) / both
            ratio *= one * other / both
            if ratio > 1e200:  # one logarithm for many factors, each of which is above 1
                logs += np.log(ratio)
                ratio = 1.0
        found[i] = (distance + logs + np.log(ratio)) / 2
    return found
