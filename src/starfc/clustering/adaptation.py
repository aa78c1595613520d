"""Adaptation: the second round's scorer, trained further on the clusters of the very set.

The clusters that a first pass makes are taken for answers, and the scorer learns to tell its edges inside clusters from
those between them. So that it does not only confirm what it learns from, clusters are divided into two halves at
random, and a scorer is trained on the edges within each; an edge within one half is then scored by the scorer of the
other, and one between the halves by the mean of both logits. With p what was believed before, and s = 1 where both ends
are in one cluster, the target is

    t = λ ((1 - 2 ε) s + ε) + (1 - λ) p,    λ = 0.8, ε = 0.02

and clusters are made again from the new p. Where the embedding is weak this joins what was split for lack of
confidence; elsewhere it has little to add. Whether it helps is judged without labels: a round stays if the F-score to
be expected (:mod:`starfc.clustering.choice`) is higher after it by half a point at least, and the first round that does
not raise it so far ends the adaptation. Halves are drawn anew in every round. Clusters of an expected F below a half
teach nothing. What is to be expected of the final clusters is told from the p before adaptation, which does not know
them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.nn.utils import parameters_to_vector

from starfc.clustering.choice import GIVEN, THRESHOLDS, Choice, choose, estimate
from starfc.graph.edges import EdgeList
from starfc.models.structural import EdgeScorer
from starfc.runtime import threads
from starfc.runtime.products import slices
from starfc.scoring.structural import ROW_BLOCK, Scoring

COMPONENTS = (0.5, 0.7)  # τ1 and τ2 of components with a contextual model
GAIN = 0.005  # of the expected F, by a round that stays
_ROUNDS = 4  # at most
_LEAST_EXPECTED = 0.5  # F of the clusters that are learnt from
_WEIGHT, _SMOOTHING = 0.8, 0.02  # λ, ε
_NODES = 8000  # whose edges are learnt from
_BLOCK = 1 << 14
_LEAST = 2000  # edges within a half; it learns nothing from fewer
_STEPS, _BATCH, _RATE = 300, 1024, 1.5e-3


@dataclass(frozen=True)
class Adapted:
    """Two scorers, each trained on one half of the clusters; ``half`` (N,) int8 is that of every node's cluster."""

    scorers: tuple[EdgeScorer, EdgeScorer]
    half: NDArray[np.int8]

    @torch.inference_mode()
    def logits(
        self, features: NDArray[np.float32], rows: NDArray[np.integer], cols: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Logits (m,) of edges (m, f) whose ends are ``rows`` and ``cols`` (m,)."""
        columns = torch.from_numpy(features)
        one, other = (scorer(columns).numpy() for scorer in self.scorers)
        ours, theirs = self.half[rows], self.half[cols]
        return np.where(ours != theirs, (one + other) / 2, np.where(ours == 0, other, one))

    def parameters(self) -> NDArray[np.float32]:
        """The parameters of both, (2, P) float32 (:attr:`starfc.models.contextual.Context.adapted`)."""
        with torch.no_grad():
            return torch.stack([parameters_to_vector(scorer.parameters()) for scorer in self.scorers]).numpy()


@dataclass(frozen=True)
class Chosen:
    """τ1 and why, all ``edges`` that it was chosen among and, where communities were made for it, these.

    ``rounds`` are the F-scores to be expected before adaptation and after each of its rounds, the last of which may not
    have stayed (:func:`stayed`); ``adapted`` is what scored the edges then.
    """

    choice: Choice
    edges: EdgeList
    members: NDArray[np.integer] | None = None
    adapted: Adapted | None = None
    rounds: tuple[float, ...] = ()


def choose_threshold(edges: EdgeList, mass: float, tau1: float | None, partition: str, seed: int) -> Chosen:
    """τ1 of a partition, given or not; with 'infomap' by what is to be expected of the communities."""
    if partition == "infomap":
        choice, members = choose(edges, mass, THRESHOLDS if tau1 is None else (tau1,), seed)
        return Chosen(choice, edges, members)
    if tau1 is None:
        reason = f"edges that are rather right than wrong, for partition {partition!r}"
        return Chosen(Choice(COMPONENTS[0], reason, {}), edges)
    return Chosen(Choice(tau1, GIVEN, {}), edges)


def adapt_to_set(scoring: Scoring, first: Chosen, lowest: float, tau1: float | None, seed: int) -> Chosen:
    """Rounds of adaptation, from communities by 'infomap', until one hardly raises the F to be expected.

    Parameters
    ----------
    first : Chosen
        What the model makes of the set as it is.
    lowest : float
        Edges of a lower p are not looked at.
    tau1 : float, optional
        Given.
    """
    expected: tuple[float, ...] = (estimate(first.edges, _communities(first)).fscore,)
    if expected[0] < _LEAST_EXPECTED:
        return replace(first, rounds=expected)
    lessons, best = Lessons(scoring), first
    for number in range(_ROUNDS):
        scorers = lessons.adapted(scoring, best.adapted, _communities(best), seed + number)
        if scorers is None:
            break
        edges, _, mass = scoring.parse(lowest, scorers)
        found = choose_threshold(edges, mass, tau1, "infomap", seed)
        expected = (*expected, estimate(edges, _communities(found)).fscore)
        if len(stayed(expected)) < len(expected):
            break
        best = replace(found, adapted=scorers)
    return replace(best, rounds=expected)


def _communities(chosen: Chosen) -> NDArray[np.integer]:
    assert chosen.members is not None  # 'infomap' makes them
    return chosen.members


def stayed(rounds: tuple[float, ...]) -> tuple[float, ...]:
    """The expected F before adaptation and after each round that stays: the last one does where it gains enough."""
    return rounds if len(rounds) < 2 or rounds[-1] >= rounds[-2] + GAIN else rounds[:-1]


class Lessons:
    """The edges that are learnt from: those of up to 8,000 nodes, evenly spaced, with their columns.

    ``rows`` and ``cols`` (m,) are their ends, ``features`` (m, f) float32.
    """

    def __init__(self, scoring: Scoring) -> None:
        n = scoring.graph.num_nodes
        nodes = np.unique(np.linspace(0, n - 1, min(n, _NODES)).astype(np.int64))

        def work(part: slice) -> tuple[NDArray[np.float32], NDArray[np.integer], NDArray[np.int64]]:
            pairs = scoring.pairs(nodes[part])
            return pairs.features, pairs.rows, scoring.graph.ids[pairs.rows, pairs.slots].astype(np.int64)

        found = threads.results(work, slices(len(nodes), ROW_BLOCK))
        self.features, self.rows, self.cols = (np.concatenate(parts) for parts in zip(*found, strict=True))

    def adapted(
        self, scoring: Scoring, before: Adapted | None, members: NDArray[np.integer], seed: int
    ) -> Adapted | None:
        """Scorers trained on clusters ``members`` (N,); None where a half has too few edges to learn from.

        Both begin as the model's scorer for this set, and stay on the CPU. ``before`` says what was believed in the
        last round.
        """
        scorer, temperature = copy.deepcopy(scoring.scorer).cpu(), float(scoring.temperature)
        half = np.random.default_rng(seed).integers(0, 2, len(members)).astype(np.int8)[members]
        same = torch.from_numpy((members[self.rows] == members[self.cols]).astype(np.float32))
        believed = torch.empty(len(self.rows))

        def believe(part: slice) -> None:  # block by block with one thread each, so that sums are always the same
            with torch.inference_mode():
                if before is None:
                    believed[part] = scorer(torch.from_numpy(self.features[part]))
                else:
                    known = before.logits(self.features[part], self.rows[part], self.cols[part])
                    believed[part] = torch.from_numpy(known)

        threads.each(believe, slices(len(believed), _BLOCK))
        believed = torch.sigmoid(believed / temperature)
        targets = _WEIGHT * ((1 - 2 * _SMOOTHING) * same + _SMOOTHING) + (1 - _WEIGHT) * believed
        within = [np.flatnonzero((half[self.rows] == h) & (half[self.cols] == h)) for h in (0, 1)]
        if min(map(len, within)) < _LEAST:
            return None
        both = copy.deepcopy(scorer), copy.deepcopy(scorer)

        def work(h: int) -> None:  # with one thread each, so that sums do not depend on how many there are
            edges = torch.from_numpy(within[h])
            _fit(both[h], torch.from_numpy(self.features)[edges], targets[edges], temperature, seed)

        threads.each(work, (0, 1))
        return Adapted(both, half)


def _fit(scorer: EdgeScorer, features: torch.Tensor, targets: torch.Tensor, temperature: float, seed: int) -> None:
    """Adam on the cross-entropy, its rate falling to 0."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(scorer.parameters(), _RATE)
    for step in range(_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * (1 - step / _STEPS)
        batch = torch.randint(len(targets), (_BATCH,), generator=generator)
        logits = scorer(features[batch]) / temperature
        loss = functional.binary_cross_entropy_with_logits(logits, targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
