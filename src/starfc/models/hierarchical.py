"""The extended network (STAR-FC, TPAMI 2023): one backbone on graphs of several scales, and a choice among them.

    d1 > d2                                    two offsets: one drawn by its logits, one the runner-up (OffsetLearner)
    X_small = p1 X(k - d1) + p2 X(k - d2),  X_mid = X(k),  X_large = p1 X(k + d1) + p2 X(k + d2)
    X_fused = the token that the ScaleSelector chooses, node by node, among (X_small, X_mid, X_large)

Choices are hard and straight-through: 0 or 1 forward, the gradient of the softmax backward. A trained model needs no
offsets: its three graphs have fixed numbers of neighbours (``scales``), its choice is the highest logit, and the last
of its four heads scores the edges.
"""

from __future__ import annotations

import math
from collections.abc import ValuesView
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from starfc.models.gcn import INITIALISATIONS, Backbone, EdgeHead, StarFCModel, head_start_, metric_start_
from starfc.models.kinds import HIERARCHICAL
from starfc.runtime.defaults import OFFSETS, SCALES

HEADS = ("small", "mid", "large", "fused")


def straight_through(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A hard Gumbel-softmax sample over the last axis: one-hot forward, the gradient of softmax(logits + g) backward.

    ``generator`` is a CPU generator, whatever the device of the logits: (…, c) -> (…, c) of exact zeros and ones.
    """
    noise = torch.empty(logits.shape).exponential_(generator=generator).log().neg().to(logits.device)
    soft = torch.softmax(logits + noise, dim=-1)
    hard = functional.one_hot(soft.argmax(dim=-1), logits.shape[-1]).to(soft.dtype)
    return hard + (soft - soft.detach())


@dataclass(frozen=True)
class OffsetDraw:
    """Offsets d1 > d2 with their straight-through weights p1, p2: one is 1 (the drawn offset's), the other 0."""

    d1: int
    d2: int
    p1: Tensor
    p2: Tensor

    @property
    def first(self) -> bool:
        """Whether d1 was drawn."""
        return float(self.p1.detach()) == 1.0


class OffsetLearner(nn.Module):
    """The distance learner: a logit for each offset of the number of neighbours, spec section 7.

    As published, all logits start at 0.0001 but the fourth, at 0.1 (the last where there are fewer).
    """

    offsets: Tensor

    def __init__(self, offsets: tuple[int, ...] = OFFSETS) -> None:
        super().__init__()
        self.register_buffer("offsets", torch.tensor(offsets))
        start = torch.full((len(offsets),), 1e-4)
        start[min(3, len(offsets) - 1)] = 0.1
        self.logits = nn.Parameter(start)

    def draw(self, generator: torch.Generator) -> OffsetDraw:
        """Draw an offset; the runner-up is that of the highest logit among the others."""
        weights = straight_through(self.logits, generator)
        drawn = int(weights.detach().argmax())
        others = self.logits.detach().clone()
        others[drawn] = -math.inf
        offsets = self.offsets.tolist()
        large, small = sorted((drawn, int(others.argmax())), key=lambda at: -offsets[at])
        return OffsetDraw(offsets[large], offsets[small], weights[large], weights[small])


class ScaleSelector(nn.Module):
    """Logits of a node's three tokens: a transformer encoder block (pre-norm, GELU), LayerNorm and a linear unit."""

    def __init__(self, nhid: int, num_heads: int = 4, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(
            nhid, num_heads, mlp_ratio * nhid, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(nhid)
        self.score = nn.Linear(nhid, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, 3, h) -> logits (n, 3)."""
        return self.score(self.norm(self.block(tokens))).squeeze(-1)


class EdgeHeads(nn.ModuleDict):
    """Edge heads by their names."""

    def __init__(self, heads: dict[str, EdgeHead]) -> None:
        super().__init__(heads)

    if TYPE_CHECKING:  # torch's own says of its items that they are modules

        def __getitem__(self, key: str) -> EdgeHead: ...

        def values(self) -> ValuesView[EdgeHead]: ...


class HierarchicalModel(nn.Module):
    """Shared backbone, offset learner, scale selector and four edge heads (:data:`HEADS`).

    Parameters
    ----------
    feature_dim, nhid : int
        Feature dimension d and hidden width h, a multiple of 4.
    dropout : float
        Share of node-embedding entries dropped in training (the published value is 0).
    init : {'xavier', 'metric'}
        As for :class:`~starfc.models.gcn.StarFCModel`, of every head.
    offsets : tuple of int
        Offsets that the learner chooses from.
    scales : tuple of int
        Neighbours (the node itself counted) of the small, mid and large graph at inference.
    generator : torch.Generator, optional
        Source of the initial weights.
    """

    kind = HIERARCHICAL
    folder: Path | None = None  # of its weights, or the file of a checkpoint, where it was loaded

    def __init__(
        self,
        feature_dim: int = 256,
        nhid: int = 512,
        dropout: float = 0.0,
        init: str = "xavier",
        offsets: tuple[int, ...] = OFFSETS,
        scales: tuple[int, ...] = SCALES,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if init not in INITIALISATIONS:
            raise ValueError(f"init: one of {INITIALISATIONS}; found {init!r}")
        self.feature_dim, self.nhid, self.scales = feature_dim, nhid, tuple(scales)
        self.backbone = Backbone(feature_dim, nhid, dropout)
        self.heads = EdgeHeads({name: EdgeHead(nhid) for name in HEADS})
        with torch.random.fork_rng(devices=[]):  # torch's block draws its start from the global generator
            seed = torch.randint(2**62, (), generator=generator)
            torch.manual_seed(int(seed))
            self.selector = ScaleSelector(nhid)
        self.offset_learner = OffsetLearner(offsets)
        nn.init.xavier_uniform_(self.backbone.conv1.weight, generator=generator)
        for head in self.heads.values():
            head_start_(head, generator)
            if init == "metric":
                metric_start_(head, feature_dim)

    @property
    def head(self) -> EdgeHead:
        """The head that scores the edges of the fused embeddings."""
        return self.heads["fused"]


EmbeddingModel = StarFCModel | HierarchicalModel  # those that score an edge by embeddings of its ends
