"""Adaptation: train the second round's scorer further on the clusters of the set that is being clustered.

The clusters of the first pass serve as labels. The scorer learns to separate the edges inside clusters from the edges
between clusters. A scorer that judges the edges it was trained on would only confirm them. Therefore the clusters are
divided at random into two halves, and one scorer is trained on the edges within each half. An edge within one half is
then scored by the scorer of the other half. An edge between the halves gets the mean of both logits. With p the
probability of the edge before the round, and s = 1 where both ends are in one cluster (0 otherwise), the target is

    t = λ ((1 - 2 ε) s + ε) + (1 - λ) p,    λ = 0.8, ε = 0.02

The clusters are then computed again from the new p. With a weak embedding this joins clusters that were split because
p was too low. With a strong embedding it changes little. Labels are not needed to judge a round: a round is kept if it
raises the expected F-score (:mod:`starfc.clustering.choice`) by at least half a point. The first round that does not
is dropped and ends the adaptation. Every round draws new halves. If the expected F of the first clusters is below 1/2,
there is no adaptation. The expected scores of the final clusters are computed from p before adaptation, because that p
does not depend on the clusters.

A round costs one more scoring of all edges, and communities at each τ1. In a set of more than
:data:`~starfc.clustering.part.MANY` rows, rounds take place in a part of the set (:mod:`starfc.clustering.part`): its
edges are scored, its communities are made, and the expected F is that of its core. The scorers and τ1 of the last round
that is kept then serve the whole set, once. If no round is kept, the whole set is not scored again.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import parameters_to_vector

from starfc.clustering.choice import GIVEN, THRESHOLDS, Choice, choose, estimate
from starfc.clustering.part import MANY, draw_part
from starfc.graph.edges import Block, EdgeList, Edges
from starfc.models.structural import EdgeScorer, logits_of
from starfc.runtime import threads
from starfc.runtime.products import slices
from starfc.scoring.structural import MASS_UNIT, Scoring, mass_of

log = logging.getLogger("starfc")

COMPONENTS = (0.5, 0.7)  # default τ1 and τ2 for partition 'components' with a contextual model
GAIN = 0.005  # a round is kept if it raises the expected F by at least this
_ROUNDS = 4  # maximum number of rounds
_LEAST_EXPECTED = 0.5  # no adaptation if the expected F of the first clusters is below this
_WEIGHT, _SMOOTHING = 0.8, 0.02  # λ, ε
_NODES = 8000  # maximum number of nodes whose edges are trained on
_BLOCK = 1 << 14
_LEAST = 2000  # minimum number of edges within each half; with fewer, the round is skipped
_STEPS, _BATCH, _RATE = 300, 1024, 1.5e-3
PART_BYTES = 830 << 20  # features and ends of the edges of a part: at most 40 of 172 bytes for each of 120,000 rows

#: Features (m, f) of m edges, and both ends (m,).
EdgeColumns = tuple[NDArray[np.float32], NDArray[np.integer], NDArray[np.integer]]


@dataclass(frozen=True)
class Adapted:
    """A pair of scorers, each trained on one half of the clusters.

    ``half`` (N,) int8 is the half (0 or 1) of each node's cluster.
    """

    scorers: tuple[EdgeScorer, EdgeScorer]
    half: NDArray[np.int8]

    def logits(
        self, features: NDArray[np.float32], rows: NDArray[np.integer], cols: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Return the logits (m,) float32 of m edges.

        ``features`` (m, f) are the edges' structural features; ``rows`` and ``cols`` (m,) are the edges' ends.
        """
        columns, half = torch.from_numpy(features), self.half
        ends = (torch.from_numpy(half[side]) for side in (rows, cols))
        return _of_other_half(self.scorers, columns, *ends).numpy()

    def on_device(self, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Return a function that does the same as :meth:`logits` with tensors on a device."""
        one, other = (copy.deepcopy(scorer).to(device) for scorer in self.scorers)
        half = torch.from_numpy(self.half).to(device)
        return lambda features, rows, cols: _of_other_half((one, other), features, half[rows], half[cols])

    def parameters(self) -> NDArray[np.float32]:
        """Return the parameters of both scorers, (2, P) float32 (:attr:`starfc.models.contextual.Context.adapted`)."""
        with torch.no_grad():
            return torch.stack([parameters_to_vector(scorer.parameters()) for scorer in self.scorers]).numpy()


def _of_other_half(scorers: tuple[EdgeScorer, EdgeScorer], features: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the logits (m,) of edges whose ends are in the halves ``ours`` and ``theirs`` (m,)."""
    one, other = (logits_of(scorer, features) for scorer in scorers)
    return torch.where(ours != theirs, (one + other) / 2, torch.where(ours == 0, other, one))


@dataclass(frozen=True)
class Chosen:
    """The chosen τ1 with the reason, and the edges and communities that belong to it.

    ``edges`` are all scored edges, below τ1 too. ``members`` (N,) are the communities at τ1, None where the choice
    computed none. ``adapted`` are the scorers that gave the edges their p, None without adaptation. ``rounds`` are the
    expected F-scores before adaptation and after each round; the last round may have been dropped (:func:`stayed`).
    """

    choice: Choice
    edges: Edges
    members: NDArray[np.integer] | None = None
    adapted: Adapted | None = None
    rounds: tuple[float, ...] = ()


def choose_threshold(
    edges: Edges, mass: float, tau1: float | None, partition: str, seed: int, size: int | None = None
) -> Chosen:
    """Return τ1 for a partition: the given value, or the chosen one if ``tau1`` is None.

    With 'infomap', τ1 is chosen by the expected F of the communities. Other partitions use τ1 = 0.5.

    Parameters
    ----------
    edges, mass, size
        As for :func:`starfc.clustering.choice.choose`.
    tau1 : float, optional
        The given τ1.
    partition : {'components', 'infomap', 'leiden'}
        How the edges above τ1 are made into clusters.
    seed : int
        Seed of the communities.
    """
    if partition == "infomap":
        choice, members = choose(edges, mass, THRESHOLDS if tau1 is None else (tau1,), seed, size)
        return Chosen(choice, edges, members)
    if tau1 is None:
        reason = f"the default for partition {partition!r}: above it, an edge is more likely right than wrong"
        return Chosen(Choice(COMPONENTS[0], reason, {}), edges)
    return Chosen(Choice(tau1, GIVEN, {}), edges)


def adapt_to_set(scoring: Scoring, first: Chosen, lowest: float, tau1: float | None, seed: int) -> Chosen:
    """Run rounds of adaptation on 'infomap' communities until a round does not raise the expected F enough.

    Parameters
    ----------
    scoring : Scoring
        Scores the edges of the set.
    first : Chosen
        τ1, edges and communities without adaptation.
    lowest : float
        Edges with p <= ``lowest`` are ignored.
    tau1 : float, optional
        A given τ1. Default: each round chooses it.
    seed : int
        Seed of the halves, the training, the communities and the part of the set.

    Returns
    -------
    Chosen
        The result of the last round that is kept, or ``first``, with ``rounds`` filled in.
    """
    whole = _Whole(scoring, lowest, tau1, seed)
    expected = whole.expected(first)
    if expected < _LEAST_EXPECTED:
        return replace(first, rounds=(expected,))
    if scoring.graph.num_nodes <= MANY:
        return _rounds(whole, Lessons.of(scoring), first, seed)
    log.info("adaptation: in a part of the set, because there are more than %s rows", f"{MANY:,}")
    in_part = _InPart(scoring, first, lowest, tau1, seed)
    if not len(in_part.part.rows):  # all clusters are larger than the core
        return replace(first, rounds=(expected,))
    best = _rounds(in_part, in_part.lessons(), replace(first, edges=first.edges.among(in_part.part.rows)), seed)
    if best.adapted is None:
        return replace(first, rounds=best.rounds)
    del in_part
    first.edges.release()
    found = replace(whole, tau1=best.choice.tau1).again(best.adapted, first)
    return replace(found, choice=best.choice, rounds=best.rounds)


class _Ground(Protocol):
    """The rows on which rounds take place. ``members`` of a :class:`Chosen` are the clusters of all rows of the set."""

    @property
    def scoring(self) -> Scoring: ...

    def expected(self, chosen: Chosen) -> float:
        """Return the expected F of clusters."""

    def again(self, scorers: Adapted, before: Chosen) -> Chosen:
        """Return the edges by adapted scorers, and their communities; ``before`` has those of the last round."""


def _rounds(ground: _Ground, lessons: Lessons, first: Chosen, seed: int) -> Chosen:
    """Run rounds until one does not raise the expected F enough; return the last one that is kept, or ``first``."""
    best = first
    expected: tuple[float, ...] = (ground.expected(first),)
    for number in range(_ROUNDS):
        scorers = lessons.adapted(ground.scoring, best.adapted, _communities(best), seed + number)
        if scorers is None:
            break
        best.edges.release()
        found = ground.again(scorers, best)
        expected = (*expected, ground.expected(found))
        if len(stayed(expected)) < len(expected):
            break
        best = found
    return replace(best, rounds=expected)


@dataclass(frozen=True)
class _Whole:
    """Rounds on all rows; τ1 is chosen anew if ``tau1`` is None."""

    scoring: Scoring
    lowest: float
    tau1: float | None
    seed: int

    def expected(self, chosen: Chosen) -> float:
        return estimate(chosen.edges, _communities(chosen)).fscore

    def again(self, scorers: Adapted, before: Chosen) -> Chosen:
        edges, _, mass = self.scoring.parse(self.lowest, scorers)
        return replace(choose_threshold(edges, mass, self.tau1, "infomap", self.seed), adapted=scorers)


class _InPart:
    """Rounds on a part of a set: edges are those inside the part, and their ends are numbered there.

    ``blocks`` are the features and both ends of the candidate edges inside the part, which all rounds use again.
    """

    def __init__(self, scoring: Scoring, first: Chosen, lowest: float, tau1: float | None, seed: int) -> None:
        self.scoring, self.lowest, self.tau1, self.seed = scoring, lowest, tau1, seed
        self.part = draw_part(first.edges, _communities(first), seed)
        n, rows = scoring.graph.num_nodes, self.part.rows
        self.number = np.full(n, -1, np.int32)
        self.number[rows] = np.arange(len(rows), dtype=np.int32)
        nodes = scoring.order[self.number[scoring.order] >= 0]

        def inside(some: slice) -> EdgeColumns:
            features, ends, others = scoring.edges_of(nodes[some])
            kept = self.number[others] >= 0
            return features[kept], ends[kept], others[kept]

        self.blocks = scoring.in_blocks(inside, len(nodes))
        scoring.release()

    def lessons(self) -> Lessons:
        """Return the training edges: those that up to 8,000 rows of the core own, in the order of their owners."""
        core = self.part.rows[self.part.core]
        chosen = np.zeros(len(self.number), np.bool_)
        chosen[_evenly(core, _NODES)] = True
        owned = ((block, chosen[block[1]]) for block in self.blocks)
        found = Lessons.joined([(block[0][own], block[1][own], block[2][own]) for block, own in owned])
        order = np.argsort(found.rows, kind="stable")  # on shards, blocks have another order
        return Lessons(found.features[order], found.rows[order], found.cols[order])

    def expected(self, chosen: Chosen) -> float:
        return estimate(chosen.edges, self.number[_communities(chosen)[self.part.rows]], self.part.core).fscore

    def again(self, scorers: Adapted, before: Chosen) -> Chosen:
        temperature = float(self.scoring.temperature)

        def above(block: EdgeColumns) -> tuple[Block, int]:
            p = expit(scorers.logits(*block) / temperature)
            kept = p > self.lowest
            ends, others = (self.number[end[kept]] for end in block[1:])
            return (ends, np.ones(len(ends), np.int64), others, p[kept]), mass_of(p)

        found = threads.results(above, self.blocks)
        edges = EdgeList.from_pairs([block for block, _ in found], len(self.part.rows), np.int32)
        mass = sum(total for _, total in found) / MASS_UNIT
        chosen = choose_threshold(edges, mass, self.tau1, "infomap", self.seed, len(self.number))
        members = np.array(_communities(before))
        members[self.part.rows] = self.part.rows[_communities(chosen)]
        return replace(chosen, members=members, adapted=scorers)


def _communities(chosen: Chosen) -> NDArray[np.integer]:
    assert chosen.members is not None  # choose_threshold with 'infomap' always returns communities
    return chosen.members


def stayed(rounds: tuple[float, ...]) -> tuple[float, ...]:
    """Return the expected F before adaptation and after each round that is kept.

    The last of ``rounds`` is dropped if it gained less than :data:`GAIN`.
    """
    return rounds if len(rounds) < 2 or rounds[-1] >= rounds[-2] + GAIN else rounds[:-1]


def _evenly(rows: NDArray[np.integer], count: int) -> NDArray[np.integer]:
    """Return up to ``count`` evenly spaced ones of some rows."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), count)).astype(np.int64))]


@dataclass(frozen=True)
class Lessons:
    """The training edges: the edges of up to 8,000 evenly spaced nodes.

    ``rows`` and ``cols`` (m,) are the edges' ends, ``features`` (m, f) float32 their structural features.
    """

    features: NDArray[np.float32]
    rows: NDArray[np.integer]
    cols: NDArray[np.integer]

    @classmethod
    def of(cls, scoring: Scoring) -> Lessons:
        """Return the lessons of a whole set."""
        nodes = _evenly(np.arange(scoring.graph.num_nodes), _NODES)
        return cls.joined(scoring.in_blocks(lambda part: scoring.edges_of(nodes[part]), len(nodes)))

    @classmethod
    def joined(cls, blocks: Sequence[EdgeColumns]) -> Lessons:
        """Return the lessons of all blocks: features and both ends of edges."""
        return cls(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))

    def adapted(
        self, scoring: Scoring, before: Adapted | None, members: NDArray[np.integer], seed: int
    ) -> Adapted | None:
        """Train two scorers on the clusters; return None if a half has too few edges.

        Both scorers start from the model's scorer for this set and stay on the CPU.

        Parameters
        ----------
        before : Adapted, optional
            The scorers of the previous round, which give p of the targets. Default: the model's scorer gives it.
        members : (N,) integers
            The cluster of each node, named by one of its members.
        seed : int
            Seed of the halves and of the training batches.
        """
        scorer, temperature = copy.deepcopy(scoring.scorer).cpu(), float(scoring.temperature)
        half = np.random.default_rng(seed).integers(0, 2, len(members)).astype(np.int8)[members]
        same = torch.from_numpy((members[self.rows] == members[self.cols]).astype(np.float32))
        believed = torch.empty(len(self.rows))

        # One torch thread per block: sums are then the same for any number of threads.
        def believe(part: slice) -> None:
            with torch.inference_mode():
                if before is None:
                    believed[part] = logits_of(scorer, torch.from_numpy(self.features[part]))
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

        def work(h: int) -> None:  # one torch thread per scorer: sums are then the same for any number of threads
            edges = torch.from_numpy(within[h])
            _fit(both[h], torch.from_numpy(self.features)[edges], targets[edges], temperature, seed)

        threads.each(work, (0, 1))
        return Adapted(both, half)


def _fit(scorer: EdgeScorer, features: Tensor, targets: Tensor, temperature: float, seed: int) -> None:
    """Train ``scorer`` in place with Adam on the binary cross-entropy; the learning rate falls linearly to 0.

    Parameters
    ----------
    features : (m, f) float32 tensor
        Structural features of the training edges.
    targets : (m,) float32 tensor
        Target probabilities.
    temperature : float
        Logits are divided by it before the sigmoid.
    """
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
