"""The network of STAR-FC: one graph convolution (backbone) and an edge classifier (head).

    X = ReLU([F ‖ ÂF] W + b)                                    backbone
    z_ij = W2 · PReLU(W1 [x_i ‖ x_j] + b1) + b2,  p = softmax(z)[1]     head

Parameter names and shapes are those of the published checkpoints (`Backbone.pth`, `Head.pth`).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from starfc.models.edge_kernels import edge_logits
from starfc.models.kinds import GCN

INITIALISATIONS = ("xavier", "metric")


class GraphConv(nn.Module):
    """A graph convolution with mean aggregation: [F ‖ ÂF] W + b, with W of shape (2d, h) as published.

    A rotation R (d, d) of the features is applied to the weights instead: [F R ‖ ÂF R] W = [F ‖ ÂF] [R W_1; R W_2].
    This needs two products with d rows, not two with N rows.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2 * in_dim, out_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim))

    def forward(self, features: Tensor, *aggregated: Tensor, rotation: Tensor | None = None) -> list[Tensor]:
        """Return one result (N, h) per graph's ÂF (N, d). F W_1 is the same for all graphs and is computed once."""
        own, mean = self.weight.view(2, features.shape[1], -1)  # (d, h) each
        if rotation is not None:
            own, mean = rotation @ own, rotation @ mean
        # two products of half the width, so that the (N, 2d) concatenation is not needed
        base = torch.addmm(self.bias, features, own)
        return [base.addmm(a, mean) for a in aggregated]


class Backbone(nn.Module):
    """The backbone: X = Dropout(ReLU([F ‖ ÂF] W + b)), from features F and aggregated features ÂF (N, d) to (N, h).

    :meth:`at_scales` computes X for the ÂF of several graphs. If a rotation (d, d) is given, F and ÂF are rotated
    first.
    """

    def __init__(self, feature_dim: int, nhid: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = GraphConv(feature_dim, nhid)
        self.dropout = dropout

    def forward(self, features: Tensor, aggregated: Tensor, rotation: Tensor | None = None) -> Tensor:
        return self.at_scales(features, aggregated, rotation=rotation)[0]

    def at_scales(self, features: Tensor, *aggregated: Tensor, rotation: Tensor | None = None) -> list[Tensor]:
        """Return X (N, h) of each graph, given ÂF (N, d) of each graph."""
        nodes = self.conv1(features, *aggregated, rotation=rotation)
        return [functional.dropout(functional.relu_(x), self.dropout, self.training) for x in nodes]


class EdgeHead(nn.Module):
    """A classifier of edges (ordered node pairs) with two classes, computed from node projections.

    Because W1 [x_i ‖ x_j] = W1a x_i + W1b x_j, :meth:`project` runs once per node. Per edge, :meth:`logits` computes
    only an addition, a PReLU and one dot product with W2[1] - W2[0].
    """

    def __init__(self, nhid: int) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.Linear(2 * nhid, nhid), nn.PReLU(nhid), nn.Linear(nhid, 2))

    @property
    def layers(self) -> tuple[nn.Linear, nn.PReLU, nn.Linear]:
        """The layers: the linear layer of W1 and b1, the PReLU, and the linear layer of W2 and b2."""
        first, prelu, last = self.classifier
        assert isinstance(first, nn.Linear)
        assert isinstance(prelu, nn.PReLU)
        assert isinstance(last, nn.Linear)
        return first, prelu, last

    def project(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Return u = W1a x + b1 and v = W1b x, (N, h) each, of node embeddings (N, h)."""
        return self.project_source(nodes), self.project_target(nodes)

    def project_source(self, nodes: Tensor) -> Tensor:
        """Return u = W1a x + b1, (N, h), of node embeddings (N, h)."""
        first, _, _ = self.layers
        return functional.linear(nodes, first.weight[:, : nodes.shape[1]], first.bias)

    def project_target(self, nodes: Tensor) -> Tensor:
        """Return v = W1b x, (N, h), of node embeddings (N, h)."""
        first, _, _ = self.layers
        return functional.linear(nodes, first.weight[:, nodes.shape[1] :])

    def scorer(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the PReLU slopes (h,), w = W2[1] - W2[0] (h,), and the scalar c = b2[1] - b2[0]."""
        _, prelu, last = self.layers
        return prelu.weight, last.weight[1] - last.weight[0], last.bias[1] - last.bias[0]

    def logits(self, source: Tensor, target: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Return the logits z[1] - z[0] of the edges (rows_e, cols_e), (E,); p is their sigmoid."""
        slope, weight, constant = self.scorer()
        return edge_logits(source, target, slope, weight, rows, cols) + constant

    def pair_logits(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the logits z[1] - z[0], (E,), of pairs with the projections u and v, (E, h) each."""
        slope, weight, constant = self.scorer()
        return functional.prelu(source + target, slope) @ weight + constant


class StarFCModel(nn.Module):
    """The basic model: a backbone and a head.

    Parameters
    ----------
    feature_dim, nhid : int
        Feature dimension d and hidden width h.
    dropout : float
        Share of the entries of node embeddings that are dropped in training (published: 0).
    init : {'xavier', 'metric'}
        'xavier' is the published initialisation. 'metric' initialises the head as a distance between the two nodes
        (:func:`metric_start_`), so that training starts from a useful similarity.
    generator : torch.Generator, optional
        Source of the initial weights.
    """

    kind = GCN
    folder: Path | None = None  # the folder or checkpoint file from which the model was loaded
    scales = None  # only one graph: the whole kNN graph

    def __init__(
        self,
        feature_dim: int = 256,
        nhid: int = 512,
        dropout: float = 0.0,
        init: str = "xavier",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.feature_dim, self.nhid = feature_dim, nhid
        self.backbone = Backbone(feature_dim, nhid, dropout)
        self.head = EdgeHead(nhid)
        if init not in INITIALISATIONS:
            raise ValueError(f"init: one of {INITIALISATIONS} needed; found {init!r}")
        nn.init.xavier_uniform_(self.backbone.conv1.weight, generator=generator)  # its bias starts at 0
        head_start_(self.head, generator)
        if init == "metric":
            metric_start_(self.head, feature_dim)

    def forward(
        self, features: Tensor, aggregated: Tensor, rows: Tensor, cols: Tensor, rotation: Tensor | None = None
    ) -> Tensor:
        """Return the logits z[1] - z[0], (E,), of edges, given features F and aggregated features ÂF, (N, d) each.

        If a rotation (d, d) is given, F and ÂF are rotated first.
        """
        return self.head.logits(*self.head.project(self.backbone(features, aggregated, rotation)), rows, cols)


@torch.no_grad()
def head_start_(head: EdgeHead, generator: torch.Generator | None = None) -> None:
    """Initialise a head as published, with torch's defaults: U(±1/sqrt(fan_in)), and PReLU slopes 0.25."""
    first, prelu, last = head.layers
    for layer in (first, last):
        bound = 1 / math.sqrt(layer.in_features)
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    nn.init.constant_(prelu.weight, 0.25)


@torch.no_grad()
def metric_start_(head: EdgeHead, feature_dim: int) -> None:
    """Initialise a head as a weighted L1 distance: z_ij = scale · (typical - Σ_h |x_ih - x_jh|).

    W1a = I, W1b = -I, PReLU slopes are -1 (PReLU(t) = |t|), and W2 = ∓scale/2. `typical` is the expected L1 distance
    of two unit vectors with cosine 0.6 after the Xavier-uniform backbone (variance 2/(2d + h) per weight; half of the
    units are 0 after the ReLU). So the initial decision boundary is in the middle of the data.
    """
    first, prelu, last = head.layers
    h, d = first.out_features, feature_dim
    eye = torch.eye(h)
    first.weight.copy_(torch.cat([eye, -eye], dim=1))
    first.bias.zero_()
    prelu.weight.fill_(-1.0)
    typical = 0.4 * h * math.sqrt(2 / (2 * d + h))
    scale = 9.0 / typical
    last.weight[0].fill_(scale / 2)
    last.weight[1].fill_(-scale / 2)
    last.bias.copy_(torch.tensor([-scale * typical / 2, scale * typical / 2]))
