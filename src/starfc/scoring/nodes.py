"""Node embeddings, also of single nodes at higher precision, and node projections in scratch files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.data.dataset import Features
from starfc.graph.affinity import Affinity
from starfc.graph.device_affinity import DeviceAffinity
from starfc.graph.neighbours import KnnGraph
from starfc.models.hierarchical import EmbeddingModel
from starfc.runtime import device as devices
from starfc.runtime import threads
from starfc.runtime.device_rows import Holder, in_blocks
from starfc.runtime.products import slices
from starfc.scoring.projection_kernels import Scorer
from starfc.storage.scratch import ScratchRows

R = TypeVar("R")
N = TypeVar("N", bound="NodeEmbeddings")


@dataclass(frozen=True)
class NodeEmbeddings:
    """What the embeddings X of nodes are computed from.

    Attributes
    ----------
    model, features : EmbeddingModel, Features
        The network and its input (N, d).
    affinity : Affinity
        The affinity graphs, one per scale.
    choice : (N,) uint8
        The scale whose embedding X each node uses, by node.
    scorer : Scorer
        The parameters of the edge head.
    on_device : DeviceAffinity, optional
        The affinity graphs and features for a device that computes in torch. Without it, compiled kernels propagate.
    """

    model: EmbeddingModel
    features: Features
    affinity: Affinity
    choice: NDArray[np.uint8]
    scorer: Scorer
    on_device: DeviceAffinity | None

    @classmethod
    def of(
        cls, model: EmbeddingModel, features: Features, affinity: Affinity, device: str | torch.device = "cpu"
    ) -> NodeEmbeddings:
        """Return the embeddings of the nodes of ``affinity``, each at the first scale, by a copy of the model."""
        model = copy.deepcopy(model).eval().to(device)
        features.scaled  # noqa: B018 computed once here, so that threads do not compute it at the same time
        on_device = DeviceAffinity(affinity, features, Holder(device)) if devices.uses_torch(device) else None
        choice = np.zeros(affinity.graph.num_nodes, np.uint8)
        return NodeEmbeddings(model, features, affinity, choice, Scorer.of(model.head), on_device)

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

    def in_double(self: N) -> N:
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

    def in_blocks(self, work: Callable[[slice], R], n: int, step: int) -> list[R]:
        """Return the results of ``work`` on the slices of [0, n), in their order.

        With compiled kernels, the slices have ``step`` nodes and are divided among threads. On a device they have as
        many as its memory allows, and follow each other.
        """
        if self.on_device is None:
            return threads.results(work, slices(n, step))
        # propagation; embeddings at all scales, their inputs to the selector, and both projections
        per_node = self.on_device.node_bytes + 16 * self.model.nhid * (self.affinity.num_scales + 2)
        return in_blocks(work, n, per_node, self.device)

    def _inputs(self, rows: NDArray[np.integer]) -> tuple[Tensor, Tensor]:
        """Return the features F (m, d) of some nodes and their aggregates ÂF (S, m, d).

        In float64 they are always those of the kernels, so that near-ties have the same inputs on all devices.
        """
        if self.on_device is not None and self.dtype == torch.float32:
            return self.on_device.rows(rows), self.on_device.aggregate(rows)
        aggregated = self.affinity.aggregate(
            self.features, rows, np.float64 if self.dtype == torch.float64 else np.float32
        )
        own, mean = (torch.from_numpy(x).to(self.device, self.dtype) for x in (self.features.rows(rows), aggregated))
        return own, mean


@dataclass(frozen=True)
class NodeProjections(NodeEmbeddings):
    """The projections u (float32) and v (half precision) of all nodes, and the inputs to compute them again.

    Nodes are stored in processing order. The place of a node is its position in this order.

    Attributes
    ----------
    order, place : (N,) integers
        ``order[t]`` is the node at place t; ``place`` is the inverse of ``order``.
    source, target : ScratchRows
        u (N, h) float32 and v (N, h) float16, by place.
    source_term, target_term : (N,) float32
        The part of a logit that depends on one end only, by place (:mod:`starfc.scoring.projection_kernels`).
    error : (N,) float32
        Bound on the change of a logit by rounding v to half precision, by place.
    """

    order: NDArray[np.integer]
    place: NDArray[np.integer]
    source: ScratchRows
    target: ScratchRows
    source_term: NDArray[np.float32]
    target_term: NDArray[np.float32]
    error: NDArray[np.float32]
