"""A threshold chosen without labels, and an estimate of how right the clusters are.

Both rest on p being calibrated: among edges of p = 0.7, seven of ten are of one identity. Of the candidate edges of a
set, with sums over edges inside a cluster (in) and over all of them (all),

    edge precision = Σ_in p / |in|,    edge recall = Σ_in p / Σ_all p,    edge F = 2 Σ_in p / (|in| + Σ_all p)

are what is to be expected of a clustering. Communities are made at several τ1, and that of the highest edge F stays
(:func:`choose`); where even that is below 1/2, most of what could be joined would be wrong, and the highest τ1 stays.

Precision and recall of *pairs* weigh a cluster by its pairs. With n the size of the cluster of instance i, m the edge
precision inside that cluster, w_i and x_i the sums of p from i into its cluster and out of it, the expected numbers of
true partners of i are

    found_i = (n - 1) m,    all_i = found_i + x_i max(1, found_i / w_i)

(lists are shorter than large clusters: what leaves them is scaled as what stays inside is), so that

    precision = Σ found_i / Σ (n - 1),    recall = Σ found_i / Σ all_i
    BCubed precision = mean (1 + found_i) / n,    BCubed recall = mean (1 + found_i) / (1 + all_i)

Where p is too sure of itself, so is this. Samples of the rows that were clustered on their own
(:mod:`starfc.clustering.reach`) are a second opinion: clusters that a sample does not find again are not to be trusted
more than it agrees with them (:func:`agreement`, :func:`doubted`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starfc.clustering.components import components
from starfc.clustering.joining import join_communities
from starfc.clustering.partition import infomap
from starfc.graph.edges import EdgeList

LOWEST = 0.1  # edges of a lower p are not looked at
TOLERANCE = 0.0005
HOPELESS = 0.5  # expected edge F below which only edges of the highest p are believed
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # τ1 to choose from
GIVEN = "given, not chosen from the data"


@dataclass(frozen=True)
class Estimate:
    """What is to be expected of a clustering, fractions between 0 and 1: of pairs, and the BCubed F-score.

    ``agreement`` is the pairwise F-score between the clusters and those of samples, None where no sample was clustered.
    """

    precision: float
    recall: float
    fscore: float
    bcubed: float
    agreement: float | None = None


@dataclass(frozen=True)
class Choice:
    """A threshold, and why: one line. ``tried`` are edge F-scores by τ1."""

    tau1: float
    reason: str
    tried: dict[float, float]


def edge_fscore(edges: EdgeList, members: NDArray[np.integer], mass: float) -> float:
    """Edge F of a clustering.

    Parameters
    ----------
    edges : EdgeList
        Symmetric: the candidate edges with p > :data:`LOWEST`.
    members : (N,) integers
        Clusters.
    mass : float
        Σ p of all candidate edges, each counted once.
    """
    inside = np.repeat(members, np.diff(edges.indptr)) == members[edges.cols]
    count, total = np.count_nonzero(inside) / 2, float(edges.scores[inside].sum(dtype=np.float64)) / 2
    return 2 * total / (count + mass) if count + mass > 0 else 1.0


def estimate(edges: EdgeList, members: NDArray[np.integer]) -> Estimate:
    """Precision, recall and F-scores to be expected of clusters ``members`` (N,), integers in [0, N).

    ``edges`` as for :func:`edge_fscore`.
    """
    n = edges.num_nodes
    rows = np.repeat(np.arange(n), np.diff(edges.indptr))
    inside = members[rows] == members[edges.cols]
    of_row = np.bincount(rows[inside], edges.scores[inside], n)  # w
    leaving = np.bincount(rows[~inside], edges.scores[~inside], n)  # x
    sizes = np.bincount(members, minlength=n)[members]
    counts = np.bincount(members[rows[inside]], minlength=n)
    mean = np.bincount(members[rows[inside]], edges.scores[inside], n) / np.maximum(counts, 1)
    found = (sizes - 1) * mean[members]
    every = found + leaving * np.maximum(1, found / np.maximum(of_row, 1e-9) * (of_row > 0))
    precision = _share(found.sum(), (sizes - 1).sum())
    recall = _share(found.sum(), every.sum())
    of_cluster, of_identity = ((1 + found) / sizes).mean(), ((1 + found) / (1 + every)).mean()
    return Estimate(precision, recall, _harmonic(precision, recall), _harmonic(float(of_cluster), float(of_identity)))


def agreement(one: NDArray[np.integer], other: NDArray[np.integer]) -> NDArray[np.float64]:
    """Pairwise F-score and BCubed F-score (2,) between two clusterings (m,) of the same rows."""
    ones, others = np.unique(one, return_inverse=True)[1], np.unique(other, return_inverse=True)[1]
    cells, both = np.unique(ones.astype(np.int64) * len(others) + others, return_counts=True)
    of_one, of_other = np.bincount(ones), np.bincount(others)
    pairs = [float((size.astype(np.float64) * (size - 1)).sum()) for size in (both, of_one, of_other)]
    weight = both.astype(np.float64) ** 2 / len(one)
    in_one, in_other = (weight / of_one[cells // len(others)]).sum(), (weight / of_other[cells % len(others)]).sum()
    pairwise = _harmonic(_share(pairs[0], pairs[1]), _share(pairs[0], pairs[2]))
    return np.array([pairwise, _harmonic(float(in_one), float(in_other))])


def doubted(expected: Estimate, agreed: NDArray[np.float64]) -> Estimate:
    """The estimate, lowered to the agreement (2,) with samples (:func:`agreement`) where that is the lower one.

    Precision and recall are lowered by the same factor, which gives F this value.
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
    edges: EdgeList, mass: float, thresholds: Sequence[float], seed: int = 0
) -> tuple[Choice, NDArray[np.integer]]:
    """Communities (:func:`~starfc.clustering.partition.infomap`) at the threshold of the highest edge F, of which those
    that are one identity after all are joined (:mod:`starfc.clustering.joining`).

    Parameters
    ----------
    edges, mass : EdgeList, float
        As for :func:`edge_fscore`.
    thresholds : sequence of float
        τ1 to choose from, rising. The highest one stays whose edge F is within :data:`TOLERANCE` of the best for every
        doubling of N beyond 4,096: a wrong edge costs more in a larger set, which candidate edges alone do not show.

    Returns
    -------
    Choice, and (N,) integers, the smallest member of each node's community
    """
    tried: dict[float, float] = {}
    found: dict[float, NDArray[np.integer]] = {}
    for tau1 in thresholds:
        above = edges.select(edges.scores > tau1)
        found[tau1] = infomap(above, seed, components(above))
        tried[tau1] = edge_fscore(edges, found[tau1], mass)
    hopeless = max(tried.values()) < HOPELESS
    lowest = max(tried.values()) - TOLERANCE * max(0.0, np.log2(edges.num_nodes / 4096))
    tau1 = max(tau for tau, value in tried.items() if hopeless or value >= lowest)
    members = join_communities(edges, found[tau1], tau1)
    if len(tried) == 1:
        return Choice(tau1, GIVEN, tried), members
    listed = ", ".join(f"{100 * value:.2f} at {tau:g}" for tau, value in tried.items())
    reason = f"the highest whose expected F of candidate edges is the best, or near it in a large set ({listed})"
    if hopeless:
        reason = f"the highest: the expected F of candidate edges is low at any ({listed})"
    return Choice(tau1, reason, tried), members


def _share(part: float, whole: float) -> float:
    """A share of something; 1 of nothing."""
    return float(part / whole) if whole > 0 else 1.0


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b > 0 else 0.0
