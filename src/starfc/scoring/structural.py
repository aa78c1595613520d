"""Edge scores of the structural model: rounds over blocks of nodes, kernel and network one after the other.

A block's features are made, scored and dropped while they lie in the caches. Beside the graph there are a byte for
every kNN entry (the first round's logits), a block a thread, and the edges that are kept; the smoothed nodes, float16,
lie in a scratch file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit

from starfc.data.dataset import Features, as_features
from starfc.graph.edges import Block, EdgeList, undirected
from starfc.graph.neighbours import KnnGraph
from starfc.graph.strangers import Strangers
from starfc.graph.structure import CandidateEdges, EdgeLogits, Structure, encode, smooth
from starfc.models.contextual import (
    Context,
    ContextualModel,
    first_context,
    sampled_nodes,
    second_context,
)
from starfc.models.structural import EdgeScorer, StructuralModel
from starfc.runtime import threads
from starfc.runtime.products import slices

ROW_BLOCK = 128  # some 4,000 edges: 0.4 MiB of features, 1 MiB of a hidden layer

Score = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Scoring:
    """The edges of a graph before their last round: what is known of every node by then, and the context.

    Made once a set; :meth:`each` scores all candidate edges, as often as there are scorers to score them.

    Parameters
    ----------
    order : (N,) integers, optional
        Order in which to take the nodes; it changes no logit.
    """

    def __init__(
        self,
        model: StructuralModel,
        features: Features | NDArray[np.float32],
        graph: KnnGraph,
        order: NDArray[np.integer] | None = None,
        device: str | torch.device = "cpu",
        scratch: Path | None = None,
    ) -> None:
        features = as_features(features)
        n = graph.num_nodes
        self.graph, self.order, self.device = graph, np.arange(n) if order is None else order, device
        self.temperature = np.float32(float(model.temperature))
        nodes = smooth(graph, features, model.smoothing, self.order, scratch)
        self.blocks = slices(n, ROW_BLOCK)
        self.before: EdgeLogits | None = None
        self.context: Context | None = None
        if isinstance(model, ContextualModel):
            strangers = Strangers.of(features)
            self.structure = Structure(graph, model.columns, model.candidates, nodes, strangers=strangers)
            self.scorer = self._in_context(model, strangers, features.dim)
            return
        self.structure = Structure(graph, model.columns, model.candidates, nodes)
        if model.second is not None:
            self.before = self._first_round(model.first)
        self.scorer = model.first if model.second is None else model.second

    def _in_context(self, model: ContextualModel, strangers: Strangers, dim: int) -> EdgeScorer:
        """The last round's scorer of this set, after the first round."""
        n = self.graph.num_nodes
        sample = self._of_some(sampled_nodes(n))
        first = first_context(sample, n, dim, strangers) if len(sample) else model.first.neutral
        self.before = self._first_round(model.first.of(first))
        sample = self._of_some(sampled_nodes(n))
        second = second_context(first, sample) if len(sample) else model.second.neutral
        self.context = Context(strangers, n, first, second)
        return model.second.of(second)

    def _first_round(self, scorer: EdgeScorer) -> EdgeLogits:
        logits = EdgeLogits(self.structure)
        score_first_round(on_device(scorer, self.device), self.structure, logits, self.order)
        logits.sum_degrees(self.order)
        return logits

    def pairs(self, nodes: NDArray[np.integer]) -> CandidateEdges:
        """The candidate edges of some nodes with their columns of the last round that there is by now."""
        if self.before is None:
            return self.structure.first_round(nodes)
        return self.structure.second_round(nodes, self.before)

    def each(
        self, use: Callable[[int, CandidateEdges, NDArray[np.float32]], None], halves: Halves | None = None
    ) -> None:
        """Call ``use(block, pairs, logits)`` for every block of nodes, from several threads.

        Parameters
        ----------
        use : callable
            Takes the number of the block, its candidate edges (each edge of the graph comes once), and z / T (m,)
            float32.
        halves : Halves, optional
            Adapted scorers (:mod:`starfc.clustering.adaptation`) instead of the model's.
        """
        score = self._last_round(halves)

        def last_round(at: int) -> None:
            pairs = self.pairs(self.order[self.blocks[at]])
            use(at, pairs, score(pairs) / self.temperature)

        threads.each(last_round, range(len(self.blocks)))

    def _last_round(self, halves: Halves | None) -> Callable[[CandidateEdges], NDArray[np.float32]]:
        if halves is not None:
            return lambda pairs: halves.logits(pairs.features, pairs.rows, self.graph.ids[pairs.rows, pairs.slots])
        score = on_device(self.scorer, self.device)
        return lambda pairs: score(pairs.features)

    def parse(self, tau1: float, halves: Halves | None = None) -> tuple[EdgeList, int, float]:
        """Graph parsing: the candidate edges with p > τ1, how many candidates there were, and Σ p of all of these.

        Edges are undirected: every one is listed once in either direction, columns sorted, without self loops.
        """
        line, graph = logit(tau1), self.graph
        found: dict[int, Block] = {}
        candidates, mass = [0] * len(self.blocks), np.zeros(len(self.blocks))

        def keep(at: int, pairs: CandidateEdges, logits: NDArray[np.float32]) -> None:
            above = np.flatnonzero(logits > line)
            local = pairs.local[above]
            ends = graph.ids[pairs.nodes[local], pairs.slots[above]]
            found[at] = pairs.nodes, np.bincount(local, minlength=len(pairs.nodes)), ends, expit(logits[above])
            candidates[at] = len(logits)
            mass[at] = expit(logits).sum(dtype=np.float64)

        self.each(keep, halves)
        blocks = [found.pop(at) for at in range(len(self.blocks))]
        edges = undirected(EdgeList.from_blocks(blocks, graph.num_nodes, graph.ids.dtype))
        return edges, sum(candidates), float(mass.sum())

    @property
    def codes(self) -> NDArray[np.int8] | None:
        """The first round's logits (N, k) int8 (``EdgeLogits.codes``), where there are two rounds."""
        return None if self.before is None else self.before.codes

    def _of_some(self, nodes: NDArray[np.int64]) -> NDArray[np.float32]:
        """The columns of the edges of some nodes."""
        blocks = slices(len(nodes), ROW_BLOCK)
        return np.concatenate(threads.results(lambda part: self.pairs(nodes[part]).features, blocks))


def score_first_round(
    score: Score,
    structure: Structure,
    logits: EdgeLogits,
    nodes: NDArray[np.integer],
    *,
    every: bool = False,
    since: int = 0,
    block: int = ROW_BLOCK,
) -> None:
    """Score candidate edges of some nodes by the first round, and note the logits at both ends.

    Parameters
    ----------
    every, since
        As for :meth:`starfc.graph.structure.Structure.first_round`.
    block : int
        Nodes to score at a time.
    """

    def work(part: slice) -> None:
        pairs = structure.first_round(nodes[part], every=every, since=since)
        logits.put(pairs, encode(score(pairs.features)))

    threads.each(work, slices(len(nodes), block))


class Halves(Protocol):
    """Two scorers, each trained on one half of the clusters, and which half every node is of."""

    def logits(
        self, features: NDArray[np.float32], rows: NDArray[np.integer], cols: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Of edges (m, f) and their ends (m,) each: those of the scorer that was not trained on them."""


def score_edges(
    model: StructuralModel,
    features: Features | NDArray[np.float32],
    graph: KnnGraph,
    use: Callable[[int, CandidateEdges, NDArray[np.float32]], None],
    order: NDArray[np.integer] | None = None,
    device: str | torch.device = "cpu",
    scratch: Path | None = None,
) -> None:
    """Call ``use`` for every block of nodes (:meth:`Scoring.each`)."""
    Scoring(model, features, graph, order, device, scratch).each(use)


def parse_structure(
    model: StructuralModel,
    features: Features | NDArray[np.float32],
    graph: KnnGraph,
    tau1: float,
    order: NDArray[np.integer] | None = None,
    device: str | torch.device = "cpu",
    scratch: Path | None = None,
) -> tuple[EdgeList, int]:
    """The candidate edges with p > τ1, and how many candidates there were (:meth:`Scoring.parse`)."""
    return Scoring(model, features, graph, order, device, scratch).parse(tau1)[:2]


def on_device(scorer: EdgeScorer, device: str | torch.device) -> Score:
    scorer = scorer.to(device)

    @torch.inference_mode()
    def score(features: NDArray[np.float32]) -> NDArray[np.float32]:
        return scorer(torch.from_numpy(features).to(device)).cpu().numpy()

    return score
