"""Train the hierarchical model on one subgraph (TPAMI 2023): five graphs, four heads, a scale per node.

    d1 > d2  from the offset learner;  graphs of k_mid - d1, k_mid - d2, k_mid, k_mid + d2, k_mid + d1 neighbours
    for every pass, for every patch:
        loss = CE(head_small, X_small) + CE(head_mid, X_mid) + CE(head_large, X_large) + CE(head_fused, X_fused)
               + λ (log2 3 - H(r)),   r = share of the nodes that choose each scale;   one step of all but the offsets
    one step of the offset learner, on the sum of the patches' gradients

X_small is trained on the edges of the smallest graph, X_mid on those of the middle graph, X_large and X_fused on those
of the largest graph. One kNN search is enough for all graphs: a smaller graph has the first entries of each row of a
larger graph.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from starfc.config.config import Config
from starfc.data.dataset import Features
from starfc.evaluation.labelled import Labelled
from starfc.graph.affinity import Affinity, affinity_edges
from starfc.graph.knn import exact_knn
from starfc.graph.neighbours import KnnGraph
from starfc.models.gcn import EdgeHead
from starfc.models.hierarchical import HierarchicalModel, OffsetDraw, straight_through
from starfc.training.optimisers import make_optimizer
from starfc.training.sampling import patches, random_rotation

SMALL, MID, LARGE = 0, 2, 4  # positions, among the five graphs from small to large, of those with training edges


@dataclass(frozen=True)
class Neighbourhood:
    """A subgraph before its offsets are drawn: features (n, d), labels (n,), and the kNN graph of the largest k."""

    features: NDArray[np.float32]
    labels: NDArray[np.integer]
    graph: KnnGraph

    @property
    def num_nodes(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class ScaleGraphs:
    """Five nested graphs of n nodes, from small to large.

    Attributes
    ----------
    features : (n, d)
        F.
    aggregated : (5, n, d)
        ÂF of every graph.
    rows, cols : (E,)
        Ends of the edges: every stored entry of the largest Â.
    levels : (E,)
        The smallest of the five graphs that has the edge, 0..4.
    targets : (E,)
        1 if both ends have the same label, else 0.
    """

    features: Tensor
    aggregated: Tensor
    rows: Tensor
    cols: Tensor
    levels: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> ScaleGraphs:
        """Return the same graphs on another device."""
        return ScaleGraphs(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class Patch:
    """Numbers of the edges of one step, for the smallest, the middle and the largest graph."""

    small: Tensor
    mid: Tensor
    large: Tensor


@dataclass(frozen=True)
class Work:
    """A subgraph on its device, and the seed of its offsets.

    Every step draws the offsets again with this seed. The result is the same, because their logits do not change within
    a subgraph.
    """

    graphs: ScaleGraphs
    offset_seed: int


class HierarchicalTraining:
    """The method of the TPAMI paper. Its methods are those that :mod:`starfc.training.trainer` calls."""

    def __init__(self, config: Config, model: HierarchicalModel) -> None:
        self.model, self._config = model, config
        learner = set(model.offset_learner.parameters())
        self.optimizer = make_optimizer(config, [p for p in model.parameters() if p not in learner])
        self.offset_optimizer = make_optimizer(config, learner, config.hierarchical.offset_lr)
        self.optimizers = {"main": self.optimizer, "offsets": self.offset_optimizer}
        self._offset_gradient = torch.zeros_like(model.offset_learner.logits)

    def build(self, data: Labelled, instances: NDArray[np.int64]) -> Neighbourhood:
        """Make the kNN search of a subgraph, with the largest k that an offset can need.

        This runs while the previous subgraph is used for training.
        """
        h = self._config.hierarchical
        features, labels = data.features[instances], data.labels[instances]
        return Neighbourhood(features, labels, exact_knn(features, min(h.k_mid + max(h.offsets), len(features))))

    def start(self, found: Neighbourhood, rng: np.random.Generator, device: torch.device) -> Work:
        """Draw the offsets, and build the five graphs that they define."""
        seed = int(rng.integers(2**63))
        draw = self._draw(seed)
        return Work(make_graphs(found, self._config.hierarchical.k_mid, draw, self._config.th_sim).to(device), seed)

    def num_steps(self, work: Work) -> int:
        """Return the number of optimiser steps for a subgraph: one for each patch of its largest graph, per pass."""
        return self._config.sampling.passes * -(-len(work.graphs.rows) // self._config.hierarchical.patch_edges)

    def deal(self, work: Work, steps: int, rng: np.random.Generator) -> list[Patch]:
        """Return the edges of each of ``steps`` steps. Every pass shuffles and cuts the edges of the three graphs."""
        passes, levels, dealt = self._config.sampling.passes, work.graphs.levels.cpu().numpy(), []
        edges = [np.flatnonzero(levels <= level) for level in (SMALL, MID, LARGE)]
        for _ in range(passes):
            cut = [patches(len(numbers), steps // passes, rng) for numbers in edges]
            parts = zip(*cut, strict=True)
            dealt += [Patch(*(torch.from_numpy(e[p]) for e, p in zip(edges, part, strict=True))) for part in parts]
        return dealt

    def loss(self, work: Work, patch: Patch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a step, and its terms to log. ``generator`` belongs to the step."""
        h, strength = self._config.hierarchical, self._config.sampling.rotation
        turn = random_rotation(self.model.feature_dim, strength, generator) if strength else None
        draw = self._draw(work.offset_seed)
        terms, ratio = step_terms(self.model, work.graphs, patch, draw, generator, turn, h.selector_precision)
        loss = sum(terms.values()) + h.balance * imbalance(ratio)
        logged = {f"loss_{name}": float(term.detach()) for name, term in terms.items()}
        shares = dict(zip(("share_small", "share_mid", "share_large"), ratio.tolist(), strict=True))
        return loss, logged | shares | {"offset_1": draw.d1, "offset_2": draw.d2}

    def update(self) -> None:
        """Update all weights except the offset learner's, whose gradients are summed instead."""
        self.optimizer.step()
        logits = self.model.offset_learner.logits
        assert logits.grad is not None  # every loss depends on the offsets
        self._offset_gradient += logits.grad
        logits.grad = None

    def finish(self) -> None:
        """Update the offset learner at the end of a subgraph."""
        self.model.offset_learner.logits.grad = self._offset_gradient
        self.offset_optimizer.step()
        self.model.offset_learner.logits.grad = None
        self._offset_gradient = torch.zeros_like(self._offset_gradient)

    def carried(self) -> dict[str, Tensor]:
        """Return the state that passes from step to step: the summed gradient of the offset learner."""
        return {"offset_gradient": self._offset_gradient.cpu()}

    def restore(self, carried: dict[str, Tensor]) -> None:
        """Restore the state :meth:`carried` from a checkpoint."""
        self._offset_gradient = carried["offset_gradient"].to(self._offset_gradient)

    def _draw(self, seed: int) -> OffsetDraw:
        return self.model.offset_learner.draw(torch.Generator().manual_seed(seed))


def make_graphs(found: Neighbourhood, k_mid: int, draw: OffsetDraw, th_sim: float = 0.0) -> ScaleGraphs:
    """Build the graphs of k_mid - d1, k_mid - d2, k_mid, k_mid + d2 and k_mid + d1 neighbours, with one sort."""
    scales = (k_mid - draw.d1, k_mid - draw.d2, k_mid, k_mid + draw.d2, k_mid + draw.d1)
    rows, cols, levels = affinity_edges(found.graph, scales, th_sim)
    affinity = Affinity.of(found.graph, th_sim, scales=scales)
    aggregated = affinity.aggregate(Features(found.features), np.arange(found.num_nodes))
    same = (found.labels[rows] == found.labels[cols]).astype(np.float32)
    return ScaleGraphs(*map(torch.from_numpy, (found.features, aggregated, rows, cols, levels, same)))


def step_terms(
    model: HierarchicalModel,
    graphs: ScaleGraphs,
    patch: Patch,
    draw: OffsetDraw,
    generator: torch.Generator,
    turn: Tensor | None = None,
    selector_precision: str = "float32",
) -> tuple[dict[str, Tensor], Tensor]:
    """Compute the four cross-entropies, and the share r (3,) of the nodes that choose each scale.

    Parameters
    ----------
    model : HierarchicalModel
        The network.
    graphs : ScaleGraphs
        The five graphs.
    patch : Patch
        Edges of the step.
    draw : OffsetDraw
        The offsets of these graphs, with their weights p1 and p2.
    generator : torch.Generator
        CPU generator of the selector's Gumbel noise.
    turn : (d, d) tensor, optional
        Rotation of the features.
    selector_precision : {'float32', 'bfloat16'}
        Number type of the selector's products.
    """
    small, mid, large = tokens = scale_embeddings(model, graphs, draw, turn)
    stacked = torch.stack(tokens, dim=1)  # (n, 3, h)
    with _precision(selector_precision, stacked.device):
        logits = model.selector(stacked)
    choice = straight_through(logits.float(), generator)  # (n, 3), one-hot
    fused = torch.einsum("ns,nsh->nh", choice, stacked)
    trained_on = {
        "small": (small, patch.small),
        "mid": (mid, patch.mid),
        "large": (large, patch.large),
        "fused": (fused, patch.large),
    }
    terms = {name: _cross_entropy(model.heads[name], x, graphs, e) for name, (x, e) in trained_on.items()}
    return terms, choice.mean(dim=0)


def scale_embeddings(
    model: HierarchicalModel, graphs: ScaleGraphs, draw: OffsetDraw, turn: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute X_small, X_mid and X_large, (n, h) each.

    The weight of the offset that was not drawn is 0, so no gradient reaches the backbone through its two graphs. Their
    embeddings are computed only for the gradient of the weight.
    """
    turn = None if turn is None else turn.to(graphs.features.device)
    smallest, smaller, middle, larger, largest = graphs.aggregated
    live, idle = ((smallest, largest), (smaller, larger)) if draw.first else ((smaller, larger), (smallest, largest))
    small, mid, large = model.backbone.at_scales(graphs.features, live[0], middle, live[1], rotation=turn)
    with torch.no_grad():
        others = model.backbone.at_scales(graphs.features, *idle, rotation=turn)
    p, q = (draw.p1, draw.p2) if draw.first else (draw.p2, draw.p1)
    return p * small + q * others[0], mid, p * large + q * others[1]


def imbalance(ratio: Tensor) -> Tensor:
    """Return log2 3 - H(r) in bits for the shares r (3,) of the scales. It is 0 if all scales are used equally."""
    entropy = -(ratio * ratio.clamp_min(torch.finfo(ratio.dtype).tiny).log2()).sum()  # 0 log 0 = 0
    return math.log2(len(ratio)) - entropy


def _cross_entropy(head: EdgeHead, nodes: Tensor, graphs: ScaleGraphs, edges: Tensor) -> Tensor:
    edges = edges.to(graphs.rows.device)
    logits = head.logits(*head.project(nodes), graphs.rows[edges], graphs.cols[edges])
    return functional.binary_cross_entropy_with_logits(logits, graphs.targets[edges])


def _precision(name: str, device: torch.device) -> AbstractContextManager:
    return torch.autocast(device.type, torch.bfloat16) if name == "bfloat16" else nullcontext()
