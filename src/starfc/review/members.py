"""The members of each cluster, in the order in which they are shown, and where they lie in two dimensions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starfc.data.dataset import Features
from starfc.review.measures import Review

DRAWN = 2000  # members of a cluster that are projected, at most
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Members:
    """Rows of a cluster, the most typical first (so the medoid is ``rows[0]``), with their similarity to its mean.

    ``drawn`` are the places in ``rows`` of those that are projected, and ``xy`` (len(drawn), 2) float32 their two
    principal components. Without features ``typical`` and ``xy`` are None, and the order is by confidence.
    """

    rows: NDArray[np.int64]
    typical: NDArray[np.float32] | None
    drawn: NDArray[np.int64]
    xy: NDArray[np.float32] | None


def each_cluster(
    labels: NDArray[np.int64], confidence: NDArray[np.float32], review: Review, features: Features | None
) -> Iterator[Members]:
    """The members of every cluster, by label; none where there is no such cluster any more."""
    by_label = np.argsort(labels, kind="stable")[np.count_nonzero(labels < 0) :]
    stops = np.cumsum(review.sizes)
    for label, (start, stop) in enumerate(zip(stops - review.sizes, stops, strict=True)):
        rows = by_label[start:stop]
        if features is None:
            order = np.lexsort((rows, -confidence[rows]))
            yield Members(rows[order], None, np.empty(0, np.int64), None)
            continue
        typical = _typical(features, rows)
        order = np.lexsort((rows, -typical))
        rows, typical = rows[order], typical[order]
        drawn = np.arange(len(rows)) if len(rows) <= DRAWN else _sample(rows, review.cuts.first[label])
        xy = components_2d(features.rows(rows[drawn])) if len(rows) > 2 else None
        yield Members(rows, typical, drawn if xy is not None else np.empty(0, np.int64), xy)


def _typical(features: Features, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """<f_i, mean>, which is i's mean similarity to the members, over the mean's length: (n,) float32; -1 for NaN."""
    if len(rows) <= 1:
        return np.ones(len(rows), np.float32)
    blocks = [rows[at : at + _BLOCK] for at in range(0, len(rows), _BLOCK)]
    with np.errstate(invalid="ignore"):
        mean = sum(features.rows(block).sum(axis=0, dtype=np.float64) for block in blocks)
        mean = (mean / max(np.linalg.norm(mean), 1e-30)).astype(np.float32)
        return np.nan_to_num(np.concatenate([features.rows(block) @ mean for block in blocks]), nan=-1)


def _sample(rows: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places spread evenly from the most to the least typical, and those of the weakest bridge's ends."""
    spread = np.linspace(0, len(rows) - 1, DRAWN).astype(np.int64)
    return np.union1d(spread, np.flatnonzero(np.isin(rows, ends)))


def components_2d(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Two principal components of (n, d) points, the same for equal points: (n, 2) float32.

    The sign of a component is such that its entry of largest size is positive.
    """
    centred = np.nan_to_num(points - points.mean(axis=0))
    if len(points) <= points.shape[1]:
        values, vectors = np.linalg.eigh(centred @ centred.T)
        xy = vectors[:, ::-1][:, :2] * np.sqrt(np.maximum(values[::-1][:2], 0))
    else:
        xy = centred @ np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :2]
    if xy.shape[1] < 2:
        xy = np.pad(xy, ((0, 0), (0, 2 - xy.shape[1])))
    largest = xy[np.abs(xy).argmax(axis=0), np.arange(2)]
    return (xy * np.where(largest < 0, -1, 1)).astype(np.float32)
