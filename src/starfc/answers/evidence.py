"""Evidence about two sides of rows: how probable it is that both are one identity.

A side is a cluster or a part of one. The evidence is all candidate edges between the sides, with calibrated p, and the
features of their members:

1. similarity of the centroids, relative to the similarity inside the sides (0: as unlike as any two rows of the set,
   1: as like as members of one side);
2. log of Σ p / (|A| |B|), the mean p of all pairs between the sides;
3. log of the mean p of the candidate edges between the sides;
4. share of the p that leaves the smaller side which leads to the other side;
5. log of the sizes of the smaller and of the larger side.

The measures are taken relative to their mean and spread over all candidates of the set, because these differ much
between embeddings. A logistic regression turns them into a probability. Its weights start at values that were fitted on
labelled sets (``benchmarks/answers.py --fit``), and every answer changes them: they are the most probable weights,
given the answers and a normal distribution around the first values. So the answers to some questions change p of all
pairs of sides that look like them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit

from starfc.answers.evidence_kernels import crossing, sum_clusters
from starfc.clustering.parsing import ENTRIES, ParsedEdges, parse
from starfc.data.dataset import Features
from starfc.graph.edges import EdgeList, row_pointers
from starfc.graph.neighbours import KnnGraph, id_dtype
from starfc.incremental.lists import Lists
from starfc.incremental.state import State
from starfc.runtime.stages import Stages

FAINT = 0.02  # candidate edges with p at or below this are no evidence
_NONE = 1e-3  # Σ p of sides without an edge
_SHRINK = 4  # rows of average similarity that are added to each side, so that small sides do not look too tight


@dataclass(frozen=True)
class Sides:
    """Sums over S sides.

    Attributes
    ----------
    sizes : (S,) float64
        Number of rows.
    sums : (S, d) float32
        Sum of the normalised features; d = 0 without features.
    inside, leaving : (S,) float64
        Σ p of the edges inside the side, and of the edges that leave it.
    """

    sizes: NDArray[np.float64]
    sums: NDArray[np.float32]
    inside: NDArray[np.float64]
    leaving: NDArray[np.float64]

    def at(self, which: NDArray[np.integer]) -> Sides:
        """Return some of the sides."""
        return Sides(self.sizes[which], self.sums[which], self.inside[which], self.leaving[which])


@dataclass(frozen=True)
class Background:
    """Similarities of the set: of two random rows (``any``), and of two rows of one cluster (``one``)."""

    any: float
    one: float


class Evidence:
    """The evidence of a set of N rows.

    Parameters
    ----------
    edges : EdgeList
        Candidate edges with p > :data:`FAINT`, symmetric (:func:`candidate_edges`).
    features : Features, optional
        Features of all rows. Without them similarities do not count.
    """

    def __init__(self, edges: EdgeList, features: Features | None = None) -> None:
        self.edges, self.features = edges, features
        self.dim = 0 if features is None else features.dim
        self.matrix = sparse.csr_matrix((edges.scores, edges.cols, edges.indptr), (edges.num_nodes, edges.num_nodes))
        self.mean = np.zeros(self.dim, np.float64)
        if features is not None and len(features):
            for block in features.blocks():
                self.mean += np.nan_to_num(features.rows(block)).sum(axis=0)
            self.mean /= len(features)

    def rows(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the normalised features of some rows, (m, d); rows without direction are 0."""
        if self.features is None:
            return np.zeros((len(rows), 0), np.float32)
        return np.nan_to_num(self.features.rows(rows))

    def clusters(self, labels: NDArray[np.int64], count: int) -> Sides:
        """Return the sums of all clusters 0..count-1. Rows with label -1 are in none."""
        sums = np.zeros((count, self.dim), np.float32)
        if self.features is not None:
            for block in self.features.blocks():
                of_block = labels[block]
                here = np.flatnonzero(of_block >= 0)
                entries = (np.ones(len(here), np.float32), (of_block[here], np.arange(len(here))))
                sums += sparse.csr_matrix(entries, (count, len(here))) @ self.rows(here + block.start)
        inside, leaving = np.zeros(count), np.zeros(count)
        sum_clusters(self.edges.indptr, self.edges.cols, self.edges.scores, labels, inside, leaving)
        sizes = np.bincount(labels[labels >= 0], minlength=count).astype(np.float64)
        return Sides(sizes, sums, inside, leaving)

    def background(self, clusters: Sides) -> Background:
        """Return the similarities of the set, given the sums of its clusters."""
        square = np.einsum("ij,ij->i", clusters.sums, clusters.sums, dtype=np.float64)
        pairs = float((clusters.sizes * (clusters.sizes - 1)).sum())
        between = float(self.mean @ self.mean)
        within = float((square - clusters.sizes)[clusters.sizes > 1].sum()) / pairs if pairs else 1.0
        return Background(between, max(within, between + 1e-3))

    def two(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> tuple[Sides, float, float]:
        """Return the sums of two sides, given by their rows, and Σ p and number of the edges between them."""
        ours, others = self.matrix[a], self.matrix[b]
        inside, cross = ours[:, a].sum() / 2, ours[:, b]
        within = others[:, b].sum() / 2
        sums = np.stack([self.rows(a).sum(axis=0), self.rows(b).sum(axis=0)])
        leaving = np.array([ours.sum() - 2 * inside, others.sum() - 2 * within])
        sizes = np.array([len(a), len(b)], np.float64)
        return Sides(sizes, sums, np.array([inside, within]), leaving), float(cross.sum()), float(cross.nnz)

    def crossing(
        self, labels: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Return the pairs of clusters with edges between them: a, b (m,) with a < b, and Σ p and number of edges."""
        low, high, p = crossing(self.edges.indptr, self.edges.cols, self.edges.scores, labels)
        count = int(labels.max(initial=0)) + 1
        pairs, of = np.unique(low * count + high, return_inverse=True)
        total, edges = (np.bincount(of, x, len(pairs)).astype(np.float64) for x in (p, np.ones(len(p))))
        return pairs // count, pairs % count, total, edges


def measured(
    a: Sides, b: Sides, total: NDArray[np.float64], count: NDArray[np.float64], background: Background
) -> NDArray[np.float64]:
    """Return the measures (m, 6) of m pairs of sides; see the docstring of the module.

    ``total`` and ``count`` (m,) are Σ p and the number of the edges between the sides of each pair.
    """
    tight = [np.maximum(_inside(side, background) - background.any, 1e-3) for side in (a, b)]
    between = np.einsum("ij,ij->i", a.sums, b.sums, dtype=np.float64) / (a.sizes * b.sizes) - background.any
    likeness = between / np.sqrt(tight[0] * tight[1]) if a.sums.shape[1] else np.full(len(total), 0.7)
    smaller, larger = np.minimum(a.sizes, b.sizes), np.maximum(a.sizes, b.sizes)
    leaving = np.where(a.sizes <= b.sizes, a.leaving, b.leaving)
    return np.stack(
        [
            np.clip(likeness, -1, 2),
            np.log((total + _NONE) / (a.sizes * b.sizes)),
            np.log((total + _NONE) / (count + 10 * _NONE)),
            total / np.maximum(leaving, 1e-6),
            np.log(smaller),
            np.log(larger),
        ],
        axis=1,
    )


def _inside(side: Sides, background: Background) -> NDArray[np.float64]:
    """Return the mean similarity inside each side, drawn towards that of the set's clusters where it is small."""
    square = np.einsum("ij,ij->i", side.sums, side.sums, dtype=np.float64)
    n = side.sizes
    own = (square - n) / np.maximum(n, 1)  # (n - 1) x mean similarity
    return (own + _SHRINK * background.one) / (n - 1 + _SHRINK)


MEASURES = 6
TRUST = 4.0  # inverse variance of the weights before the answers


@dataclass(frozen=True)
class Judge:
    """A logistic regression from measures to the probability that both sides are one identity.

    ``mean`` and ``spread`` (6,) are those of the set's candidates; ``weights`` (7,) belong to the measures relative to
    these, the last one to the constant 1.
    """

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, measures: NDArray[np.float64], weights: NDArray[np.float64]) -> Judge:
        """Return the judge of a set before answers, given the measures (m, 6) of all its candidates."""
        if not len(measures):
            return cls(np.zeros(MEASURES), np.ones(MEASURES), weights)
        return cls(measures.mean(axis=0), np.maximum(measures.std(axis=0), 1e-3), weights)

    def logits(self, measures: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the log-odds (m,) of measures (m, 6)."""
        return self._columns(measures) @ self.weights

    def taught(self, measures: NDArray[np.float64], same: NDArray[np.bool_], trust: float = TRUST) -> Judge:
        """Return the judge after answers: the weights of highest probability, by Newton's method.

        The prior of each weight is normal around the present weight, with variance 1 / ``trust``.

        Parameters
        ----------
        measures, same : (m, 6) float64, (m,) bool
            The pairs of sides that were answered, and the answers.
        """
        if not len(same):
            return self
        x, weights = self._columns(measures), self.weights.copy()
        for _ in range(20):
            p = expit(x @ weights)
            gradient = x.T @ (p - same) + trust * (weights - self.weights)
            curve = (x * (p * (1 - p))[:, None]).T @ x + trust * np.eye(len(weights))
            step = np.linalg.solve(curve, gradient)
            weights -= step
            if np.abs(step).max() < 1e-6:
                break
        return Judge(self.mean, self.spread, weights)

    def _columns(self, measures: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([(measures - self.mean) / self.spread, np.ones(len(measures))])


def candidate_edges(edges: EdgeList, parsed: ParsedEdges) -> EdgeList:
    """Return the evidence of a run: candidate edges, and those of the run's edges that are not among them.

    Parameters
    ----------
    edges : EdgeList
        Candidate edges of the kNN graph with p > :data:`FAINT`; p before adaptation, because it is calibrated.
    parsed : ParsedEdges
        The run's edges. Edges to copies, and edges of samples, are not candidates.

    Returns
    -------
    EdgeList
        Symmetric.
    """
    n = parsed.edges.num_nodes

    def matrix(of: EdgeList) -> sparse.csr_matrix:
        found = sparse.csr_matrix((of.scores, of.cols, of.indptr), (n, n))
        return found if of.symmetric else found.maximum(found.T).tocsr()

    ours, theirs = matrix(edges), matrix(parsed.edges)
    known = ours.copy()
    known.data = np.ones_like(known.data)
    missing = theirs - theirs.multiply(known)
    missing.eliminate_zeros()
    both = (ours + missing).tocsr()
    both.sort_indices()
    return EdgeList(both.indptr.astype(np.int64), both.indices, both.data.astype(np.float32), symmetric=True)


def pair_measures(
    evidence: Evidence,
    background: Background,
    a: Sequence[int] | NDArray[np.int64],
    b: Sequence[int] | NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the measures (6,) of two sides that are given by their rows."""
    sides, total, count = evidence.two(np.asarray(a, np.int64), np.asarray(b, np.int64))
    first, second = sides.at(np.array([0])), sides.at(np.array([1]))
    return measured(first, second, np.array([total]), np.array([count]), background)[0]


def evidence_of(state: State, scratch: Path | None = None, stages: Stages | None = None) -> Evidence:
    """Score the candidate edges of a clustering again, down to p = :data:`FAINT`, and return them as evidence.

    The edges that a run stores are those above τ1, and nearly all of them lie inside clusters; what speaks for and
    against other pairs of clusters is below.

    Parameters
    ----------
    state : State
        The clustering.
    scratch : path, optional
        Folder for temporary files.
    stages : Stages, optional
        Records time and memory.
    """
    lists = state.lists if isinstance(state.lists, Lists) else state.lists.grown(np.empty(0, np.bool_))
    rows, n = np.flatnonzero(lists.alive), len(lists)
    edges = state.clustered
    if len(rows) < 2:
        return Evidence(candidate_edges(edges.edges.select(edges.kept), edges), state.features)
    features = state.features if len(rows) == n else state.features.subset(rows, scratch)
    place = np.full(n + 1, -1, lists.ids.dtype)  # the last entry is for empty slots, id -1
    place[rows] = np.arange(len(rows))
    width = int((lists.ids[rows] >= 0).sum(axis=1).max())
    graph = KnnGraph(place[lists.ids[rows, :width]], lists.sims[rows, :width])
    rule = state.rule
    found = parse(
        features, graph, rule.model, ENTRIES, tau1=FAINT, th_sim=rule.th_sim, device="cpu",
        stages=stages or Stages(), scratch=scratch,
    ).edges.whole()  # fmt: skip
    counts = np.zeros(n, np.int64)
    counts[rows] = np.diff(found.indptr)
    spread = EdgeList(row_pointers(counts), rows[found.cols].astype(id_dtype(n)), found.scores, found.symmetric)
    return Evidence(candidate_edges(spread, edges), state.features)
