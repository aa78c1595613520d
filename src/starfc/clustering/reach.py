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

Very large sets. The samples of samples make the time grow by N log N. Therefore, of more than :data:`MANY` rows only
one sample is drawn, and it has at most :data:`LARGEST` rows. It can join clusters that have at least 10 rows in it. One
sample alone puts many look-alikes together, so p must be high, as above, between clusters of any size. In such a set
the opposite mistake occurs too. Bad photos of many identities lie in one place. This place becomes so dense that the
lists of its rows hold nothing else, and it looks like one identity; in the sample it does not. So a cluster that is
larger than a neighbour list is *taken apart* if less than half of the pairs of its rows in the sample are in one
cluster there, and if the sample shows more than a few lone rows of one identity: either at least two pieces have 10
rows, or at least 100 rows lie in pieces of which none has a tenth of them. The parts are the pieces that have at least
10 rows. A row outside the sample joins a part if more than half of its edges to sample rows of its cluster lead there,
by p. All other rows become clusters of their own, and so do rows that no edge with p > τ1 connects with their part.
Edges between parts, and edges that leave parts of fewer than 10 rows, are left out of the result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numba as nb
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from starfc.clustering.adaptation import choose_threshold
from starfc.clustering.choice import agreement
from starfc.clustering.components import components
from starfc.clustering.parsing import ENTRIES, parse
from starfc.clustering.partition import communities, search_bytes
from starfc.data.dataset import Features
from starfc.graph.edge_list_kernels import add_inside
from starfc.graph.edges import EdgeList
from starfc.graph.neighbours import KnnGraph
from starfc.models.checkpoint import Model
from starfc.runtime.stages import Stages

log = logging.getLogger("starfc")

TIMES = 3  # number of samples; in a sample, lists reach this many times as far
LEAST = 10  # minimum size of a cluster that can be joined, of its part in one sample, and of a piece, in rows
# minimum share of pairs in one cluster; minimum mean p between small clusters; edges with p <= LIKELY are ignored
TOGETHER, SURE, LIKELY = 0.9, 0.9, 0.5
APART = 0.5  # a cluster is taken apart if less than this share of its pairs is together in the sample, and if ...
# ... two pieces have LEAST rows, or SCATTERED rows lie in pieces that hold less than this share of them
SCATTERED, SCATTER = 100, 0.1
MANY, LARGEST = 200_000, 300_000  # of more rows, one sample is drawn; maximum number of its rows
LEAST_LISTS = 4  # minimum size of a sample, in lists; in smaller samples, lists would hold most of the rows

Search = Callable[[Features], KnnGraph]


@dataclass(frozen=True)
class Links:
    """Edges between clusters, in both directions: their ends (m,) int64 and p (m,) float32."""

    rows: NDArray[np.int64]
    cols: NDArray[np.int64]
    scores: NDArray[np.float32]

    def select(self, keep: NDArray[np.bool_]) -> Links:
        """Return the links where ``keep`` (m,) is True."""
        return Links(self.rows[keep], self.cols[keep], self.scores[keep])

    def added_to(self, edges: EdgeList) -> EdgeList:
        """Return the edge list with these links added."""
        return edges.with_edges(self.rows, self.cols, self.scores)[0]


@dataclass(frozen=True)
class Sample:
    """A sample of the rows and its clustering.

    Attributes
    ----------
    rows : (m,) int64
        The sampled rows of the set, in increasing order.
    labels : (m,) integers
        Their clusters in the sample.
    links : Links
        The edges with p > 0.5 that lie inside a cluster of the sample and between two clusters of the set. Their ends
        are rows of the set.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.integer]
    links: Links


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
        if a sample has less than about a third of the rows; its few rows of each identity are harder to cluster.
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
    """Join the clusters that samples of the rows put together, and take apart those that they divide.

    Parameters
    ----------
    members : (N,) integers in [0, N)
        The smallest member of each row's cluster.
    edges : EdgeList
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
        parts = [parts[0][:LARGEST]]
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
        agreed=found.agreed if times <= TIMES else None,
    )


def mean_inside(members: NDArray[np.integer], edges: EdgeList) -> NDArray[np.float64]:
    """Return the mean p of the edges with p > 0.5 inside each cluster, (N,) float64.

    Entry i belongs to the cluster that is named i; it is 0 if the cluster has no such edge.
    """
    total, count = np.zeros(len(members), np.float64), np.zeros(len(members), np.int64)
    add_inside(edges.indptr, edges.cols, edges.scores, members, np.float32(LIKELY), total, count)
    return total / np.maximum(count, 1)


def sample(
    members: NDArray[np.integer], rows: NDArray[np.int64], labels: NDArray[np.integer], edges: EdgeList
) -> Sample:
    """Return a :class:`Sample`; of its ``edges``, only those that could join clusters of the set are kept.

    Parameters
    ----------
    members : (N,) integers
        The clusters of the set.
    rows, labels : (m,) integers
        The sampled rows, and their clusters in the sample.
    edges : EdgeList
        The edges between the m rows.
    """
    apart = ~edges.inside(members[rows])
    between = edges.select(apart & edges.inside(labels) & (edges.scores > LIKELY))
    return Sample(rows, labels, Links(rows[between.rows], rows[between.cols], between.scores))


def taken_apart(
    members: NDArray[np.integer], edges: EdgeList, columns: int, tau1: float, drawn: Sample
) -> tuple[NDArray[np.integer], int]:
    """Take apart the clusters that a sample divides.

    Parameters
    ----------
    members : (N,) integers in [0, N)
        The smallest member of each row's cluster.
    edges : EdgeList
        Scored edges of the set.
    columns : int
        Neighbours in each list; only larger clusters are taken apart.
    tau1 : float
        Only edges with p > τ1 hold a part together.
    drawn : Sample
        The sample.

    Returns
    -------
    (N,) integers
        The smallest member of each row's cluster afterwards.
    int
        The number of clusters that were taken apart.
    """
    n = len(members)
    of, piece_of, size = _pieces(members, drawn)
    drawn_of = np.bincount(members[drawn.rows], minlength=n)
    together, pairs = np.bincount(of, size * (size - 1.0), n), drawn_of * (drawn_of - 1.0)
    larger = np.bincount(members, minlength=n) > columns
    pieces, largest = np.bincount(of[size >= LEAST], minlength=n), np.zeros(n, np.int64)
    np.maximum.at(largest, of, size)
    scattered = (drawn_of >= SCATTERED) & (largest < SCATTER * drawn_of)
    divided = larger & (together < APART * pairs) & ((pieces >= 2) | scattered)
    rows = np.flatnonzero(divided[members])
    # 0: not in the sample; 1: in a small piece; from 2 on: the pieces
    part = np.zeros(n, np.int64)
    part[drawn.rows] = np.where(size[piece_of] >= LEAST, piece_of + 2, 1)
    found = np.empty(len(rows), np.int64)
    _attach(rows, edges.indptr, edges.cols, edges.scores, members, part, found)
    # a row without a part is named by itself, other rows by the smallest row of their part
    _, first, of_row = np.unique(np.where(found >= 2, found, -1 - rows), return_index=True, return_inverse=True)
    after = np.array(members)
    after[rows] = rows[first][of_row]
    after[rows] = _connected(rows, after, edges, tau1)
    return after, int(divided.sum())


def stay_apart(edges: EdgeList, former: NDArray[np.integer], members: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return which edges remain after clusters were taken apart, (E,), so that no later step undoes it.

    Edges between the parts of a cluster go, and so do the edges that leave parts of fewer than 10 rows: these rows lie
    in a place where p says little. ``former`` and ``members`` (N,) are the clusters before and after.
    """
    after, before = np.bincount(members)[members], np.bincount(former)[former]
    small = (after < LEAST) & (after < before)
    neither_small = edges.inside(np.where(small, 1 + np.arange(len(members)), 0))
    return edges.inside(members) | (neither_small & ~edges.inside(former))


def _connected(
    rows: NDArray[np.int64], members: NDArray[np.integer], edges: EdgeList, tau1: float
) -> NDArray[np.integer]:
    """Return the smallest member of each of some rows (m,), if their clusters are divided into connected components.

    A component is connected by the edges with p > τ1 inside the cluster. The rows are all rows of their clusters.
    """
    counts = np.diff(edges.indptr)[rows]
    ends = np.repeat(rows, counts)
    at = np.arange(len(ends)) - np.repeat(np.cumsum(counts) - counts, counts) + edges.indptr[ends]
    cols, scores = edges.cols[at], edges.scores[at]
    holds = (members[cols] == members[ends]) & (scores > tau1)
    graph = EdgeList.from_rows(ends[holds], cols[holds], scores[holds], len(members))
    return components(graph)[rows].astype(members.dtype)


def _pieces(
    members: NDArray[np.integer], drawn: Sample
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the pieces of clusters in a sample: rows of one cluster of the set and one cluster of the sample.

    Returns
    -------
    (p,) int64, (m,) int64, (p,) int64
        The cluster of each piece, the piece of each sample row, and the number of rows of each piece.
    """
    span = int(drawn.labels.max(initial=0)) + 1
    keys = members[drawn.rows].astype(np.int64) * span + drawn.labels
    found, piece_of, size = np.unique(keys, return_inverse=True, return_counts=True)
    return found // span, piece_of, size


@nb.njit(cache=True, nogil=True)
def _attach(rows, indptr, cols, scores, members, part, out):
    """Write the part of each of some rows (m,), 0 or 1 if it has none.

    Of the edges of a row of part 0 to rows of other parts within its cluster, more than half, by p, lead to its part.
    """
    for r in range(rows.size):
        i = rows[r]
        out[r] = part[i]
        if part[i]:
            continue
        total, best, most = 0.0, np.int64(0), 0.0
        for e in range(indptr[i], indptr[i + 1]):
            if members[cols[e]] != members[i] or not part[cols[e]]:
                continue
            total += scores[e]
            if part[cols[e]] == best or part[cols[e]] == 1:
                continue
            votes = 0.0
            for f in range(indptr[i], indptr[i + 1]):
                if members[cols[f]] == members[i] and part[cols[f]] == part[cols[e]]:
                    votes += scores[f]
            if votes > most:
                best, most = part[cols[e]], votes
        if 2 * most > total:
            out[r] = best


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
    fit = (smaller >= LEAST) & (sure | (n <= MANY) & (smaller > columns))
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
