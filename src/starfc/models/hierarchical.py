"""The extended network (STAR-FC, TPAMI 2023): one backbone on graphs of several scales, and a choice of the scale.

    d1 > d2                                    two offsets: one is drawn by the logits, one is the runner-up
    X_small = p1 X(k - d1) + p2 X(k - d2),  X_mid = X(k),  X_large = p1 X(k + d1) + p2 X(k + d2)
    X_fused = the token of (X_small, X_mid, X_large) that the ScaleSelector chooses for each node

The :class:`OffsetLearner` chooses the offsets. All choices are straight-through: 0 or 1 in the forward pass, the
gradient of the softmax in the backward pass. A trained model does not use offsets: its three graphs have fixed numbers
of neighbours (``scales``), the scale with the highest logit is chosen, and the last of its four heads scores the edges.
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
    """Draw a hard Gumbel-softmax sample over the last axis: (…, c) logits -> (…, c) exact zeros and ones.

    The result is one-hot in the forward pass and has the gradient of softmax(logits + g) in the backward pass.
    ``generator`` is a CPU generator, also for logits on other devices.
    """
    noise = torch.empty(logits.shape).exponential_(generator=generator).log().neg().to(logits.device)
    soft = torch.softmax(logits + noise, dim=-1)
    hard = functional.one_hot(soft.argmax(dim=-1), logits.shape[-1]).to(soft.dtype)
    return hard + (soft - soft.detach())


@dataclass(frozen=True)
class OffsetDraw:
    """Two offsets d1 > d2 with their straight-through weights p1, p2: 1 for the drawn offset, 0 for the other."""

    d1: int
    d2: int
    p1: Tensor
    p2: Tensor

    @property
    def first(self) -> bool:
        """Whether d1 was drawn."""
        return float(self.p1.detach()) == 1.0


class OffsetLearner(nn.Module):
    """The distance learner: one logit per offset of the number of neighbours (TPAMI 2023).

    As published, the fourth logit starts at 0.1 (the last one if there are fewer), and all others at 0.0001.
    """

    offsets: Tensor

    def __init__(self, offsets: tuple[int, ...] = OFFSETS) -> None:
        super().__init__()
        self.register_buffer("offsets", torch.tensor(offsets))
        start = torch.full((len(offsets),), 1e-4)
        start[min(3, len(offsets) - 1)] = 0.1
        self.logits = nn.Parameter(start)

    def draw(self, generator: torch.Generator) -> OffsetDraw:
        """Draw an offset. The second offset is the one with the highest logit among the others."""
        weights = straight_through(self.logits, generator)
        drawn = int(weights.detach().argmax())
        others = self.logits.detach().clone()
        others[drawn] = -math.inf
        offsets = self.offsets.tolist()
        large, small = sorted((drawn, int(others.argmax())), key=lambda at: -offsets[at])
        return OffsetDraw(offsets[large], offsets[small], weights[large], weights[small])


class ScaleSelector(nn.Module):
    """The network that scores the three tokens of a node: a transformer encoder block (pre-norm, GELU), LayerNorm and
    a linear unit.
    """

    def __init__(self, nhid: int, num_heads: int = 4, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(
            nhid, num_heads, mlp_ratio * nhid, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(nhid)
        self.score = nn.Linear(nhid, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (n, 3) of tokens (n, 3, h)."""
        return self.score(self.norm(self.block(tokens))).squeeze(-1)


class EdgeHeads(nn.ModuleDict):
    """A dictionary of edge heads by name."""

    def __init__(self, heads: dict[str, EdgeHead]) -> None:
        super().__init__(heads)

    if TYPE_CHECKING:  # torch types the items as Module only

        def __getitem__(self, key: str) -> EdgeHead: ...

        def values(self) -> ValuesView[EdgeHead]: ...


class HierarchicalModel(nn.Module):
    """The extended model: a shared backbone, an offset learner, a scale selector and four edge heads (:data:`HEADS`).

    Parameters
    ----------
    feature_dim, nhid : int
        Feature dimension d and hidden width h, a multiple of 4.
    dropout : float
        Share of the entries of node embeddings that are dropped in training (published: 0).
    init : {'xavier', 'metric'}
        Initialisation of all heads, as for :class:`~starfc.models.gcn.StarFCModel`.
    offsets : tuple of int
        The offsets that the learner can choose.
    scales : tuple of int
        Numbers of neighbours (the node itself included) of the small, mid and large graph at inference.
    generator : torch.Generator, optional
        Source of the initial weights.
    """

    kind = HIERARCHICAL
    folder: Path | None = None  # the folder or checkpoint file from which the model was loaded

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
            raise ValueError(f"init: one of {INITIALISATIONS} needed; found {init!r}")
        self.feature_dim, self.nhid, self.scales = feature_dim, nhid, tuple(scales)
        self.backbone = Backbone(feature_dim, nhid, dropout)
        self.heads = EdgeHeads({name: EdgeHead(nhid) for name in HEADS})
        with torch.random.fork_rng(devices=[]):  # torch's block draws its initial weights from the global generator
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


EmbeddingModel = StarFCModel | HierarchicalModel  # the models that score an edge by the embeddings of its ends
