"""Train structure-aware edge confidence on one subgraph.

    p <- first round on the edges around the subgraph; the scorer of one half of the identities scores the edges of the
         other half (no gradient)
    for every pass, for every patch of the subgraph's edges (shuffled):
        loss = cross-entropy of the second round, which uses p, and of the first round's three scorers; one step

The nodes of a subgraph are drawn as for the other methods (SPSS). But no new kNN graph is built of these nodes: in it
most strangers of an identity would be missing, the neighbour lists would reach farther, and the structure would differ
from that of a whole graph. Instead the structure is read from the kNN graph of the whole training split. A subgraph is
only the part of it that a step is trained on. Held-out instances are in this graph too, without labels. Edges with a
held-out end are not used for training.
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

_STANDARD = 2000  # number of nodes from whose edges the mean and standard deviation of each feature are computed


@dataclass(frozen=True)
class Neighbourhood:
    """A subgraph: nodes (n,) to train on, all candidate edges of the nodes around them, and the fold of each edge."""

    nodes: NDArray[np.int64]
    around: CandidateEdges
    folds: NDArray[np.int64]


@dataclass(frozen=True)
class LabelledEdges:
    """Training edges: features (E, 20 or 30), targets (E,), and the fold, which is a half of the identities, (E,)."""

    features: Tensor
    targets: Tensor
    folds: Tensor


class StructuralTraining:
    """The structural method. Its methods are those that :mod:`starfc.training.trainer` calls.

    ``whole`` is the graph of the training split. The instances to train on come first in it.
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
        """Collect a subgraph's nodes and the edges around them, while the previous subgraph is in training."""
        nodes = np.sort(instances)
        listed = self._structure.ids[nodes, : self.model.candidates]
        nodes_around = np.union1d(nodes, listed[listed >= 0])
        around = self._structure.first_round(nodes_around, every=True)
        return Neighbourhood(nodes, around, self._folds(around))

    def start(self, graph: Neighbourhood, rng: np.random.Generator, device: torch.device) -> LabelledEdges:
        """Return the training edges of a subgraph's nodes, with features from the present first round."""
        if self.model.rounds == 1:
            pairs = self._structure.first_round(graph.nodes)
        else:
            if self._codes is None:  # a run that continues within this subgraph has them from its checkpoint
                self._codes = self._score_around(graph)
            self._before.put(graph.around, self._codes)
            self._before.sum_degrees(graph.around.nodes)
            pairs = self._structure.second_round(graph.nodes, self._before)
        ends = self._structure.ids[pairs.rows, pairs.slots]
        known = np.flatnonzero(self._labels[ends] >= 0)
        if not known.size:  # there will be no step, so there is no state to carry
            self._codes = None
        same = self._labels[pairs.rows] == self._labels[ends]
        arrays = pairs.features[known], same[known].astype(np.float32), self._folds(pairs)[known]
        return LabelledEdges(*(torch.from_numpy(array).to(device) for array in arrays))

    def num_steps(self, edges: LabelledEdges) -> int:
        """Return the number of optimiser steps for a subgraph."""
        s = self._config.sampling
        return s.passes * min(s.patches, len(edges.targets))

    def deal(self, edges: LabelledEdges, steps: int, rng: np.random.Generator) -> list[Tensor]:
        """Return the edges of each of ``steps`` steps. In every pass the edges are shuffled and cut into patches."""
        passes = self._config.sampling.passes
        parts = (part for _ in range(passes) for part in patches(len(edges.targets), steps // passes, rng))
        return [torch.from_numpy(part) for part in parts]

    def loss(self, edges: LabelledEdges, patch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a step, which is the sum of the scorers' cross-entropies, and these terms to log."""
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
        """Update the weights with the gradients of a step."""
        self.optimizer.step()

    def finish(self) -> None:
        """End a subgraph: forget its scores of the first round."""
        self._codes = None

    def carried(self) -> dict[str, Tensor]:
        """Return the state that passes from step to step: the first round's scores at the start of the subgraph."""
        return {} if self._codes is None else {"codes": torch.from_numpy(self._codes)}

    def restore(self, carried: dict[str, Tensor]) -> None:
        """Restore the state :meth:`carried` from a checkpoint."""
        self._codes = carried["codes"].numpy() if "codes" in carried else None

    @torch.no_grad()
    def _score_around(self, graph: Neighbourhood) -> NDArray[np.int8]:
        """Score the edges around a subgraph in the first round. Each edge is scored by the scorer of the other fold."""
        logits = np.empty(len(graph.folds), np.float32)
        for fold, scorer in enumerate(self.model.folds):
            others = np.flatnonzero(graph.folds != fold)
            features = torch.from_numpy(graph.around.features[others]).to(self._device)
            logits[others] = scorer(features).cpu().numpy()
        return encode(logits)

    def _folds(self, pairs: CandidateEdges) -> NDArray[np.int64]:
        """Return the fold of each edge: the half of the identities that the end with the lower id belongs to."""
        rows = pairs.rows
        ends = self._structure.ids[rows, pairs.slots]
        return self._labels[np.minimum(rows, ends)] % len(self.model.folds or [0])


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, targets)
