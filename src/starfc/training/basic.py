"""Training of the basic method on one subgraph, spec section 5: one graph, one head.

    for every pass, for every patch of the subgraph's edges (shuffled):
        loss = cross-entropy of the patch; one optimiser step

Cross-entropy over two classes is the logistic loss of z[1] - z[0]. ÂF does not change within a subgraph and is made
once; the backbone runs afresh for every patch, because its weights changed.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from starfc.config.config import Config
from starfc.evaluation.labelled import Labelled
from starfc.models.gcn import StarFCModel
from starfc.training.optimisers import make_optimizer
from starfc.training.sampling import Subgraph, build_subgraph, patches, random_rotation


class BasicTraining:
    """What the training loop (:mod:`starfc.training.trainer`) asks of a method; this one is the CVPR paper's."""

    def __init__(self, config: Config, model: StarFCModel) -> None:
        self.model, self._config = model, config
        self.optimizer = make_optimizer(config, model.parameters())
        self.optimizers = {"main": self.optimizer}

    def build(self, data: Labelled, instances: NDArray[np.int64]) -> Subgraph:
        """A subgraph of some instances; it runs beside the training of another."""
        features, labels = data.features[instances], data.labels[instances]
        return build_subgraph(features, labels, self._config.knn, self._config.th_sim)

    def start(self, graph: Subgraph, rng: np.random.Generator, device: torch.device) -> Subgraph:
        """A subgraph as training needs it: on its device."""
        return graph.to(device)

    def num_steps(self, graph: Subgraph) -> int:
        """Optimiser steps that a subgraph asks for."""
        s = self._config.sampling
        return s.passes * min(s.patches, graph.num_edges)

    def deal(self, graph: Subgraph, steps: int, rng: np.random.Generator) -> list[Tensor]:
        """The edges of each of ``steps`` steps: those of every pass shuffled and cut."""
        passes = self._config.sampling.passes
        parts = (part for _ in range(passes) for part in patches(graph.num_edges, steps // passes, rng))
        return [torch.from_numpy(part) for part in parts]

    def loss(self, graph: Subgraph, edges: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of a step, and nothing else to log; ``generator`` is that of the step."""
        strength = self._config.sampling.rotation
        turn = random_rotation(self.model.feature_dim, strength, generator) if strength else None
        return step_loss(self.model, graph, edges, turn), {}

    def update(self) -> None:
        """Use the gradients of a step."""
        self.optimizer.step()

    def finish(self) -> None:
        """The end of a subgraph: nothing is left to do."""

    def carried(self) -> dict[str, Tensor]:
        """What is kept from step to step besides weights and optimisers: nothing."""
        return {}

    def restore(self, carried: dict[str, Tensor]) -> None:
        """Take :meth:`carried` of a checkpoint."""


def step_loss(model: StarFCModel, graph: Subgraph, edges: Tensor, turn: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of the edges of these numbers, the features turned where a rotation is given."""
    edges = edges.to(graph.rows.device)
    rows, cols, targets = (x[edges] for x in (graph.rows, graph.cols, graph.targets))
    turn = None if turn is None else turn.to(graph.features.device)
    logits = model(graph.features, graph.aggregated, rows, cols, turn)
    return functional.binary_cross_entropy_with_logits(logits, targets)


def train_step(
    model: StarFCModel,
    optimizer: torch.optim.Optimizer,
    graph: Subgraph,
    edges: Tensor,
    turn: Tensor | None = None,
) -> Tensor:
    """One optimiser step on the edges of these numbers -> the loss."""
    loss = step_loss(model, graph, edges, turn)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()
