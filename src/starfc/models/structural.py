"""Structure-aware edge confidence: the probability of an edge from the structure around it, in two rounds.

A scorer is a small network on the structural features of an edge (:mod:`starfc.graph.structure`): two hidden layers of
h units with ReLU, one logit z. The second round's scorer sees, besides, the first round's probabilities around the
edge. It must not be trained on probabilities that were fitted to the very answers it is to learn, so the first round is
trained three times: on one half of the identities, on the other half, and on all. The second round is trained on what
each half's scorer says of the other half's edges; at inference the scorer of all identities takes their place.

The last logit is divided by a temperature, which is chosen on held-back identities: p = σ(z / T).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from starfc.graph.structure import FEATURES, FIRST_FEATURES
from starfc.models.kinds import STRUCTURAL

FOLDS = 2  # halves of the identities

M = TypeVar("M", bound=nn.Module)


class Modules(nn.ModuleList, Generic[M]):
    """A list of modules of one type."""

    def __init__(self, modules: Iterable[M] = ()) -> None:
        super().__init__(modules)

    if TYPE_CHECKING:  # torch's own says of its items that they are modules

        def __iter__(self) -> Iterator[M]: ...


def scorer_layers(features: int, nhid: int, generator: torch.Generator | None = None) -> Modules[nn.Linear]:
    """The three linear layers of a scorer, with their initial weights."""
    layers = Modules([nn.Linear(features, nhid), nn.Linear(nhid, nhid), nn.Linear(nhid, 1)])
    for layer in layers:
        bound = math.sqrt(6 / layer.in_features) if layer.out_features > 1 else math.sqrt(1 / layer.in_features)
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        nn.init.zeros_(layer.bias)
    return layers


class EdgeScorer(nn.Module):
    """Logits of edges: (m, f) structural features -> (m,).

    Features are standardised by ``shift`` and ``scale`` (f,), which are folded into the first layer.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, features: int, nhid: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.layers = scorer_layers(features, nhid, generator)

    def forward(self, features: Tensor) -> Tensor:
        first, second, last = self.layers
        weight = first.weight * self.scale
        hidden = functional.relu(functional.linear(features, weight, first.bias - weight @ self.shift), inplace=True)
        hidden = functional.relu(second(hidden), inplace=True)
        return last(hidden).squeeze(-1)


class StructuralModel(nn.Module):
    """Edge confidence from structure.

    Parameters
    ----------
    nhid : int
        h, units of a hidden layer.
    columns : int
        k, neighbours of a node whose lists are compared (`knn` - 1: the node itself is not among them).
    candidates : int
        Neighbours of a node that are candidate edges.
    smoothing : int
        Neighbours of the graph convolution whose result is compared besides; 0: none.
    rounds : {1, 2}
    generator : torch.Generator, optional
        Of the initial weights.
    """

    kind = STRUCTURAL
    folder: Path | None = None  # of its weights, or the file of a checkpoint, where it was loaded
    scales = None  # the whole kNN graph, as the basic model
    feature_dim = None  # it never sees an embedding, so any will do
    temperature: Tensor
    shape: Tensor

    def __init__(
        self,
        nhid: int = 64,
        *,
        columns: int = 79,
        candidates: int = 40,
        smoothing: int = 10,
        rounds: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.nhid = nhid
        self.columns, self.candidates, self.smoothing, self.rounds = columns, candidates, smoothing, rounds
        self.first = EdgeScorer(FIRST_FEATURES, nhid, generator)
        folds = FOLDS if rounds == 2 else 0
        self.folds = Modules(EdgeScorer(FIRST_FEATURES, nhid, generator) for _ in range(folds))
        self.second = EdgeScorer(FEATURES, nhid, generator) if rounds == 2 else None
        if self.second is not None:
            self.second.scale[FIRST_FEATURES] = 0.25  # the logit; the other columns are of the order of 1
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("shape", torch.tensor([nhid, columns, candidates, smoothing, rounds]))

    @classmethod
    def of_shape(cls, shape: Tensor) -> StructuralModel:
        """A model as another's ``shape`` says, which its state dict holds."""
        nhid, columns, candidates, smoothing, rounds = shape.tolist()
        return cls(nhid, columns=columns, candidates=candidates, smoothing=smoothing, rounds=rounds)

    def standardise(self, features: Tensor) -> None:
        """Take shift and scale of the first round's features from a sample (m, 20) of them."""
        shift, scale = features.mean(dim=0), 1 / features.std(dim=0).clamp_min(1e-3)
        for scorer in (self.first, *self.folds, *([] if self.second is None else [self.second])):
            scorer.shift[:FIRST_FEATURES] = shift
            scorer.scale[:FIRST_FEATURES] = scale

    def logits(self, features: Tensor) -> Tensor:
        """z / T of edges, by the last round's scorer."""
        return (self.first if self.second is None else self.second)(features) / self.temperature
