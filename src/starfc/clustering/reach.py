"""Join clusters that belong to one identity, and take apart clusters that do not, with the help of samples of the rows.

In a large or dense identity, the k neighbours of a row are the nearest of very many rows. They lie in one mode of the
identity, and few neighbour lists hold an edge to another mode. So the identity can be split into several clusters. In a
random sample of a third of all rows, the same k neighbours reach three times as far. Therefore the rows are divided
into three samples. Each sample is clustered by the same steps, including this one. Two clusters A and B of the whole
set are joined if the samples put them together: of the pairs (a, b) of sample rows with a in A and b in B, at least 0.9
are in one cluster of the sample, and at least one edge with p > 0.5 connects A and B. In detail:

* If both clusters are larger than a neighbour list, it is enough that one of the samples puts them together. The lists
  cannot hold such an identity.
* Otherwise both clusters must have at least 10 rows, and the pairs of all three samples are counted together. The mean
  p of the edges between A and B must be at least 0.9, and at least the mean p inside A or inside B in the whole set.
  This is needed because samples also put look-alikes together, by edges with lower p.

The joining edges with p > τ1 are added to the edges of the result. The second and the third sample are clustered only
if the first sample alone would join something.

Very large sets. The samples of samples make the time grow by N log N. Therefore, of more than
:data:`~starfc.clustering.part.MANY` rows only one sample is drawn. It has a fifth of the rows, but at least
:data:`SMALLEST` and at most :data:`LARGEST`. It can join clusters that have at least 10 rows in it. One sample alone
puts many look-alikes together, so p must be high, as above, unless both clusters are larger than two lists: then they
can be parts of an identity that no list can hold, and p between such parts may be lower. In such a set the opposite
mistake occurs too. Bad photos of many identities lie in one place. This place becomes so dense that the lists of its
rows hold nothing else, and it looks like one identity; in the sample it does not. So a cluster that is larger than a
neighbour list is *taken apart* if less than half of the pairs of its rows in the sample are in one cluster there, and
if the sample shows more than a few lone rows of one identity: either at least two pieces have 10 rows, or at least 100
rows lie in pieces of which none has a tenth of them. The parts are the pieces that have at least 10 rows. A row outside
the sample joins a part if more than half of its edges to sample rows of its cluster lead there, by p. All other rows
become clusters of their own, and so do rows that no edge with p > τ1 connects with their part. Edges between parts, and
edges that leave parts of fewer than 10 rows, are left out of the result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from starfc.clustering.adaptation import choose_threshold
from starfc.clustering.choice import agreement
from starfc.clustering.components import components
from starfc.clustering.parsing import ENTRIES, parse
from starfc.clustering.part import MANY
from starfc.clustering.partition import communities, search_bytes
from starfc.clustering.samples import LEAST, LIKELY, Links, Sample, sample, taken_apart
from starfc.data.dataset import Features
from starfc.graph.edges import EdgeList, Edges
from starfc.graph.neighbours import KnnGraph
from starfc.models.checkpoint import Model
from starfc.runtime.stages import Stages

log = logging.getLogger("starfc")

TIMES = 3  # number of samples; in a sample, lists reach this many times as far
TOGETHER, SURE = 0.9, 0.9  # minimum share of pairs in one cluster; minimum mean p between small clusters
SMALLEST, LARGEST = 100_000, 300_000  # limits of the sample of more than MANY rows, which has a fifth of them
CHECKING = 5  # a sample of less than a fifth of the rows has too few of each identity to check the estimate
LEAST_LISTS = 4  # minimum size of a sample, in lists; in smaller samples, lists would hold most of the rows

Search = Callable[[Features], KnnGraph]


@dataclass(frozen=True)
class Counts:
    """What the samples changed.

    ``joined`` clusters became ``into`` clusters, and ``apart`` clusters were taken apart. In the samples, lists reached
    ``times`` times as far.
    """

    joined: int
    into: int
    apart: int = 0
    times: int = TIMES


@dataclass(frozen=True)
class Reached:
    """The clusters after both. ``links`` and ``counts`` are None if no sample was clustered.

    Attributes
    ----------
    members : (N,) integers
        The smallest member of each row's cluster.
    links : Links, optional
        The edges that join clusters.
    counts : Counts, optional
    agreed : (2,) float64, optional
        The mean agreement of the clusters with those of the samples (:func:`starfc.clustering.choice.agreement`). None
        if a sample has less than about a fifth of the rows, or if a row has, in the mean, less than one other row of
        its cluster in its sample: identities with few rows in a sample are harder to cluster there.
    former : (N,) integers, optional
        The smallest member of each row's cluster before clusters were taken apart; None if none was.
    """

    members: NDArray[np.integer]
    links: Links | None = None
    counts: Counts | None = None
    agreed: NDArray[np.float64] | None = None
    former: NDArray[np.integer] | None = None


@dataclass(frozen=True)
class SampleSteps:
    """A function that clusters a sample like :func:`starfc.clustering.pipeline.cluster`, but without adaptation.

    ``search`` builds the kNN graph. Edges with p <= ``lowest`` are ignored. If ``tau1`` is None, each sample chooses
    its own. The other fields are the parameters of :func:`starfc.clustering.pipeline.cluster`. ``seed`` is also the
    seed of the samples.
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
        """Return the clusters (m,) of m rows, each named by its smallest member, and the symmetric edges."""
        with stages.stage("kNN graph"):
            graph = self.search(rows)
        start = parse(
            rows, graph, self.model, ENTRIES, tau1=self.lowest, device=self.device, stages=stages, scratch=self.scratch
        )
        with stages.stage("communities", needs=search_bytes(start.edges)):
            chosen = choose_threshold(start.edges, start.mass, self.tau1, self.partition, self.seed)
            tau1, members = chosen.choice.tau1, chosen.members
            if members is None:
                likely = start.edges.above(tau1).whole()
                members = communities(likely, self.partition, self.resolution, self.seed)
        reached = reach(members, start.edges, graph.k - 1, tau1, rows, self, stages)
        edges = start.edges if reached.links is None else reached.links.added_to(start.edges)
        return reached.members, edges.whole()


def reach(
    members: NDArray[np.integer],
    edges: Edges,
    columns: int,
    tau1: float,
    features: Features,
    steps: SampleSteps,
    stages: Stages,
) -> Reached:
    """Join the clusters that samples of the rows put together, and take apart those that they divide.

    Parameters
    ----------
    members : (N,) integers in [0, N)
        The smallest member of each row's cluster.
    edges : Edges
        Scored edges of the set, symmetric.
    columns : int
        Neighbours in each list of the kNN graph.
    tau1 : float
        Only edges with p > τ1 join clusters.
    features : Features
        Features of the N rows.
    steps : SampleSteps
        The function that clusters a sample.
    stages : Stages
        Records the time of the samples.
    """
    n = len(members)
    needed = 1 if n > MANY else 2  # to take apart, or to join
    if n < TIMES * LEAST_LISTS * columns or np.count_nonzero(np.bincount(members) >= LEAST) < needed:
        return Reached(members)
    parts = np.array_split(np.random.default_rng(steps.seed).permutation(n), TIMES)
    if n > MANY:
        parts = [parts[0][: np.clip(n // CHECKING, SMALLEST, LARGEST)]]
    samples: list[Sample] = []
    with stages.together("samples") as inner:
        inside = mean_inside(members, edges)
        for part in parts:
            rows = np.sort(part)
            samples.append(sample(members, rows, *steps(features.subset(rows, steps.scratch), inner)))
            if len(samples) == 1 < len(parts) and not len(one_identity(members, inside, columns, samples)[0]):
                break
        former, apart = None, 0
        if n > MANY:
            former = members
            members, apart = taken_apart(members, edges, columns, tau1, samples[0])
        if apart:
            inside = mean_inside(members, edges)
    found, times = join(members, inside, columns, tau1, samples), round(n / len(samples[0].rows))
    assert found.counts is not None
    return replace(
        found,
        former=former if apart else None,
        counts=replace(found.counts, apart=apart, times=times),
        agreed=found.agreed if times <= CHECKING and mates(found.members) >= times else None,
    )


def mates(members: NDArray[np.integer]) -> float:
    """Return the mean number of other rows in a row's cluster."""
    return float((np.bincount(members)[members] - 1).mean())


def mean_inside(members: NDArray[np.integer], edges: Edges) -> NDArray[np.float64]:
    """Return the mean p of the edges with p > 0.5 inside each cluster, (N,) float64.

    Entry i belongs to the cluster that is named i; it is 0 if the cluster has no such edge.
    """
    total, count, _ = edges.split_sums(members, above=LIKELY)
    return np.bincount(members, total) / np.maximum(np.bincount(members, count), 1)


def one_identity(
    members: NDArray[np.integer], inside: NDArray[np.float64], columns: int, samples: Sequence[Sample]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs (a, b), a < b, of clusters that the samples put together.

    ``inside`` (N,) is the result of :func:`mean_inside`; ``columns`` is the number of neighbours in a list.
    """
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
    fit = (smaller >= LEAST) & (sure | (smaller > columns * (1 if n <= MANY else 2)))
    if n > MANY:
        in_sample = np.bincount(members[samples[0].rows], minlength=n)
        fit &= np.minimum(in_sample[a], in_sample[b]) >= LEAST
    a, b, large = a[fit], b[fit], smaller[fit] > columns
    together, possible, best = np.zeros(len(a)), np.zeros(len(a)), np.zeros(len(a))
    for drawn in samples:
        entries = (np.ones(len(drawn.rows)), (members[drawn.rows], drawn.labels))
        # number of rows in each cluster of the set (row) and of the sample (column)
        rows_in = sparse.csr_matrix(entries, (n, int(drawn.labels.max(initial=0)) + 1))
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
    """Join the clusters that the samples put together, by the edges with p > τ1 between them."""
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
    root = components(graph)  # of cluster names, not of rows
    involved = np.unique(between[:, 0])
    counts = Counts(len(involved), len(np.unique(root[involved])))
    # A component is named by its smallest node, so a joined cluster is still named by its smallest member.
    joined = root[members].astype(members.dtype)
    agreed = np.mean([agreement(joined[drawn.rows], drawn.labels) for drawn in samples], axis=0)
    return Reached(joined, links, counts, agreed)
