"""Train the basic method on one subgraph (CVPR 2021, section 3.3): one graph, one head.

    for every pass, for every patch of the subgraph's edges (shuffled):
        loss = cross-entropy of the patch; one optimiser step

Cross-entropy over two classes is the logistic loss of z[1] - z[0]. ÂF does not change within a subgraph and is computed
once. The backbone is computed for every patch, because each step changes its weights.
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
    """The method of the CVPR paper. Its methods are those that :mod:`starfc.training.trainer` calls."""

    def __init__(self, config: Config, model: StarFCModel) -> None:
        self.model, self._config = model, config
        self.optimizer = make_optimizer(config, model.parameters())
        self.optimizers = {"main": self.optimizer}

    def build(self, data: Labelled, instances: NDArray[np.int64]) -> Subgraph:
        """Build the subgraph of some instances. This runs while the previous subgraph is used for training."""
        features, labels = data.features[instances], data.labels[instances]
        graph = build_subgraph(features, labels, self._config.knn, self._config.th_sim)
        return graph.pinned() if next(self.model.parameters()).is_cuda else graph

    def start(self, graph: Subgraph, rng: np.random.Generator, device: torch.device) -> Subgraph:
        """Move a subgraph to the device of the training."""
        return graph.to(device)

    def num_steps(self, graph: Subgraph) -> int:
        """Return the number of optimiser steps for a subgraph."""
        s = self._config.sampling
        return s.passes * min(s.patches, graph.num_edges)

    def deal(self, graph: Subgraph, steps: int, rng: np.random.Generator) -> list[Tensor]:
        """Return the edges of each of ``steps`` steps. In every pass the edges are shuffled and cut into patches."""
        passes = self._config.sampling.passes
        parts = (part for _ in range(passes) for part in patches(graph.num_edges, steps // passes, rng))
        return [torch.from_numpy(part) for part in parts]

    def loss(self, graph: Subgraph, edges: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a step, and an empty dict of further values to log. ``generator`` belongs to the step."""
        strength = self._config.sampling.rotation
        turn = random_rotation(self.model.feature_dim, strength, generator) if strength else None
        return step_loss(self.model, graph, edges, turn), {}

    def update(self) -> None:
        """Update the weights with the gradients of a step."""
        self.optimizer.step()

    def finish(self) -> None:
        """End a subgraph. This method has nothing to do here."""

    def carried(self) -> dict[str, Tensor]:
        """Return the state that passes from step to step besides weights and optimisers. Here it is empty."""
        return {}

    def restore(self, carried: dict[str, Tensor]) -> None:
        """Restore the state :meth:`carried` from a checkpoint."""


def step_loss(model: StarFCModel, graph: Subgraph, edges: Tensor, turn: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of some edges.

    Parameters
    ----------
    model : StarFCModel
        The network.
    graph : Subgraph
        The subgraph.
    edges : (m,) int64
        Numbers of the edges.
    turn : (d, d) tensor, optional
        Rotation of the features.
    """
    edges = edges.to(graph.rows.device)
    rows, cols, targets = (x[edges] for x in (graph.rows, graph.cols, graph.targets))
    turn = None if turn is None else turn.to(graph.features.device)
    logits = model(graph.features, graph.aggregated, rows, cols, turn)
    return functional.binary_cross_entropy_with_logits(logits, targets)
