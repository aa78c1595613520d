"""Pairs of sides that questions may be about: two clusters with edges between them, or two parts of a cluster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from starfc.answers.covariances import Covariances
from starfc.answers.divide import divisions
from starfc.answers.evidence import Between, Evidence, Sides
from starfc.answers.measures import MEASURES, measured

_PAIRS = 1 << 15  # pairs that are measured at a time


@dataclass(frozen=True)
class Candidates:
    """Pairs of clusters with evidence between them: a, b (m,) int64 with a < b, and their measures (m, 19)."""

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    measures: NDArray[np.float64]


def join_candidates(evidence: Evidence, labels: NDArray[np.int64], sums: Sides, model: Covariances) -> Candidates:
    """Return all pairs of clusters with candidate edges between them. ``sums`` are the sums of the clusters."""
    a, b, between = evidence.crossing(labels)
    found, means = [np.empty((0, MEASURES))], model.at(sums)
    for start in range(0, len(a), _PAIRS):
        part = slice(start, start + _PAIRS)
        ours, theirs = a[part], b[part]
        both = means[ours], means[theirs]
        found.append(measured(sums.at(ours), sums.at(theirs), between.at(part), model, both))
    return Candidates(a, b, np.concatenate(found))


@dataclass(frozen=True)
class Divisions:
    """Divisions of a cluster of n rows: which rows are on one side (v, n) bool, and the measures (v, 19)."""

    masks: NDArray[np.bool_]
    measures: NDArray[np.float64]


def split_candidates(
    evidence: Evidence,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    model: Covariances,
    masks: NDArray[np.bool_] | None = None,
) -> Divisions:
    """Return the divisions of a cluster, given its rows and all clusters (N,).

    ``masks`` (v, n) are its divisions if they are known; otherwise :mod:`starfc.answers.divide` makes them.
    """
    ours, features = evidence.matrix[rows], evidence.rows(rows)
    inside = ours[:, rows]
    masks = divisions(inside, features) if masks is None else masks
    both = np.stack([masks, ~masks]).astype(np.float32)  # (2, v, n)
    one, other = both
    degree, third = np.asarray(ours.sum(axis=1)).ravel(), _thirds(ours, labels, rows)
    to_one = (inside @ one.T).T
    linked = sparse.csr_matrix((np.ones(inside.nnz, np.float32), inside.indices, inside.indptr), inside.shape)
    miss = inside.copy()
    miss.data = np.log1p(-np.minimum(miss.data, 1 - 1e-6).astype(np.float64))
    between = Between(
        (to_one * other).sum(axis=1, dtype=np.float64),
        ((linked @ one.T).T * other).sum(axis=1, dtype=np.float64),
        np.stack([(side * (1 - np.exp((miss @ rest.T).T))).sum(axis=1) for side, rest in (both, both[::-1])], axis=1),
        np.stack([(third.T @ side.T).max(axis=0, initial=0) for side in both], axis=1).astype(np.float64),
    )
    within = (to_one * one).sum(axis=1, dtype=np.float64) / 2
    rest = np.full(len(masks), inside.sum() / 2) - within - between.total
    sums, sizes = one @ features, masks.sum(axis=1).astype(np.float64)
    ends = one @ degree
    a = Sides(sizes, sums, within, ends - 2 * within)
    b = Sides(len(rows) - sizes, features.sum(axis=0) - sums, rest, degree.sum() - ends - 2 * rest)
    return Divisions(masks, measured(a, b, between, model))


def _thirds(ours: sparse.csr_matrix, labels: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return Σ p from each row of a cluster to each other cluster to which it has edges, (n, K)."""
    there = labels[ours.indices]
    out = (there >= 0) & (there != labels[rows[0]])
    names, at = np.unique(there[out], return_inverse=True)
    here = np.repeat(np.arange(len(rows)), np.diff(ours.indptr))[out]
    return sparse.csr_matrix((ours.data[out], (here, at)), (len(rows), len(names))).toarray()
