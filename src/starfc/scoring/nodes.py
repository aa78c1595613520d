"""Node projections in scratch files, and the means to compute single nodes again at higher precision."""

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
    """The projections u (float32) and v (half precision) of all nodes, and the inputs to compute them again.

    Nodes are stored in processing order. The place of a node is its position in this order.

    Attributes
    ----------
    model, features : EmbeddingModel, Features
        The network and its input (N, d).
    affinity : Affinity
        The affinity graphs, one per scale.
    choice : (N,) uint8
        The scale whose embedding X each node uses, by node.
    order, place : (N,) integers
        ``order[t]`` is the node at place t; ``place`` is the inverse of ``order``.
    scorer : Scorer
        The parameters of the edge head.
    source, target : ScratchRows
        u (N, h) float32 and v (N, h) float16, by place.
    source_term, target_term : (N,) float32
        The part of a logit that depends on one end only, by place (:mod:`starfc.scoring.projection_kernels`).
    error : (N,) float32
        Bound on the change of a logit by rounding v to half precision, by place.
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
        """The kNN graph."""
        return self.affinity.graph

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.scorer.bend.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the network computes."""
        return self.model.head.layers[0].weight.dtype

    def in_double(self) -> NodeProjections:
        """Return the same nodes with a network that computes in float64."""
        return replace(self, model=copy.deepcopy(self.model).double())

    @torch.inference_mode()
    def tokens(self, rows: NDArray[np.integer]) -> Tensor:
        """Return the embeddings X of some nodes at all scales, (m, S, h)."""
        own, aggregated = self._inputs(rows)
        return torch.stack(self.model.backbone.at_scales(own, *aggregated), dim=1)

    @torch.inference_mode()
    def embed(self, rows: NDArray[np.integer]) -> Tensor:
        """Return the embeddings X of some nodes, each at its chosen scale, (m, h)."""
        own, aggregated = self._inputs(rows)
        chosen = torch.from_numpy(self.choice[rows]).long().to(self.device)
        return self.model.backbone(own, aggregated[chosen, torch.arange(len(rows), device=self.device)])

    def _inputs(self, rows: NDArray[np.integer]) -> tuple[Tensor, Tensor]:
        """Return the features F (m, d) of some nodes and their aggregates ÂF (S, m, d)."""
        aggregated = self.affinity.aggregate(
            self.features, rows, np.float64 if self.dtype == torch.float64 else np.float32
        )
        own, mean = (torch.from_numpy(x).to(self.device, self.dtype) for x in (self.features.rows(rows), aggregated))
        return own, mean
