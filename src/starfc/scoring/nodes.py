"""The nodes of a graph after the network: projections in scratch files, and what makes any of them again."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.data.dataset import Features
from starfc.graph.affinity import Affinity
from starfc.graph.neighbours import KnnGraph
from starfc.models.hierarchical import EmbeddingModel
from starfc.scoring.projection_kernels import Scorer
from starfc.storage.scratch import ScratchRows


@dataclass(frozen=True)
class NodeProjections:
    """u (float32) and v (half precision) of every node of a graph, and what is needed to make any of them again.

    Nodes are taken in an order: place t is node ``order[t]``, and ``place`` (N,) is its inverse. By place, ``source``
    and ``target`` are u and v, ``source_term`` and ``target_term`` (N,) a node's own part of a logit, and ``error``
    (N,) the bound on what halving v changes (:mod:`starfc.scoring.projection_kernels`). ``choice`` (N,) is the scale of
    the affinity graph whose X a node has, by node.
    """

    model: EmbeddingModel
    features: Features
    affinity: Affinity
    choice: NDArray[np.uint8]
    order: NDArray[np.integer]
    place: NDArray[np.integer]
    scorer: Scorer
    source: ScratchRows
    target: ScratchRows
    source_term: NDArray[np.float32]
    target_term: NDArray[np.float32]
    error: NDArray[np.float32]

    @property
    def graph(self) -> KnnGraph:
        return self.affinity.graph

    @property
    def device(self) -> torch.device:
        return self.scorer.bend.device

    @property
    def dtype(self) -> torch.dtype:
        """In what the network computes."""
        return self.model.head.layers[0].weight.dtype

    def in_double(self) -> NodeProjections:
        """The same nodes for a network that computes in float64."""
        return replace(self, model=copy.deepcopy(self.model).double())

    @torch.inference_mode()
    def tokens(self, rows: NDArray[np.integer]) -> Tensor:
        """X of some nodes at every scale: (m, S, h)."""
        own, aggregated = self._inputs(rows)
        return torch.stack(self.model.backbone.at_scales(own, *aggregated), dim=1)

    @torch.inference_mode()
    def embed(self, rows: NDArray[np.integer]) -> Tensor:
        """X of some nodes at the scale that each chose: (m, h)."""
        own, aggregated = self._inputs(rows)
        chosen = torch.from_numpy(self.choice[rows]).long().to(self.device)
        return self.model.backbone(own, aggregated[chosen, torch.arange(len(rows), device=self.device)])

    def _inputs(self, rows: NDArray[np.integer]) -> tuple[Tensor, Tensor]:
        """F (m, d) and ÂF (S, m, d)."""
        aggregated = self.affinity.aggregate(
            self.features, rows, np.float64 if self.dtype == torch.float64 else np.float32
        )
        own, mean = (torch.from_numpy(x).to(self.device, self.dtype) for x in (self.features.rows(rows), aggregated))
        return own, mean
