"""The structural model: the probability of an edge from the structure of the kNN graph around it, in two rounds.

A scorer is a small network on the structural features of an edge (:mod:`starfc.graph.structure`): two hidden layers of
h units with ReLU, and one logit z. The scorer of the second round also gets the first round's probabilities around the
edge. In training, these probabilities must come from a scorer that was not trained on the same edges. Therefore the
first round has three scorers: one for each half of the identities, and one for all identities. The second round is
trained on the scores that each half's scorer gives to the other half's edges. At inference, the scorer for all
identities is used.

The last logit is divided by a temperature T, which is chosen on held-back identities: p = σ(z / T).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from starfc.errors import InputError
from starfc.graph.structure import FEATURES, FIRST_FEATURES
from starfc.models.kinds import STRUCTURAL
from starfc.runtime.products import ROWS

FOLDS = 2  # parts of the identities on which the first round is trained separately

M = TypeVar("M", bound=nn.Module)


class Modules(nn.ModuleList, Generic[M]):
    """A list of torch modules of one type."""

    def __init__(self, modules: Iterable[M] = ()) -> None:
        super().__init__(modules)

    if TYPE_CHECKING:  # torch types the items as Module only

        def __iter__(self) -> Iterator[M]: ...


def scorer_layers(
    features: int, nhid: int, generator: torch.Generator | None = None, members: int = 1
) -> Modules[nn.Linear]:
    """Return the three linear layers of a scorer, initialised; see :class:`EdgeScorer`."""
    layers = Modules([nn.Linear(features, nhid), nn.Linear(nhid // members, nhid), nn.Linear(nhid, 1)])
    for layer in layers:
        bound = math.sqrt(6 / layer.in_features) if layer.out_features > 1 else math.sqrt(1 / layer.in_features)
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        nn.init.zeros_(layer.bias)
    return layers


class EdgeScorer(nn.Module):
    """A scorer that computes the logits (m,) of edges from their structural features (m, f).

    Features are standardised as (x - ``shift``) · ``scale``, both (f,); this is folded into the first layer.

    Parameters
    ----------
    features : int
        f, number of features of an edge.
    nhid : int
        h, units of each hidden layer, of all members together.
    generator : torch.Generator, optional
        Source of the initial weights.
    members : int
        M, number of networks whose sum is the logit. Each has h / M units of each hidden layer. A unit of the second
        layer is connected only with the units of its own member, so the layer's weight is (h, h / M).

    Raises
    ------
    InputError
        M does not divide h.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, features: int, nhid: int, generator: torch.Generator | None = None, members: int = 1) -> None:
        super().__init__()
        if members < 1 or nhid < members or nhid % members:
            raise InputError(
                f"members: must divide the number of hidden units, so that all have equally many; found {members} "
                f"members of {nhid} units; choose a divisor of {nhid}"
            )
        self.members = members
        self.register_buffer("shift", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.layers = scorer_layers(features, nhid, generator, members)

    def forward(self, features: Tensor) -> Tensor:
        first, second, last = self.layers
        weight = first.weight * self.scale
        inner = (weight, first.bias - weight @ self.shift, second.weight, second.bias)
        of_members = zip(
            *(values.chunk(self.members) for values in inner), last.weight.chunk(self.members, 1), strict=True
        )
        logits: Tensor = last.bias
        for w1, b1, w2, b2, w3 in of_members:
            hidden = functional.relu(functional.linear(features, w1, b1), inplace=True)
            hidden = functional.relu(functional.linear(hidden, w2, b2), inplace=True)
            logits = torch.addmm(logits, hidden, w3.T)
        return logits.squeeze(-1)


@torch.inference_mode()
def logits_of(scorer: EdgeScorer, features: Tensor) -> Tensor:
    """Return the logits (m,) of edges (m, f), each a function of its own features only.

    Features are padded to a multiple of :data:`~starfc.runtime.products.ROWS` rows, for the reason that
    :func:`~starfc.runtime.products.padded` states. So the logit of an edge does not depend on the edges with which it
    is scored: not on the blocks, their order, or the machine's share of a set.
    """
    m = len(features)
    return scorer(functional.pad(features, (0, 0, 0, -m % ROWS)))[:m]


class StructuralModel(nn.Module):
    """A model that scores edges by their structure.

    Parameters
    ----------
    nhid : int
        h, units of each hidden layer.
    columns : int
        k, the length of the neighbour lists that are compared, without the node itself (`knn` - 1).
    candidates : int
        Number of neighbours of each node that are candidate edges.
    smoothing : int
        Number of neighbours in the graph convolution for column 19; 0 for no convolution.
    rounds : {1, 2}
        Number of rounds.
    generator : torch.Generator, optional
        Source of the initial weights.
    """

    kind = STRUCTURAL
    folder: Path | None = None  # the folder or checkpoint file from which the model was loaded
    scales = None  # only one graph: the whole kNN graph
    feature_dim = None  # any dimension: the network does not use embeddings directly
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
            self.second.scale[FIRST_FEATURES] = 0.25  # this column is the logit; the other columns are about 1
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("shape", torch.tensor([nhid, columns, candidates, smoothing, rounds]))

    @classmethod
    def of_shape(cls, shape: Tensor) -> StructuralModel:
        """Return a new model with the sizes in ``shape``, which a state dict contains."""
        nhid, columns, candidates, smoothing, rounds = shape.tolist()
        return cls(nhid, columns=columns, candidates=candidates, smoothing=smoothing, rounds=rounds)

    def standardise(self, features: Tensor) -> None:
        """Set shift and scale of the first round's features from a sample (m, 20) of features."""
        shift, scale = features.mean(dim=0), 1 / features.std(dim=0).clamp_min(1e-3)
        for scorer in (self.first, *self.folds, *([] if self.second is None else [self.second])):
            scorer.shift[:FIRST_FEATURES] = shift
            scorer.scale[:FIRST_FEATURES] = scale

    def logits(self, features: Tensor) -> Tensor:
        """Return z / T (m,) of edges, by the last round's scorer; ``features`` (m, f) are those of the last round."""
        return (self.first if self.second is None else self.second)(features) / self.temperature
