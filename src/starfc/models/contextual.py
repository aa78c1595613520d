"""Structure-aware edge confidence for any embedding: a scorer that sees the set, too.

The columns of an edge (:mod:`starfc.graph.structure`, strangers included) do not mean the same in every set: nine
common neighbours of ten say "the same identity" where identities have hundreds of instances, and little where a few
strangers fill every list. So a scorer is given the edge and the *context*, numbers of what the columns are like in the
whole set. The context c modulates both hidden layers (feature-wise linear modulation, Perez et al., AAAI 2018) and the
logit:

    h1 = ReLU((1 + γ1(c)) (W1 x + b1) + β1(c)),   h2 = ReLU((1 + γ2(c)) (W2 h1 + b2) + β2(c)),
    z = (1 + α(c)) (w3 h2 + b3) + ω(c)

Within one set c is constant. So the modulation is folded into the weights once (:meth:`ContextScorer.of`), and an edge
costs what it costs with the plain :class:`~starfc.models.structural.EdgeScorer`.

Trained over many kinds of data (:mod:`starfc.training.kinds`), the scorer calibrates itself to a set that it has never
seen. The second round is trained on kinds that the first round was not trained on, so that it learns from first-round
probabilities that are as good, and as bad, as those of new data. What a scorer makes of a set that is unlike all of its
training differs from one training to the next; so each round has a few, trained apart, and their mean logit counts
(:class:`MeanScorer`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
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

SAMPLED_NODES, SAMPLED_EDGES = 4000, 20_000  # of a set, to read its context off
CONTEXT_NOISE = 0.1  # standard deviations added to every number of a context in training
_CONTEXT_UNITS = 24
_LEAST_SPREAD = 1e-9  # of strangers, in what is read
_CONTEXT_RANGE = 4.0  # standard deviations: farther away a number counts as this far
FAR = 0.3  # share of a context's numbers outside of what was trained on, above which it says nothing
_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
_SPREAD_OUT = [2, 4, 6, 19, 20, 23, 24]  # columns whose quantiles are seen
_ROUND_COLUMNS = FEATURES - FIRST_FEATURES

COLUMNS_FIRST = FIRST_FEATURES + ABSOLUTE_FEATURES
COLUMNS_SECOND = COLUMNS_FIRST + _ROUND_COLUMNS
CONTEXT_FIRST = 2 * COLUMNS_FIRST + len(_LEVELS) * len(_SPREAD_OUT) + 4
CONTEXT_SECOND = CONTEXT_FIRST + 2 * _ROUND_COLUMNS + 2 * len(_LEVELS)


def sampled_nodes(num_nodes: int) -> NDArray[np.int64]:
    """The nodes whose edges a set's context is read off: evenly spaced, at most 4,000."""
    return np.unique(np.linspace(0, num_nodes - 1, min(num_nodes, SAMPLED_NODES)).astype(np.int64))


def first_context(features: NDArray[np.float32], num_nodes: int, dim: int, strangers: Strangers) -> NDArray[np.float32]:
    """What the first round's columns are like in a set.

    Mean and standard deviation of every column, quantiles .1 .3 .5 .7 .9 of seven of them, log N / 4, log d / 4, half
    the logarithm of the strangers' spread, and their median.

    Parameters
    ----------
    features : (m, 31) float32
        Of the edges of :func:`sampled_nodes`; at least one.

    Returns
    -------
    (101,) float32
    """
    some = _thinned(features)
    quantiles = np.quantile(some[:, _SPREAD_OUT], _LEVELS, axis=0).T.ravel()
    whole = [math.log(num_nodes) / 4, math.log(dim) / 4, math.log(strangers.spread) / 2, strangers.median]
    return np.concatenate([some.mean(axis=0), some.std(axis=0), quantiles, whole]).astype(np.float32)


def second_context(first: NDArray[np.float32], features: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first round's context, and what the second round's own columns are like: (131,) float32.

    Mean and standard deviation of columns 31 to 40, and quantiles of p and of c / sqrt(a b).
    """
    some = _thinned(features)[:, COLUMNS_FIRST:]
    probability = 1 / (1 + np.exp(-some[:, 0]))
    quantiles = [np.quantile(values, _LEVELS) for values in (probability, some[:, 3])]
    return np.concatenate([first, some.mean(axis=0), some.std(axis=0), *quantiles]).astype(np.float32)


def _thinned(features: NDArray[np.float32]) -> NDArray[np.float32]:
    return features[:: max(1, len(features) // SAMPLED_EDGES)]


@dataclass(frozen=True)
class Context:
    """What the edges of a set are judged by: its strangers, its number of nodes, and the contexts of both rounds.

    A run keeps it, so that rows which are added later are judged by the scale of the rows that were clustered.
    ``adapted`` (2, P) float32 are the parameters of the second round's scorers where these were adapted to the set
    (:mod:`starfc.clustering.adaptation`); an edge that neither was trained on is judged by the mean of both logits.
    """

    strangers: Strangers
    num_nodes: int
    first: NDArray[np.float32]
    second: NDArray[np.float32]
    adapted: NDArray[np.float32] | None = None

    def arrays(self) -> dict[str, NDArray]:
        """As named arrays, which :meth:`from_arrays` takes."""
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
        """Of :meth:`arrays`; KeyError or ValueError where they are none, or do not belong together."""
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
        """The second round's scorers of the set: the mean of their logits is an edge's.

        Raises
        ------
        InputError
            Adapted parameters of another model.
        """
        scorer = model.second.of(self.second)
        if self.adapted is None:
            return [scorer]
        if self.adapted.shape[1] != sum(value.numel() for value in scorer.parameters()):
            raise InputError(
                f"edges/context.npz: 'adapted' holds {self.adapted.shape[1]} parameters, which are not those of the "
                f"run's model; {anew('cluster')}"
            )
        return [restored(scorer, values) for values in self.adapted]


def restored(scorer: EdgeScorer, parameters: NDArray[np.float32]) -> EdgeScorer:
    """A scorer with other parameters, (P,) in the order of ``scorer.parameters()``."""
    other = copy.deepcopy(scorer)
    with torch.no_grad():
        vector_to_parameters(torch.from_numpy(np.array(parameters)), other.parameters())
    return other


class ContextScorer(nn.Module):
    """Logits of edges (m, f) in the context (m, c) of their sets: (m,)."""

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
        """Take means and standard deviations from some edges (m, f), and from the contexts (K, c) of all sets."""
        for name, values in (("feature", features), ("context", contexts)):
            getattr(self, f"{name}_mean").copy_(values.mean(dim=0))
            getattr(self, f"{name}_std").copy_(values.std(dim=0).clamp_min(1e-3))

    def modulation(self, contexts: Tensor, noise: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
        """γ1, β1, γ2, β2, α, ω side by side, (K, 4 h + 2), of contexts (K, c).

        ``noise`` (K, c), in standard deviations, and ``kept`` (K, u), what hidden units are multiplied by, are given in
        training.
        """
        seen = ((contexts - self.context_mean) / self.context_std).clamp(-_CONTEXT_RANGE, _CONTEXT_RANGE)
        first, last = self.context
        hidden = torch.tanh(first(seen if noise is None else seen + noise))
        return last(hidden if kept is None else hidden * kept)

    @property
    def neutral(self) -> NDArray[np.float32]:
        """The context (c,) of rows of which no two can be compared: the mean of those that it was trained on."""
        return self.context_mean.cpu().numpy()

    def forward(self, features: Tensor, modulation: Tensor) -> Tensor:
        """Logits (m,) of edges (m, f), each with the modulation (m, 4 h + 2) of its set."""
        h = self.nhid
        g1, b1, g2, b2, alpha, omega = modulation.split([h, h, h, h, 1, 1], dim=-1)
        first, second, last = self.layers
        hidden = functional.relu(first((features - self.feature_mean) / self.feature_std) * (1 + g1) + b1)
        hidden = functional.relu(second(hidden) * (1 + g2) + b2)
        return (last(hidden) * (1 + alpha) + omega).squeeze(-1)

    @torch.no_grad()
    def of(self, context: NDArray[np.float32]) -> EdgeScorer:
        """The scorer of one set, of context (c,): a plain one, with the modulation folded into its weights."""
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
        """Share of the context's numbers that lie more than 3 standard deviations off those of the training kinds."""
        seen = (torch.from_numpy(np.asarray(context, np.float32)) - self.context_mean.cpu()) / self.context_std.cpu()
        return float((seen.abs() > 3).float().mean())


class MeanScorer(nn.Module):
    """The mean logit of a few :class:`ContextScorer` (its ``members``), which were trained apart."""

    def __init__(
        self, features: int, context: int, nhid: int, members: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.nhid = nhid
        self.members = Modules([ContextScorer(features, context, nhid, generator) for _ in range(members)])

    @torch.no_grad()
    def of(self, context: NDArray[np.float32]) -> EdgeScorer:
        """The scorer of one set, of context (c,): those of the members side by side, as one of M h hidden units.

        A context of which more than :data:`FAR` is outside of what was trained on is replaced by :attr:`neutral`: the
        columns of edges carry over to such sets, what the context does to them does not.
        """
        if self.outside(context) > FAR:
            context = self.neutral
        scorers = [member.of(context) for member in self.members]
        count, h = len(scorers), self.nhid
        whole = EdgeScorer(len(scorers[0].shift), count * h).to(scorers[0].shift.device)
        whole.shift.copy_(scorers[0].shift)
        whole.scale.copy_(scorers[0].scale)
        first, second, last = whole.layers
        second.weight.zero_()
        last.bias.zero_()
        for at, scorer in enumerate(scorers):
            units, (its_first, its_second, its_last) = slice(at * h, (at + 1) * h), scorer.layers
            # standardised as the first one's columns are
            factor = scorer.scale / whole.scale
            first.weight[units] = its_first.weight * factor
            first.bias[units] = its_first.bias + (its_first.weight * scorer.scale) @ (whole.shift - scorer.shift)
            second.weight[units, units] = its_second.weight
            second.bias[units] = its_second.bias
            last.weight[:, units] = its_last.weight / count
            last.bias.add_(its_last.bias / count)
        return whole.eval()

    def outside(self, context: NDArray[np.float32]) -> float:
        """As :meth:`ContextScorer.outside`; all members were trained on the same kinds."""
        return next(iter(self.members)).outside(context)

    @property
    def neutral(self) -> NDArray[np.float32]:
        """As :attr:`ContextScorer.neutral`."""
        return next(iter(self.members)).neutral


class ContextualModel(StructuralModel):
    """Edge confidence from structure, in the context of the set.

    It has two rounds. ``first`` and ``second`` are :class:`MeanScorer` instances; what scores the edges of a set are
    ``first.of(context)`` and ``second.of(context)``.

    Parameters
    ----------
    nhid : int
        Hidden units of each member.
    members : int
        Scorers of each round.
    columns, candidates, smoothing, generator
        As for :class:`~starfc.models.structural.StructuralModel`.
    """

    kind = ANY
    # first.of(context) takes the place of the base's first, which every method that uses one knows
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
        """A model as another's ``shape`` says, which its state dict holds."""
        nhid, columns, candidates, smoothing, members = shape.tolist()
        return cls(nhid, columns=columns, candidates=candidates, smoothing=smoothing, members=members)

    @staticmethod
    def of_one_scorer(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state of a model of one member, from that of an earlier format, which had no members."""
        members = {
            f"{name}.members.0.{rest}" if name in ("first", "second") else key: value
            for key, value in state.items()
            for name, _, rest in [key.partition(".")]
        }
        return members | {"shape": torch.cat([state["shape"], torch.ones(1, dtype=torch.int64)])}
