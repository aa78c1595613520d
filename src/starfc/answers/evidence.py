"""Evidence about two sides of rows: candidate edges between them, with calibrated p, and the features of their rows.

A side is a cluster or a part of one. :mod:`starfc.answers.measures` turns the evidence into numbers, and
:mod:`starfc.answers.judge` these into the probability that both sides are one identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from starfc.answers.evidence_kernels import crossing, sum_clusters
from starfc.clustering.parsing import ENTRIES, ParsedEdges, parse
from starfc.data.dataset import Features
from starfc.graph.edges import EdgeList, row_pointers
from starfc.graph.neighbours import KnnGraph, id_dtype
from starfc.incremental.lists import Lists
from starfc.incremental.state import State
from starfc.runtime.stages import Stages

FAINT = 0.005  # candidate edges with p at or below this are no evidence


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
class Between:
    """What is between the two sides of m pairs.

    Attributes
    ----------
    total, count : (m,) float64
        Σ p and the number of the edges between the sides.
    cover : (m, 2) float64
        Expected number of rows of each side that have a right edge to the other: Σ (1 - Π (1 - p)).
    rival : (m, 2) float64
        Σ p of the edges from each side to the third cluster to which it has most.
    """

    total: NDArray[np.float64]
    count: NDArray[np.float64]
    cover: NDArray[np.float64]
    rival: NDArray[np.float64]

    def at(self, which: NDArray[np.integer] | slice) -> Between:
        """Return some of the pairs."""
        return Between(self.total[which], self.count[which], self.cover[which], self.rival[which])


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

    @cached_property
    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The mean (d,) and the second moment (d, d) of the features."""
        mean, second = np.zeros(self.dim), np.zeros((self.dim, self.dim))
        if self.features is not None and len(self.features):
            for block in self.features.blocks():
                rows = np.nan_to_num(self.features.rows(block))
                mean += rows.sum(axis=0)
                second += rows.T @ rows
            mean, second = mean / len(self.features), second / len(self.features)
        return mean, second

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

    def crossing(self, labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], Between]:
        """Return the pairs of clusters with edges between them: a, b (m,) with a < b, and what is between them."""
        count = int(labels.max(initial=0)) + 1
        edges = self.edges
        here, there, p, number, cover = crossing(edges.indptr, edges.cols, edges.scores, labels, count)
        keys, of = np.unique(here * count + there, return_inverse=True)  # each pair in both directions
        total, number, cover = (np.bincount(of, x, len(keys)).astype(np.float64) for x in (p, number, cover))
        here, there = keys // count, keys % count
        back = np.searchsorted(keys, there * count + here)
        rival = _second(here, total, count)
        low = np.flatnonzero(here < there)
        high = back[low]
        pair = Between(
            total[low],
            number[low],
            np.stack([cover[low], cover[high]], axis=1),
            np.stack([rival[low], rival[high]], axis=1),
        )
        return here[low], there[low], pair


def _second(group: NDArray[np.int64], value: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return for each entry the largest value among the other entries of its group; 0 if there is none."""
    order = np.lexsort((-value, group))
    first = np.flatnonzero(np.diff(group[order], prepend=-1))  # the largest of each group
    best, second = np.zeros(count), np.zeros(count)
    best[group[order[first]]] = value[order[first]]
    next_ = first + 1
    next_ = next_[(next_ < len(order)) & ~np.isin(next_, first)]
    second[group[order[next_]]] = value[order[next_]]
    found = best[group]
    found[order[first]] = second[group[order[first]]]
    return found


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
