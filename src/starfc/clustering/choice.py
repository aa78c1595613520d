"""Choose τ1 without labels, and estimate the precision, recall and F-score of clusters without labels.

Both need a calibrated p: of the edges with p = 0.7, 70 % join two instances of one identity. With sums over the
candidate edges inside clusters (in) and over all candidate edges (all), the expected scores of a clustering are

    edge precision = Σ_in p / |in|,    edge recall = Σ_in p / Σ_all p,    edge F = 2 Σ_in p / (|in| + Σ_all p)

:func:`choose` computes communities at several τ1 and keeps the τ1 of the highest edge F. If the highest edge F is
below 1/2, most joins would be wrong, and the highest τ1 is used.

Precision and recall of *pairs* weigh each cluster by its number of pairs. Let n be the size of the cluster of instance
i, m the edge precision inside that cluster, w_i the sum of p over the edges from i into its cluster, and x_i the sum
over the edges from i out of it. Of the true partners of i, the expected numbers inside its cluster and in total are

    found_i = (n - 1) m,    all_i = found_i + x_i max(1, found_i / w_i)

The neighbour lists are shorter than large clusters. Therefore x_i is scaled by the same factor as w_i. This gives

    precision = Σ found_i / Σ (n - 1),    recall = Σ found_i / Σ all_i
    BCubed precision = mean (1 + found_i) / n,    BCubed recall = mean (1 + found_i) / (1 + all_i)

Without any pair in a cluster, precision and recall of pairs are 0, as ``starfc evaluate`` reports them.

If p is too high, these estimates are too high. Clusterings of samples of the rows (:mod:`starfc.clustering.reach`) are
an independent check: :func:`agreement` compares them with the clusters, and :func:`doubted` lowers the estimate to
that agreement. Of more than 1.6 million rows, the sample is too small for this check. It is also too small if a row
has, in the mean, less than one other row of its cluster in its sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch

import numpy as np
from numpy.typing import NDArray

from starfc.clustering.components import components
from starfc.clustering.joining import join_communities
from starfc.clustering.map_equation import LARGE
from starfc.clustering.partition import infomap
from starfc.graph.edges import Edges

LOWEST = 0.1  # edges with p at or below this are ignored
TOLERANCE = 0.0005  # allowed loss of edge F per doubling of N beyond 4,096, in favour of a higher τ1
HOPELESS = 0.5  # if the best expected edge F is below this, the highest τ1 is used
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # the τ1 that are tried
GIVEN = "given, not chosen from the data"


@dataclass(frozen=True)
class Estimate:
    """The expected scores of a clustering, each between 0 and 1.

    ``precision``, ``recall`` and ``fscore`` are those of pairs, ``bcubed`` is the BCubed F-score. ``agreement`` is the
    pairwise F-score between the clusters and the clusters of samples of the rows, None if no sample was clustered.
    """

    precision: float
    recall: float
    fscore: float
    bcubed: float
    agreement: float | None = None


@dataclass(frozen=True)
class Choice:
    """A threshold, the reason for it in one line, and the expected edge F of each τ1 that was tried."""

    tau1: float
    reason: str
    tried: dict[float, float]


def edge_fscore(sums: NDArray[np.float64], counts: NDArray[np.int32], mass: float) -> float:
    """Return the expected edge F of a clustering.

    Parameters
    ----------
    sums, counts : (N,) float64, (N,) int32
        Of each node, sum of p and number of its candidate edges with p > :data:`LOWEST` inside its cluster
        (:meth:`starfc.graph.edges.Edges.split_sums`).
    mass : float
        Σ p of all candidate edges; an undirected edge counts once.
    """
    count, total = int(counts.sum(dtype=np.int64)) / 2, float(sums.sum()) / 2
    return 2 * total / (count + mass) if count + mass > 0 else 1.0


def estimate(edges: Edges, members: NDArray[np.integer], core: NDArray[np.bool_] | None = None) -> Estimate:
    """Return the expected precision, recall and F-scores of clusters.

    ``edges`` are as for :func:`choose`; ``members`` (N,) integers in [0, N) are the clusters. ``core`` (N,) says which
    instances count, whole clusters. Default: all.
    """
    n = edges.num_nodes
    of_row, count, leaving = edges.split_sums(members)  # w, number of edges of w, x
    sizes = np.bincount(members, minlength=n)[members]
    mean = np.bincount(members, of_row, n) / np.maximum(np.bincount(members, count, n), 1)
    found = (sizes - 1) * mean[members]
    every = found + leaving * np.maximum(1, found / np.maximum(of_row, 1e-9) * (of_row > 0))
    if core is not None:
        sizes, found, every = sizes[core], found[core], every[core]
    precision, recall = (float(found.sum() / max(pairs, 1e-9)) for pairs in ((sizes - 1).sum(), every.sum()))
    of_cluster, of_identity = ((1 + found) / sizes).mean(), ((1 + found) / (1 + every)).mean()
    return Estimate(precision, recall, _harmonic(precision, recall), _harmonic(float(of_cluster), float(of_identity)))


def agreement(one: NDArray[np.integer], other: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the pairwise and the BCubed F-score (2,) between two clusterings (m,) of the same rows."""
    ones, others = np.unique(one, return_inverse=True)[1], np.unique(other, return_inverse=True)[1]
    cells, both = np.unique(ones.astype(np.int64) * len(others) + others, return_counts=True)
    of_one, of_other = np.bincount(ones), np.bincount(others)
    pairs = [float((size.astype(np.float64) * (size - 1)).sum()) for size in (both, of_one, of_other)]
    weight = both.astype(np.float64) ** 2 / len(one)
    in_one, in_other = (weight / of_one[cells // len(others)]).sum(), (weight / of_other[cells % len(others)]).sum()
    pairwise = _harmonic(_share(pairs[0], pairs[1]), _share(pairs[0], pairs[2]))
    return np.array([pairwise, _harmonic(float(in_one), float(in_other))])


def doubted(expected: Estimate, agreed: NDArray[np.float64]) -> Estimate:
    """Return the estimate, with the F-scores lowered to the agreement with samples where that is lower.

    ``agreed`` (2,) is the result of :func:`agreement`. Precision and recall are multiplied by the same factor as F.
    """
    pairwise, bcubed = map(float, agreed)
    factor = min(1.0, pairwise / expected.fscore) if expected.fscore > 0 else 1.0
    return Estimate(
        expected.precision * factor,
        expected.recall * factor,
        expected.fscore * factor,
        min(expected.bcubed, bcubed),
        pairwise,
    )


def choose(
    edges: Edges, mass: float, thresholds: Sequence[float], seed: int = 0, size: int | None = None
) -> tuple[Choice, NDArray[np.integer]]:
    """Choose τ1 by the expected edge F of its communities, and return the communities at this τ1.

    The communities are those of :func:`~starfc.clustering.partition.infomap`. If several τ1 are tried, large components
    are searched quickly, and once more thoroughly at the chosen τ1. Then communities that belong to one identity are
    joined (:mod:`starfc.clustering.joining`).

    Parameters
    ----------
    edges : Edges
        The candidate edges with p > :data:`LOWEST`, symmetric.
    mass : float
        Σ p of all candidate edges; an undirected edge counts once.
    thresholds : sequence of float
        The τ1 to try, in increasing order. The highest τ1 is chosen whose edge F is at most
        :data:`TOLERANCE` × log2(N / 4096) below the best (not below at all for N <= 4,096). In a larger set a wrong
        edge does more harm, and the candidate edges alone do not show this.
    seed : int
        Seed of the communities.
    size : int, optional
        N, if the edges are those of a part of a set of N rows. Default: the number of nodes of the edges.

    Returns
    -------
    Choice
    (N,) integers
        The smallest member of each node's community.
    """
    several = len(thresholds) > 1
    found = dict(zip(thresholds, communities_at(edges, thresholds, seed, several), strict=True))
    sums = edges.split_sums_each(list(found.values()))
    tried = {tau1: edge_fscore(inside, count, mass) for tau1, (inside, count, _) in zip(thresholds, sums, strict=True)}
    hopeless = max(tried.values()) < HOPELESS
    allowed = TOLERANCE * max(0.0, np.log2((size or edges.num_nodes) / 4096))
    tau1 = max(tau for tau, value in tried.items() if hopeless or value >= max(tried.values()) - allowed)
    members = finished(edges, found[tau1], tau1, seed, several)
    return Choice(tau1, why_tau1(tau1, tried, hopeless, allowed) if several else GIVEN, tried), members


def why_tau1(tau1: float, tried: Mapping[float, float], hopeless: bool, allowed: float) -> str:
    """Say in one line which τ1 were tried, with the expected edge F of each, and why ``tau1`` was taken.

    ``allowed`` is the loss of edge F that is accepted in favour of a higher τ1.
    """
    best = max(tried, key=lambda tau: (tried[tau], tau))
    if hopeless:
        why = f"all are below {100 * HOPELESS:g}, so most joins would be wrong, and the highest value was taken"
    elif len(set(tried.values())) == 1:
        why = "all are equal, and the highest value was taken"
    elif tau1 == best:
        why = f"{tau1:g} has the best"
    else:
        why = (
            f"{best:g} has the best, and {tau1:g} is the highest that is at most {100 * allowed:.2f} below it: "
            "a higher tau1 joins fewer strangers"
        )
    listed = ", ".join(f"{100 * value:.2f} at {tau:g}" for tau, value in tried.items())
    return f"{len(tried)} values were tried, with an expected F of edges of {listed}; {why}"


@singledispatch
def communities_at(edges: Edges, thresholds: Sequence[float], seed: int, quick: bool) -> list[NDArray[np.integer]]:
    """Return the communities (N,) at each τ1, each named by its smallest member.

    ``edges`` and ``thresholds`` are as for :func:`choose`, ``seed`` and ``quick`` as for
    :func:`~starfc.clustering.partition.infomap`. On shards, packs of components are tasks
    (:mod:`starfc.shards.communities`).
    """
    whole, found = edges.whole(), []
    for tau1 in thresholds:
        kept = whole.scores > tau1
        found.append(infomap(whole, seed, components(whole, kept), kept=kept, quick=quick))
    return found


@singledispatch
def finished(edges: Edges, members: NDArray[np.integer], tau1: float, seed: int, quick: bool) -> NDArray[np.integer]:
    """Return the communities (N,) at the chosen τ1: large components are searched thoroughly, then communities joined.

    ``members`` (N,) are the communities that were found, ``quick`` says whether large components were searched quickly.
    """
    whole = edges.whole()
    if quick and whole.num_nodes > LARGE:  # only then a component can be large
        kept = whole.scores > tau1
        pieces = components(whole, kept)
        if np.bincount(pieces).max() > LARGE:
            members = infomap(whole, seed, pieces, kept=kept)
    return join_communities(whole, members, tau1)


def _share(part: float, whole: float) -> float:
    """Return part / whole, or 1 if ``whole`` is 0."""
    return float(part / whole) if whole > 0 else 1.0


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b > 0 else 0.0
