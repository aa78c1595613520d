"""The contextual model: edge confidence from structure for any embedding. Its scorers also use statistics of the set.

The structural features of an edge (:mod:`starfc.graph.structure`, with strangers) do not mean the same in each set.
Nine common neighbours of ten mean "the same identity" if identities have hundreds of instances; they mean little if the
same few strangers fill all lists. Therefore a scorer gets the features of the edge and the *context*: statistics of the
features over the whole set. The context c modulates both hidden layers (feature-wise linear modulation, Perez et al.,
AAAI 2018) and the logit:

    h1 = ReLU((1 + γ1(c)) (W1 x + b1) + β1(c)),   h2 = ReLU((1 + γ2(c)) (W2 h1 + b2) + β2(c)),
    z = (1 + α(c)) (w3 h2 + b3) + ω(c)

Within one set, c is constant. So the modulation is folded into the weights once (:meth:`ContextScorer.of`), and an edge
costs the same as with the plain :class:`~starfc.models.structural.EdgeScorer`.

The model is trained on many kinds of data (:mod:`starfc.training.kinds`), so its p is calibrated on new sets too. The
second round is trained on other kinds of data than the first round. Its training then has first-round probabilities
with the same errors as on new data. On a set that is unlike all training data, the result differs between trainings.
Therefore each round has several scorers, trained separately, and their logits are averaged (:class:`MeanScorer`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import vector_to_parameters

from starfc.errors import InputError
from starfc.graph.strangers import Strangers
from starfc.graph.structure import ABSOLUTE_FEATURES, FEATURES, FIRST_FEATURES
from starfc.models.kinds import ANY
from starfc.models.structural import EdgeScorer, Modules, StructuralModel, scorer_layers
from starfc.runtime.words import anew

SAMPLED_NODES, SAMPLED_EDGES = 4000, 20_000  # maximum numbers of nodes and edges from which a context is computed
CONTEXT_NOISE = 0.1  # in training, noise of this many standard deviations is added to each number of a context
MOST_MEMBERS = 16  # maximum number of scorers per round of a stored model
_CONTEXT_UNITS = 24  # hidden units of the network from context to modulation
_LEAST_SPREAD = 1e-9  # minimum spread of strangers in a stored context
_CONTEXT_RANGE = 4.0  # standardised context numbers are clipped to ± this
FAR = 0.3  # if more than this share of a context's numbers is outside the training range, the context is ignored
_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # levels of the quantiles
_SPREAD_OUT = [2, 4, 6, 19, 20, 23, 24]  # columns whose quantiles over all edges are part of the context
_NEAREST = [2, 4, 6, 8, 9, 11, 19, 20, 23, 25]  # and over the edges to nearest neighbours
_LEAST_RANK, _GREATEST_RANK = 24, 25  # columns with logs of the least and greatest of rank_i(j) and rank_j(i)
_FIRST_RANK = math.log(2) / 2  # below this, the log of a rank is that of the first neighbour
_ROUND_COLUMNS = FEATURES - FIRST_FEATURES

COLUMNS_FIRST = FIRST_FEATURES + ABSOLUTE_FEATURES
COLUMNS_SECOND = COLUMNS_FIRST + _ROUND_COLUMNS
CONTEXT_FIRST = 2 * COLUMNS_FIRST + len(_LEVELS) * (len(_SPREAD_OUT) + len(_NEAREST)) + 4
_OF_NEAREST = slice(CONTEXT_FIRST - 4 - len(_LEVELS) * len(_NEAREST), CONTEXT_FIRST - 4)
#: The numbers of a context that are logs of whole numbers: quantiles of ranks.
RANK_QUANTILES = 2 * COLUMNS_FIRST + np.flatnonzero(
    np.repeat(np.isin(_SPREAD_OUT + _NEAREST, (_LEAST_RANK, _GREATEST_RANK)), len(_LEVELS))
)
CONTEXT_SECOND = CONTEXT_FIRST + 2 * _ROUND_COLUMNS + (2 - len(_NEAREST)) * len(_LEVELS)


def sampled_nodes(num_nodes: int) -> NDArray[np.int64]:
    """Return the nodes whose edges give the context of a set: evenly spaced, at most 4,000."""
    return np.unique(np.linspace(0, num_nodes - 1, min(num_nodes, SAMPLED_NODES)).astype(np.int64))


def mutually_nearest(features: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which edges (m, f) join two nodes that are each other's nearest neighbour."""
    return features[:, _GREATEST_RANK] < _FIRST_RANK


def first_context(
    features: NDArray[np.float32],
    num_nodes: int,
    dim: int,
    strangers: Strangers,
    nearest: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return the context of the first round: statistics of the first round's features in a set.

    The context has the mean and standard deviation of each column; the quantiles .1 .3 .5 .7 .9 of seven columns; the
    same quantiles of ten columns over the edges of which one end is the nearest neighbour of the other, which show how
    far the nearest neighbour stands out; log N / 4, log d / 4, log(spread of strangers) / 2, and the median of
    strangers.

    Parameters
    ----------
    features : (m, 31) float32
        Features of the edges of :func:`sampled_nodes`, m >= 1.
    num_nodes, dim : int
        Number of nodes N and feature dimension d.
    strangers : Strangers
        The strangers of the set.
    nearest : (q, 31) float32, optional
        Features of edges to nearest neighbours, of which each is in the set once. Default: those among ``features``.

    Returns
    -------
    (151,) float32
    """
    some = _thinned(features)
    if nearest is None:
        nearest = features[features[:, _LEAST_RANK] < _FIRST_RANK]
    nearest = nearest if len(nearest) else some
    quantiles = [
        np.quantile(edges[:, columns], _LEVELS, axis=0).T.ravel()
        for edges, columns in ((some, _SPREAD_OUT), (nearest, _NEAREST))
    ]
    whole = [math.log(num_nodes) / 4, math.log(dim) / 4, math.log(strangers.spread) / 2, strangers.median]
    return np.concatenate([some.mean(axis=0), some.std(axis=0), *quantiles, whole]).astype(np.float32)


def second_context(first: NDArray[np.float32], features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the context of the second round, (131,) float32: statistics of both rounds' features.

    These are the first round's context without the quantiles over nearest neighbours, the mean and standard deviation
    of columns 31 to 40, and the quantiles of p and of c / sqrt(a b). The first round has used what nearest neighbours
    tell; with these quantiles again, the second round's cross-entropy on kinds that were held out was not lower (0.213
    against 0.211, means of four scorers). ``features`` (m, 41) are those of the second round.
    """
    some = _thinned(features)[:, COLUMNS_FIRST:]
    probability = 1 / (1 + np.exp(-some[:, 0]))
    quantiles = [np.quantile(values, _LEVELS) for values in (probability, some[:, 3])]
    return np.concatenate([np.delete(first, _OF_NEAREST), some.mean(axis=0), some.std(axis=0), *quantiles]).astype(
        np.float32
    )


def _thinned(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return evenly spaced rows, at most about twice :data:`SAMPLED_EDGES`."""
    return features[:: max(1, len(features) // SAMPLED_EDGES)]


@dataclass(frozen=True)
class Context:
    """The statistics of a set that the scores of its edges depend on.

    A run stores it. So edges of rows that are added later are scored in the same context as the clustered rows.

    Attributes
    ----------
    strangers : Strangers
        The strangers of the set.
    num_nodes : int
        Number of nodes.
    first, second : (151,), (131,) float32
        The contexts of both rounds.
    adapted : (2, P) float32, optional
        The parameters of both adapted scorers of the second round (:mod:`starfc.clustering.adaptation`). An edge on
        which neither was trained gets the mean of both logits.
    """

    strangers: Strangers
    num_nodes: int
    first: NDArray[np.float32]
    second: NDArray[np.float32]
    adapted: NDArray[np.float32] | None = None

    def arrays(self) -> dict[str, NDArray]:
        """Return the context as named arrays, for :meth:`from_arrays`."""
        known = self.strangers
        adapted = {} if self.adapted is None else {"adapted": self.adapted}
        return adapted | {
            "pairs": np.array([known.median, known.spread]),
            "node_median": known.node_median,
            "node_spread": known.node_spread,
            "cohort": known.cohort,
            "num_nodes": np.array(self.num_nodes),
            "first": self.first,
            "second": self.second,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> Context:
        """Return the context from the arrays of :meth:`arrays`.

        Raises
        ------
        KeyError, ValueError
            If an array is missing, or has wrong values or a wrong shape.
        """
        rows = arrays["node_median"].shape
        shapes = {"pairs": (2,), "node_median": rows, "node_spread": rows, "num_nodes": ()}
        shapes |= {"first": (CONTEXT_FIRST,), "second": (CONTEXT_SECOND,)}
        if "adapted" in arrays:
            width = arrays["adapted"].shape[-1:]
            shapes["adapted"] = (2, *width)
        given = {name: arrays[name] for name in (*shapes, "cohort")}
        for name, shape in shapes.items():
            if given[name].shape != shape or given[name].dtype.kind not in "fi":
                raise ValueError(f"{name}: numbers of shape {shape} needed; found {given[name].shape}")
            if name != "num_nodes":
                with np.errstate(over="ignore"):
                    given[name] = given[name].astype(np.float64 if name == "pairs" else np.float32)
        if len(rows) != 1 or not all(np.isfinite(given[name]).all() for name in shapes):
            raise ValueError("context: finite numbers, and one median for each row, needed")
        cohort, (median, spread), num_nodes = given["cohort"], given["pairs"].tolist(), int(given["num_nodes"])
        if cohort.ndim != 1 or cohort.dtype.kind != "i" or not cohort.size or not 1 <= num_nodes < 1 << 48:
            raise ValueError("context: a cohort of rows and at least 1 node needed")
        if not (spread > _LEAST_SPREAD and (given["node_spread"] > _LEAST_SPREAD).all() and -1 <= median < 1):
            raise ValueError("context: spreads above 0 and a median from -1 to 1 needed")
        if cohort.min() < 0 or cohort.max() >= rows[0]:
            raise ValueError(f"cohort: rows from 0 to {rows[0] - 1} needed; found up to {cohort.max()}")
        known = Strangers(median, spread, given["node_median"], given["node_spread"], cohort)
        return cls(known, num_nodes, given["first"], given["second"], given.get("adapted"))

    def late(self, model: ContextualModel) -> list[EdgeScorer]:
        """Return the second round's scorers of the set. The logit of an edge is the mean of their logits.

        Raises
        ------
        InputError
            If the adapted parameters do not fit the model.
        """
        scorer = model.second.of(self.second)
        if self.adapted is None:
            return [scorer]
        if self.adapted.shape[1] != sum(value.numel() for value in scorer.parameters()):
            raise InputError(
                f"edges/context.npz: 'adapted' has {self.adapted.shape[1]} parameters, which do not fit the run's "
                f"model; {anew('cluster')}"
            )
        return [restored(scorer, values) for values in self.adapted]


def restored(scorer: EdgeScorer, parameters: NDArray[np.float32]) -> EdgeScorer:
    """Return a copy of a scorer with other parameters, (P,) in the order of ``scorer.parameters()``."""
    other = copy.deepcopy(scorer)
    with torch.no_grad():
        vector_to_parameters(torch.from_numpy(np.array(parameters)), other.parameters())
    return other


class ContextScorer(nn.Module):
    """A scorer that computes the logits (m,) of edges from their features (m, f) and the contexts of their sets.

    Parameters
    ----------
    features, context : int
        Numbers f and c of an edge's features and of a context's numbers.
    nhid : int
        h, units of each hidden layer.
    generator : torch.Generator, optional
        Source of the initial weights.
    """

    feature_mean: Tensor
    feature_std: Tensor
    context_mean: Tensor
    context_std: Tensor

    def __init__(self, features: int, context: int, nhid: int = 64, generator: torch.Generator | None = None) -> None:
        super().__init__()
        for name, width in (("feature", features), ("context", context)):
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_std", torch.ones(width))
        self.layers = scorer_layers(features, nhid, generator)
        seen, modulated = nn.Linear(context, _CONTEXT_UNITS), nn.Linear(_CONTEXT_UNITS, 4 * nhid + 2)
        self.context = Modules([seen, modulated])
        self.nhid = nhid
        bound = 1 / math.sqrt(context)
        nn.init.uniform_(seen.weight, -bound, bound, generator=generator)
        nn.init.zeros_(seen.bias)
        nn.init.zeros_(modulated.weight)
        nn.init.zeros_(modulated.bias)

    def standardise(self, features: Tensor, contexts: Tensor) -> None:
        """Set means and standard deviations to those of some edges (m, f) and of the contexts (K, c) of all sets."""
        for name, values in (("feature", features), ("context", contexts)):
            getattr(self, f"{name}_mean").copy_(values.mean(dim=0))
            getattr(self, f"{name}_std").copy_(values.std(dim=0).clamp_min(1e-3))

    def modulation(self, contexts: Tensor, noise: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
        """Return the modulation of contexts (K, c): γ1, β1, γ2, β2, α, ω side by side, (K, 4 h + 2).

        ``noise`` (K, c), in standard deviations, is added to the contexts. ``kept`` (K, u) multiplies the hidden units
        (dropout). Both are used in training only.
        """
        seen = ((contexts - self.context_mean) / self.context_std).clamp(-_CONTEXT_RANGE, _CONTEXT_RANGE)
        first, last = self.context
        hidden = torch.tanh(first(seen if noise is None else seen + noise))
        return last(hidden if kept is None else hidden * kept)

    @property
    def neutral(self) -> NDArray[np.float32]:
        """The mean context (c,) of the training data, for sets without edges and sets unlike all training data."""
        return self.context_mean.cpu().numpy()

    def forward(self, features: Tensor, modulation: Tensor) -> Tensor:
        """Return the logits (m,) of edges (m, f), each with the modulation (m, 4 h + 2) of its set."""
        h = self.nhid
        g1, b1, g2, b2, alpha, omega = modulation.split([h, h, h, h, 1, 1], dim=-1)
        first, second, last = self.layers
        hidden = functional.relu(first((features - self.feature_mean) / self.feature_std) * (1 + g1) + b1)
        hidden = functional.relu(second(hidden) * (1 + g2) + b2)
        return (last(hidden) * (1 + alpha) + omega).squeeze(-1)

    @torch.no_grad()
    def of(self, context: NDArray[np.float32]) -> EdgeScorer:
        """Return a plain scorer for the set with this context (c,), with the modulation folded into the weights."""
        h = self.nhid
        device = self.feature_mean.device
        modulation = self.modulation(torch.from_numpy(np.asarray(context, np.float32)).to(device)[None])[0]
        g1, b1, g2, b2, alpha, omega = modulation.split([h, h, h, h, 1, 1])
        first, _, _ = self.layers
        folded = EdgeScorer(first.in_features, h).to(device)
        folded.shift.copy_(self.feature_mean)
        folded.scale.copy_(1 / self.feature_std)
        changes = ((1 + g1, b1), (1 + g2, b2), (1 + alpha, omega))
        for layer, ours, (factor, offset) in zip(folded.layers, self.layers, changes, strict=True):
            layer.weight.copy_(ours.weight * factor[:, None])
            layer.bias.copy_(ours.bias * factor + offset)
        return folded.eval()

    @torch.no_grad()
    def outside(self, context: NDArray[np.float32]) -> float:
        """Return the share of the context's numbers that are over 3 standard deviations from the training mean."""
        seen = (torch.from_numpy(np.asarray(context, np.float32)) - self.context_mean.cpu()) / self.context_std.cpu()
        return float((seen.abs() > 3).float().mean())


class MeanScorer(nn.Module):
    """A scorer that averages the logits of several :class:`ContextScorer` (``members``), trained separately."""

    def __init__(
        self, features: int, context: int, nhid: int, members: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.nhid = nhid
        self.members = Modules([ContextScorer(features, context, nhid, generator) for _ in range(members)])

    @torch.no_grad()
    def of(self, context: NDArray[np.float32]) -> EdgeScorer:
        """Return a plain scorer for the set with this context (c,): the M members side by side, with M h hidden units.

        If more than :data:`FAR` of the context's numbers are outside the training range, :attr:`neutral` is used
        instead. The features of edges generalise to such sets, but the modulation does not.
        """
        if self.outside(context) > FAR:
            context = self.neutral
        scorers = [member.of(context) for member in self.members]
        count, h = len(scorers), self.nhid
        whole = EdgeScorer(len(scorers[0].shift), count * h, members=count).to(scorers[0].shift.device)
        whole.shift.copy_(scorers[0].shift)
        whole.scale.copy_(scorers[0].scale)
        first, second, last = whole.layers
        last.bias.zero_()
        for at, scorer in enumerate(scorers):
            units, (its_first, its_second, its_last) = slice(at * h, (at + 1) * h), scorer.layers
            # rescale the first layer, so that all members use the standardisation of the first member
            factor = scorer.scale / whole.scale
            first.weight[units] = its_first.weight * factor
            first.bias[units] = its_first.bias + (its_first.weight * scorer.scale) @ (whole.shift - scorer.shift)
            second.weight[units] = its_second.weight
            second.bias[units] = its_second.bias
            last.weight[:, units] = its_last.weight / count
            last.bias.add_(its_last.bias / count)
        return whole.eval()

    def outside(self, context: NDArray[np.float32]) -> float:
        """Return the mean of :meth:`ContextScorer.outside` over the members."""
        return float(np.mean([member.outside(context) for member in self.members]))

    @property
    def neutral(self) -> NDArray[np.float32]:
        """:attr:`ContextScorer.neutral` of the first member."""
        return next(iter(self.members)).neutral


class ContextualModel(StructuralModel):
    """A structural model whose scores also depend on the context of the set.

    It has two rounds. ``first`` and ``second`` are :class:`MeanScorer` instances. The edges of a set are scored by
    ``first.of(context)`` and ``second.of(context)``.

    Parameters
    ----------
    nhid : int
        Units of each hidden layer of a member.
    members : int
        Number of scorers in each round.
    columns, candidates, smoothing, generator
        As for :class:`~starfc.models.structural.StructuralModel`.
    """

    kind = ANY
    # The type differs from the base class; all callers that use `first` call first.of(context) for a contextual model.
    first: MeanScorer  # type: ignore[assignment]
    second: MeanScorer  # type: ignore[assignment]

    def __init__(
        self,
        nhid: int = 64,
        *,
        columns: int = 79,
        candidates: int = 40,
        smoothing: int = 10,
        members: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.nhid = nhid
        self.columns, self.candidates, self.smoothing, self.rounds = columns, candidates, smoothing, 2
        self.first = MeanScorer(COLUMNS_FIRST, CONTEXT_FIRST, nhid, members, generator)
        self.second = MeanScorer(COLUMNS_SECOND, CONTEXT_SECOND, nhid, members, generator)
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("shape", torch.tensor([nhid, columns, candidates, smoothing, members]))

    @classmethod
    def of_shape(cls, shape: Tensor) -> ContextualModel:
        """Return a new model with the sizes in ``shape``, which a state dict contains."""
        nhid, columns, candidates, smoothing, members = shape.tolist()
        return cls(nhid, columns=columns, candidates=candidates, smoothing=smoothing, members=members)


def joined(models: Sequence[ContextualModel]) -> ContextualModel:
    """Return one model with the scorers of several models, whose mean logits it uses (:class:`MeanScorer`).

    Trainings on other kinds of data make other errors, and the mean makes fewer than each of them.

    Raises
    ------
    InputError
        If the models have different sizes apart from the number of scorers, or if there would be more than 16 scorers.
    """
    sizes = [(model.nhid, model.columns, model.candidates, model.smoothing) for model in models]
    if len(set(sizes)) != 1:
        raise InputError(f"models of one size needed; found nhid, columns, candidates, smoothing {sizes}")
    nhid, columns, candidates, smoothing = sizes[0]
    count = sum(len(model.first.members) for model in models)
    if count > MOST_MEMBERS:
        raise InputError(f"at most {MOST_MEMBERS} scorers per round allowed; found {count}; join fewer trainings")
    whole = ContextualModel(nhid, columns=columns, candidates=candidates, smoothing=smoothing, members=count)
    for ours, theirs in ((whole.first, [m.first for m in models]), (whole.second, [m.second for m in models])):
        members = [member for mean in theirs for member in mean.members]
        for own, member in zip(ours.members, members, strict=True):
            own.load_state_dict(member.state_dict())
    return whole
