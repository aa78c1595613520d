"""Identities that fall into several clusters: samples of the rows see farther than the lists of all rows.

The k neighbours of a row in a large or dense identity are the nearest of very many: they lie in one mode of it, and few
lists hold an edge to the next mode. Among a third of all rows, drawn at random, the same k neighbours reach three times
as far. So the rows are divided into three samples, each sample is clustered on its own by the same steps, this one
included, and two clusters of the whole set become one where samples put them together: where at least 0.9 of the pairs
(a, b) of the sample, one row of each cluster, are in one cluster there, and an edge of p > 0.5 leads from one to the
other.

* Both clusters are larger than a list, so that lists cannot hold the identity whole: one of the samples has to say so.
* Otherwise, of 10 rows or more: the pairs of all three samples are counted, and the edges that lead from one to the
  other must be sure: their mean p is at least 0.9, and at least that of the edges inside one of the two clusters in the
  whole set. Samples put look-alikes together as well, by edges that are less sure.

The edges that join, as far as they are above τ1, become edges of the result. The second and the third sample are only
clustered where the first one alone would join something, so that a set with nothing to join takes about half as long
again: a third, a ninth, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from starfc.clustering.adaptation import choose_threshold
from starfc.clustering.choice import agreement
from starfc.clustering.components import components
from starfc.clustering.parsing import ENTRIES, parse
from starfc.clustering.partition import communities
from starfc.data.dataset import Features
from starfc.graph.edges import EdgeList
from starfc.graph.neighbours import KnnGraph
from starfc.models.checkpoint import Model
from starfc.runtime.stages import Stages

TIMES = 3  # samples, and how many times as far lists reach in one
LEAST = 10  # rows of a cluster
TOGETHER, SURE, LIKELY = 0.9, 0.9, 0.5
LEAST_LISTS = 4  # rows of a sample, in lists: among fewer, lists hold most of the rows

Search = Callable[[Features], KnnGraph]


@dataclass(frozen=True)
class Links:
    """Edges that join clusters, in both directions: ends (m,) int64 and p (m,) float32."""

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    scores: NDArray[np.float32]

    def select(self, keep: NDArray[np.bool_]) -> Links:
        return Links(self.rows[keep], self.cols[keep], self.scores[keep])

    def added_to(self, edges: EdgeList) -> EdgeList:
        return edges.with_edges(self.rows, self.cols, self.scores)[0]


@dataclass(frozen=True)
class Sample:
    """Rows (m,) of the set, rising, their clusters (m,) in the sample, and the likely edges inside these that lead from
    one cluster of the set to another, as rows of the set.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.integer]
    links: Links


@dataclass(frozen=True)
class Reached:
    """Clusters (N,), each named by its smallest member, and the edges that join them.

    ``counts``: how many clusters were joined, and into how many. ``agreed`` (2,) float64 is the mean agreement of the
    clusters with those of the samples (:func:`starfc.clustering.choice.agreement`). All are None where no sample was
    clustered.
    """

    members: NDArray[np.integer]
    links: Links | None = None
    counts: tuple[int, int] | None = None
    agreed: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class SampleSteps:
    """How a sample of the rows is clustered: as :func:`starfc.clustering.pipeline.cluster` does, without adaptation.

    ``search`` makes the kNN graph; edges of p up to ``lowest`` are not looked at; ``tau1`` is None where the sample is
    to choose it. The other fields are the parameters of that function, ``seed`` is that of the samples, too.
    """

    model: Model
    search: Search
    lowest: float
    tau1: float | None
    partition: str
    resolution: float
    seed: int
    device: str | torch.device = "cpu"
    scratch: Path | None = None

    def __call__(self, rows: Features, stages: Stages) -> tuple[NDArray[np.integer], EdgeList]:
        """Clusters (m,) of m rows, each named by its smallest member, and the edges, symmetric."""
        with stages.stage("kNN graph"):
            graph = self.search(rows)
        start = parse(
            rows, graph, self.model, ENTRIES, tau1=self.lowest, device=self.device, stages=stages, scratch=self.scratch
        )
        with stages.stage("communities", needs=144 * len(start.edges)):
            chosen = choose_threshold(start.edges, start.mass, self.tau1, self.partition, self.seed)
            tau1, members = chosen.choice.tau1, chosen.members
            if members is None:
                likely = start.edges.select(start.edges.scores > tau1)
                members = communities(likely, self.partition, self.resolution, self.seed)
        reached = reach(members, start.edges, graph.k - 1, tau1, rows, self, stages)
        return reached.members, start.edges if reached.links is None else reached.links.added_to(start.edges)


def reach(
    members: NDArray[np.integer],
    edges: EdgeList,
    columns: int,
    tau1: float,
    features: Features,
    steps: SampleSteps,
    stages: Stages,
) -> Reached:
    """Join the clusters that samples of the rows hold together.

    Parameters
    ----------
    members : (N,) integers in [0, N)
        The smallest member of each row's cluster.
    edges : EdgeList
        Scored edges of the set, symmetric.
    columns : int
        Neighbours that a list holds.
    tau1 : float
        Edges that join clusters have p > τ1.
    features : Features
        Of the N rows.
    steps : SampleSteps
        Clusters a sample.
    """
    n = len(members)
    if n < TIMES * LEAST_LISTS * columns or np.count_nonzero(np.bincount(members) >= LEAST) < 2:
        return Reached(members)
    samples: list[Sample] = []
    with stages.together("samples") as inner:
        inside = mean_inside(members, edges)
        for part in np.array_split(np.random.default_rng(steps.seed).permutation(n), TIMES):
            rows = np.sort(part)
            samples.append(sample(members, rows, *steps(features.subset(rows, steps.scratch), inner)))
            if len(samples) == 1 and not len(one_identity(members, inside, columns, samples)[0]):
                break
    return join(members, inside, columns, tau1, samples)


def mean_inside(members: NDArray[np.integer], edges: EdgeList) -> NDArray[np.float64]:
    """Mean p of the likely edges inside each cluster, by the cluster's name (N,); 0 where it has none."""
    rows = edges.rows
    keep = (members[rows] == members[edges.cols]) & (edges.scores > LIKELY)
    of = members[rows[keep]]
    total = np.bincount(of, edges.scores[keep], len(members))
    return total / np.maximum(np.bincount(of, minlength=len(members)), 1)


def sample(
    members: NDArray[np.integer], rows: NDArray[np.int64], labels: NDArray[np.integer], edges: EdgeList
) -> Sample:
    """What is kept of a sample: ``edges`` between its ``rows``, of which those that could join clusters stay."""
    heads = edges.rows
    keep = (labels[heads] == labels[edges.cols]) & (edges.scores > LIKELY)
    ours, others = rows[heads[keep]], rows[edges.cols[keep]]
    links = Links(ours, others, edges.scores[keep])
    return Sample(rows, labels, links.select(members[ours] != members[others]))


def one_identity(
    members: NDArray[np.integer], inside: NDArray[np.float64], columns: int, samples: Sequence[Sample]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of clusters, each by the names of both, the lower one first, that the samples say to be one."""
    n = len(members)
    ours = np.concatenate([members[drawn.links.rows] for drawn in samples]).astype(np.int64)
    others = np.concatenate([members[drawn.links.cols] for drawn in samples]).astype(np.int64)
    scores = np.concatenate([drawn.links.scores for drawn in samples])
    once = ours < others
    pairs, of = np.unique(ours[once] * n + others[once], return_inverse=True)
    a, b = pairs // n, pairs % n
    mean = np.bincount(of, scores[once], len(pairs)) / np.maximum(np.bincount(of, minlength=len(pairs)), 1)
    sizes = np.bincount(members, minlength=n)
    smaller = np.minimum(sizes[a], sizes[b])
    sure = (mean >= SURE) & (mean >= np.minimum(inside[a], inside[b]))
    fit = (smaller >= LEAST) & ((smaller > columns) | sure)
    a, b, large = a[fit], b[fit], smaller[fit] > columns
    together, possible, best = np.zeros(len(a)), np.zeros(len(a)), np.zeros(len(a))
    for drawn in samples:
        entries = (np.ones(len(drawn.rows)), (members[drawn.rows], drawn.labels))
        rows_in = sparse.csr_matrix(entries, (n, int(drawn.labels.max(initial=0)) + 1))  # by cluster of set and sample
        in_one = np.asarray(rows_in[a].multiply(rows_in[b]).sum(axis=1)).ravel()
        drawn_of = np.bincount(members[drawn.rows], minlength=n)
        pairs_of = drawn_of[a] * drawn_of[b]
        together, possible = together + in_one, possible + pairs_of
        best = np.maximum(best, in_one / np.maximum(pairs_of, 1))
    fit = np.where(large, best, together / np.maximum(possible, 1)) >= TOGETHER
    return a[fit], b[fit]


def join(
    members: NDArray[np.integer], inside: NDArray[np.float64], columns: int, tau1: float, samples: Sequence[Sample]
) -> Reached:
    """Clusters that the samples say to be one, joined by the edges above τ1 that lead from one to the other."""
    n = len(members)
    a, b = one_identity(members, inside, columns, samples)
    rows = np.concatenate([drawn.links.rows for drawn in samples])
    cols = np.concatenate([drawn.links.cols for drawn in samples])
    links = Links(rows, cols, np.concatenate([drawn.links.scores for drawn in samples]))
    ours, others = members[rows].astype(np.int64), members[cols].astype(np.int64)
    pair = np.minimum(ours, others) * n + np.maximum(ours, others)
    joins = np.isin(pair, a * n + b) & (links.scores > tau1)
    links, ours, others = links.select(joins), ours[joins], others[joins]
    between = np.unique(np.stack([ours, others], axis=1), axis=0)
    graph = EdgeList.from_rows(between[:, 0], between[:, 1], np.ones(len(between), np.float32), n)
    root = components(graph)  # among the names of clusters
    involved = np.unique(between[:, 0])
    counts = len(involved), len(np.unique(root[involved]))
    # a cluster is named by its smallest member, and a component by its smallest node
    joined = root[members].astype(members.dtype)
    agreed = np.mean([agreement(joined[drawn.rows], drawn.labels) for drawn in samples], axis=0)
    return Reached(joined, links, counts, agreed)
