"""Edge scores of the structural model: rounds over blocks of nodes, kernel and network one after the other.

A block's features are made, scored and dropped while they lie in the caches. Beside the graph there are a byte for
every kNN entry (the first round's logits), a block a thread, and the edges that are kept; the smoothed nodes, float16,
lie in a scratch file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit

from starfc.clustering.edges import Block, EdgeList
from starfc.clustering.refinement import undirected
from starfc.data.dataset import Features, as_features
from starfc.graph.neighbours import KnnGraph
from starfc.graph.products import slices
from starfc.graph.strangers import Strangers
from starfc.graph.structure import EdgeLogits, Pairs, Structure, encode, smooth
from starfc.models.contextual import (
    Context,
    ContextualModel,
    first_context,
    neutral_context,
    sampled_nodes,
    second_context,
)
from starfc.models.structural import EdgeScorer, StructuralModel
from starfc.runtime import threads

ROW_BLOCK = 128  # some 4,000 edges: 0.4 MiB of features, 1 MiB of a hidden layer

Score = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Seen:
    """What scoring leaves besides the scores: the first round's logits (N, k) int8 (``EdgeLogits.codes``), where there
    are two rounds, and of a model that sees the set its context. ``mass`` is Σ p of all candidate edges.
    """

    codes: NDArray[np.int8] | None
    context: Context | None = None
    mass: float = 0.0


def score_edges(
    model: StructuralModel,
    features: Features | NDArray[np.float32],
    graph: KnnGraph,
    use: Callable[[int, Pairs, NDArray[np.float32]], None],
    order: NDArray[np.integer] | None = None,
    device: str | torch.device = "cpu",
    scratch: Path | None = None,
) -> Seen:
    """Call ``use(block, pairs, logits)`` for every block of nodes, from several threads.

    Parameters
    ----------
    use : callable
        Takes the number of the block, its candidate edges (each edge of the graph comes once), and z / T (m,) float32.
    order : (N,) integers, optional
        Order in which to take the nodes; it changes no logit.

    """
    features = as_features(features)
    n = graph.num_nodes
    order = np.arange(n) if order is None else order
    nodes = smooth(graph, features, model.smoothing, order, scratch)
    contextual = isinstance(model, ContextualModel)
    strangers = Strangers.of(features) if contextual else None
    structure = Structure(graph, model.columns, model.candidates, nodes, strangers=strangers)
    blocks = slices(n, ROW_BLOCK)
    before = context = None
    early, late = model.first, model.second
    if contextual:
        neutral = neutral_context(model, n)  # of a sample without an edge
        sample = _sampled(structure.first_round, n)
        seen_first = first_context(sample, n, features.dim, strangers) if len(sample) else neutral.first
        early = model.first.of(seen_first)
    if model.rounds == 2:
        before = EdgeLogits(structure)
        first = _on(early, device)

        def first_round(at: int) -> None:
            pairs = structure.first_round(order[blocks[at]])
            before.put(pairs, encode(first(pairs.features)))

        threads.each(first_round, range(len(blocks)))
        before.sum_degrees(order)
    if contextual:
        sample = _sampled(lambda rows: structure.second_round(rows, before), n)
        seen_second = second_context(seen_first, sample) if len(sample) else neutral.second
        late = model.second.of(seen_second)
        context = Context(strangers, n, seen_first, seen_second)
    last, temperature = _on(early if before is None else late, device), float(model.temperature)

    def last_round(at: int) -> None:
        rows = order[blocks[at]]
        pairs = structure.first_round(rows) if before is None else structure.second_round(rows, before)
        use(at, pairs, last(pairs.features) / np.float32(temperature))

    threads.each(last_round, range(len(blocks)))
    return Seen(None if before is None else before.codes, context)


def _sampled(pairs_of: Callable[[NDArray[np.int64]], Pairs], num_nodes: int) -> NDArray[np.float32]:
    """The features of the edges that a set's context is read off."""
    nodes = sampled_nodes(num_nodes)
    blocks = slices(len(nodes), ROW_BLOCK)
    found: list[NDArray[np.float32] | None] = [None] * len(blocks)

    def work(at: int) -> None:
        found[at] = pairs_of(nodes[blocks[at]]).features

    threads.each(work, range(len(blocks)))
    return np.concatenate(found)


def parse_structure(
    model: StructuralModel,
    features: Features | NDArray[np.float32],
    graph: KnnGraph,
    tau1: float,
    order: NDArray[np.integer] | None = None,
    device: str | torch.device = "cpu",
    scratch: Path | None = None,
) -> tuple[EdgeList, int]:
    """Graph parsing: the candidate edges with p > τ1, and how many candidates there were.

    Edges are undirected: every one is listed once in either direction, columns sorted, without self loops.
    """
    return parse_with_logits(model, features, graph, tau1, order, device, scratch)[:2]


def parse_with_logits(
    model: StructuralModel,
    features: Features | NDArray[np.float32],
    graph: KnnGraph,
    tau1: float,
    order: NDArray[np.integer] | None = None,
    device: str | torch.device = "cpu",
    scratch: Path | None = None,
) -> tuple[EdgeList, int, Seen]:
    """:func:`parse_structure`, and what :func:`score_edges` returns."""
    line = logit(tau1)
    found: list[Block | None] = [None] * len(slices(graph.num_nodes, ROW_BLOCK))
    candidates, mass = [0] * len(found), np.zeros(len(found))

    def keep(at: int, pairs: Pairs, logits: NDArray[np.float32]) -> None:
        above = np.flatnonzero(logits > line)
        local = pairs.local[above]
        ends = graph.ids[pairs.nodes[local], pairs.slots[above]]
        found[at] = pairs.nodes, np.bincount(local, minlength=len(pairs.nodes)), ends, expit(logits[above])
        candidates[at] = len(logits)
        mass[at] = expit(logits).sum(dtype=np.float64)

    seen = score_edges(model, features, graph, keep, order, device, scratch)
    return (
        undirected(EdgeList.from_blocks(found, graph.num_nodes, graph.ids.dtype)),
        sum(candidates),
        replace(seen, mass=float(mass.sum())),
    )


def _on(scorer: EdgeScorer, device: str | torch.device) -> Score:
    scorer = scorer.to(device)

    @torch.inference_mode()
    def score(features: NDArray[np.float32]) -> NDArray[np.float32]:
        return scorer(torch.from_numpy(features).to(device)).cpu().numpy()

    return score
