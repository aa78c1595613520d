"""Training of structure-aware edge confidence on one subgraph.

    p <- first round around the subgraph, an edge by the half of the identities that it is not of   (no gradient)
    for every pass, for every patch of the subgraph's edges (shuffled):
        loss = cross-entropy of the second round, which sees p, and of the first round's three scorers; one step

The nodes of a subgraph are drawn as for the other methods (SPSS), but their neighbourhoods are not built anew on just
these nodes: there an identity's strangers are missing, lists reach farther, and structure is another than in the whole
graph. Structure is read from the graph of the whole training split instead, in which a subgraph is only the part that
a step learns from. Held-back instances are in that graph too, without labels: an edge that has one at an end teaches
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from starfc.config.config import Config
from starfc.evaluation.labelled import Labelled, LabelledGraph
from starfc.graph.structure import FIRST_FEATURES, CandidateEdges, EdgeLogits, Structure, encode, smooth
from starfc.models.structural import StructuralModel
from starfc.training.optimisers import make_optimizer
from starfc.training.sampling import patches

_STANDARD = 2000  # nodes whose edges say how features are distributed


@dataclass(frozen=True)
class Neighbourhood:
    """Nodes (n,) to learn from, and of the nodes around them every candidate edge, with its fold."""

    nodes: NDArray[np.int64]
    around: CandidateEdges
    folds: NDArray[np.int64]


@dataclass(frozen=True)
class LabelledEdges:
    """Edges to learn from: features (E, 20 or 30), targets (E,), and the half of the identities each is of (E,)."""

    features: Tensor
    targets: Tensor
    folds: Tensor


class StructuralTraining:
    """What the training loop (:mod:`starfc.training.trainer`) asks of a method.

    ``whole`` is the graph of the training split; instances to train on stand first in it.
    """

    def __init__(self, config: Config, model: StructuralModel, whole: LabelledGraph) -> None:
        self.model, self._config = model, config
        nodes = smooth(whole.graph, whole.features, model.smoothing)
        self._structure = Structure(whole.graph, model.columns, model.candidates, nodes)
        self._labels = np.where(whole.held, -1, whole.labels)
        self._before = EdgeLogits(self._structure)
        self._codes: NDArray[np.int8] | None = None
        learnt = np.flatnonzero(~whole.held)
        sample = learnt[:: max(1, len(learnt) // _STANDARD)]
        model.standardise(torch.from_numpy(self._structure.first_round(sample).features).to(self._device))
        self.optimizer = make_optimizer(config, model.parameters())
        self.optimizers = {"main": self.optimizer}

    @property
    def _device(self) -> torch.device:
        return self.model.temperature.device

    def build(self, data: Labelled, instances: NDArray[np.int64]) -> Neighbourhood:
        """A subgraph's nodes and what surrounds them; it runs beside the training of another."""
        nodes = np.sort(instances)
        listed = self._structure.ids[nodes, : self.model.candidates]
        nodes_around = np.union1d(nodes, listed[listed >= 0])
        around = self._structure.first_round(nodes_around, every=True)
        return Neighbourhood(nodes, around, self._folds(around))

    def start(self, graph: Neighbourhood, rng: np.random.Generator, device: torch.device) -> LabelledEdges:
        """The edges that a subgraph's nodes own, in the eyes of the first round as it is now."""
        if self.model.rounds == 1:
            pairs = self._structure.first_round(graph.nodes)
        else:
            if self._codes is None:  # a checkpoint within this subgraph has them
                self._codes = self._score_around(graph)
            self._before.put(graph.around, self._codes)
            self._before.sum_degrees(graph.around.nodes)
            pairs = self._structure.second_round(graph.nodes, self._before)
        ends = self._structure.ids[pairs.rows, pairs.slots]
        known = np.flatnonzero(self._labels[ends] >= 0)
        if not known.size:  # no step will be taken, and nothing is carried
            self._codes = None
        same = self._labels[pairs.rows] == self._labels[ends]
        arrays = pairs.features[known], same[known].astype(np.float32), self._folds(pairs)[known]
        return LabelledEdges(*(torch.from_numpy(array).to(device) for array in arrays))

    def num_steps(self, edges: LabelledEdges) -> int:
        """Optimiser steps that a subgraph asks for."""
        s = self._config.sampling
        return s.passes * min(s.patches, len(edges.targets))

    def deal(self, edges: LabelledEdges, steps: int, rng: np.random.Generator) -> list[Tensor]:
        """The edges of each of ``steps`` steps: those of every pass shuffled and cut."""
        passes = self._config.sampling.passes
        parts = (part for _ in range(passes) for part in patches(len(edges.targets), steps // passes, rng))
        return [torch.from_numpy(part) for part in parts]

    def loss(self, edges: LabelledEdges, patch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of a step: the sum of the scorers' cross-entropies, which are also logged."""
        patch = patch.to(edges.targets.device)
        features, targets = edges.features[patch], edges.targets[patch]
        early = features[:, :FIRST_FEATURES]
        terms = {"first": _cross_entropy(self.model.first(early), targets)}
        if self.model.second is not None:
            terms["second"] = _cross_entropy(self.model.second(features), targets)
            of_first, of_second = (scorer(early) for scorer in self.model.folds)
            terms["folds"] = _cross_entropy(torch.where(edges.folds[patch] == 0, of_first, of_second), targets)
        logged = {f"loss_{name}": term.item() for name, term in terms.items()}
        return torch.stack(list(terms.values())).sum(), logged

    def update(self) -> None:
        """Use the gradients of a step."""
        self.optimizer.step()

    def finish(self) -> None:
        """The end of a subgraph."""
        self._codes = None

    def carried(self) -> dict[str, Tensor]:
        """What is kept from step to step besides weights and optimisers: what the first round said at the start."""
        return {} if self._codes is None else {"codes": torch.from_numpy(self._codes)}

    def restore(self, carried: dict[str, Tensor]) -> None:
        """Take :meth:`carried` of a checkpoint."""
        self._codes = carried["codes"].numpy() if "codes" in carried else None

    @torch.no_grad()
    def _score_around(self, graph: Neighbourhood) -> NDArray[np.int8]:
        """The first round around a subgraph, every edge by the scorer of the fold that it is not of."""
        logits = np.empty(len(graph.folds), np.float32)
        for fold, scorer in enumerate(self.model.folds):
            others = np.flatnonzero(graph.folds != fold)
            features = torch.from_numpy(graph.around.features[others]).to(self._device)
            logits[others] = scorer(features).cpu().numpy()
        return encode(logits)

    def _folds(self, pairs: CandidateEdges) -> NDArray[np.int64]:
        """The half of the identities that an edge is of: that of its end of the lower id, whoever owns it."""
        rows = pairs.rows
        ends = self._structure.ids[rows, pairs.slots]
        return self._labels[np.minimum(rows, ends)] % len(self.model.folds or [0])


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, targets)
