"""Sort the members of each cluster for display, and project them to two dimensions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starfc.data.dataset import Features
from starfc.review.measures import Review

DRAWN = 2000  # maximum number of members of a cluster that are projected
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Members:
    """The n members of a cluster.

    Attributes
    ----------
    rows : (n,) int64
        Rows of the members, most typical first, so that ``rows[0]`` is the medoid. Without features they are sorted by
        confidence.
    typical : (n,) float32 or None
        Similarity of each member to the mean of the cluster. None without features.
    drawn : (p,) int64
        Positions in ``rows`` of the members that are projected.
    xy : (p, 2) float32 or None
        The first two principal components of these members. None without features.
    """

    rows: NDArray[np.int64]
    typical: NDArray[np.float32] | None
    drawn: NDArray[np.int64]
    xy: NDArray[np.float32] | None


def each_cluster(
    labels: NDArray[np.int64], confidence: NDArray[np.float32], review: Review, features: Features | None
) -> Iterator[Members]:
    """Yield the members of every cluster, in the order of the labels. A removed cluster has no members."""
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
    """Return the similarity of each member to the normalised mean of all members, (n,) float32; -1 in place of NaN.

    It is proportional to the mean similarity of the member to all members.
    """
    if len(rows) <= 1:
        return np.ones(len(rows), np.float32)
    blocks = [rows[at : at + _BLOCK] for at in range(0, len(rows), _BLOCK)]
    with np.errstate(invalid="ignore"):
        mean = sum(features.rows(block).sum(axis=0, dtype=np.float64) for block in blocks)
        mean = (mean / max(np.linalg.norm(mean), 1e-30)).astype(np.float32)
        return np.nan_to_num(np.concatenate([features.rows(block) @ mean for block in blocks]), nan=-1)


def _sample(rows: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return evenly spaced positions from the most to the least typical member, and those of the rows ``ends``."""
    spread = np.linspace(0, len(rows) - 1, DRAWN).astype(np.int64)
    return np.union1d(spread, np.flatnonzero(np.isin(rows, ends)))


def components_2d(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Project (n, d) points to their first two principal components, (n, 2) float32.

    The sign of a component is chosen so that its entry of largest absolute value is positive; equal points thus give
    equal results.
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
