"""Measures of two sides, from which :mod:`starfc.answers.judge` says how probable it is that both are one identity.

Of the smaller side and the larger side, A and B:

1.      similarity of the means, relative to the similarity inside the sides (0: as unlike as any two rows of the set,
        1: as like as rows of one side);
2., 3.  log-odds of the two-covariance model (:mod:`starfc.answers.covariances`) with the sizes of the sides, and as if
        each side were one row;
4.      log of Σ p / (|A| |B|), the mean p of all pairs between the sides;
5.      log of the mean p of the candidate edges between the sides;
6., 7.  share of the p that leaves A, or B, which leads to the other side;
8., 9.  log of the expected share of rows of A, or B, with a right edge to the other side;
10., 11. log of Σ p to the other side relative to the third cluster to which A, or B, has most;
12., 13. log of the sizes;
14., 15. log of the share of all p of A, or B, that leaves it;
16., 17. log of Σ p inside A, or B, per row;
18., 19. similarity inside A, or B, relative to that of all clusters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from starfc.answers.covariances import Covariances
from starfc.answers.evidence import Between, Evidence, Sides

MEASURES = 19
LIKENESS = 11  # the first ones, which are higher the more alike the sides are
_NONE = 1e-3  # Σ p of sides without an edge
_SHRINK = 4  # rows of average similarity that are added to each side, so that small sides do not look too tight


def measured(
    a: Sides,
    b: Sides,
    between: Between,
    model: Covariances,
    means: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> NDArray[np.float64]:
    """Return the measures (m, 19) of m pairs of sides; of sides of equal size ``a`` counts as the smaller one.

    ``means`` are those of both sides in the axes of the model, where they are known.
    """
    if len(a.sizes) == 0:
        return np.empty((0, MEASURES))
    swap = (a.sizes > b.sizes)[:, None]
    sizes, inside, leaving, tight = (
        _ordered(x, y, swap)
        for x, y in (
            (a.sizes, b.sizes),
            (a.inside, b.inside),
            (a.leaving, b.leaving),
            (_inside(a, model), _inside(b, model)),
        )
    )
    cover, rival = (np.where(swap, x[:, ::-1], x) for x in (between.cover, between.rival))
    total, pairs = between.total[:, None], a.sizes * b.sizes
    leaving = np.maximum(leaving, 0)  # sums of float32 leave a rest
    relative = (tight - model.any) / (model.one - model.any)
    if a.sums.shape[1]:
        like = np.einsum("ij,ij->i", a.sums, b.sums, dtype=np.float64) / pairs - model.any
        like /= np.sqrt(np.maximum(tight - model.any, 1e-3).prod(axis=1))
        means, alone = means or (model.at(a), model.at(b)), np.ones(len(pairs))
        odds = [model.log_odds(*means, n) for n in ((a.sizes, b.sizes), (alone, alone))]
    else:
        like, odds = np.full(len(pairs), 0.7), [np.zeros(len(pairs))] * 2
    return np.column_stack(
        [
            np.clip(like, -1, 2),
            *odds,
            np.log((between.total + _NONE) / pairs),
            np.log((between.total + _NONE) / (between.count + 10 * _NONE)),
            total / np.maximum(leaving, 1e-6),
            np.log((cover + _NONE) / sizes),
            np.log((total + _NONE) / (rival + 10 * _NONE)),
            np.log(sizes),
            np.log((leaving + _NONE) / (2 * inside + leaving + 2 * _NONE)),
            np.log((2 * inside + _NONE) / sizes),
            relative,
        ]
    )


def _ordered(x: NDArray[np.float64], y: NDArray[np.float64], swap: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return values of the smaller and the larger side, (m, 2)."""
    both = np.stack([x, y], axis=1)
    return np.where(swap, both[:, ::-1], both)


def _inside(side: Sides, model: Covariances) -> NDArray[np.float64]:
    """Return the mean similarity inside each side, drawn towards that of the set's clusters where it is small."""
    square = np.einsum("ij,ij->i", side.sums, side.sums, dtype=np.float64)
    n = side.sizes
    own = (square - n) / np.maximum(n, 1)  # (n - 1) x mean similarity
    return (own + _SHRINK * model.one) / (n - 1 + _SHRINK)


def pair_measures(
    evidence: Evidence,
    model: Covariances,
    labels: NDArray[np.int64],
    a: Sequence[int] | NDArray[np.int64],
    b: Sequence[int] | NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the measures (19,) of two sides that are given by their rows.

    ``labels`` (N,) are the present clusters; those in which the sides lie are no third clusters.
    """
    sides: list[Sides] = []
    covers, rivals, edges = [], [], (0.0, 0.0)
    own = np.union1d(*(np.unique(labels[np.asarray(rows)]) for rows in (a, b)))
    for ours, theirs in ((a, b), (b, a)):
        rows, others = np.asarray(ours, np.int64), np.asarray(theirs, np.int64)
        matrix = evidence.matrix[rows]
        cross, inside = matrix[:, others], matrix[:, rows].sum() / 2
        sums = evidence.rows(rows).sum(axis=0, keepdims=True)
        leaving = np.array([matrix.sum() - 2 * inside])
        sides.append(Sides(np.array([float(len(rows))]), sums, np.array([inside]), leaving))
        edges = float(cross.sum()), float(cross.nnz)
        miss = cross.copy()
        miss.data = np.log1p(-np.minimum(miss.data, 1 - 1e-6).astype(np.float64))
        covers.append(float((1 - np.exp(miss.sum(axis=1))).sum()))
        third = ~np.isin(labels[matrix.indices], own) & (labels[matrix.indices] >= 0)
        found = np.bincount(labels[matrix.indices[third]], matrix.data[third])
        rivals.append(float(found.max(initial=0)))
    between = Between(np.array(edges[:1]), np.array(edges[1:]), np.array([covers]), np.array([rivals]))
    return measured(sides[0], sides[1], between, model)[0]
