"""Graph parsing, the first step of every method: score the candidate edges of a kNN graph, keep those with p > τ1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.clustering.adaptation import Adapted
from starfc.data.dataset import Features, as_features
from starfc.errors import InputError
from starfc.graph.affinity import scale_widths
from starfc.graph.edges import EdgeList, Edges
from starfc.graph.neighbours import KnnGraph
from starfc.graph.order import locality_order
from starfc.models.checkpoint import Model
from starfc.models.contextual import Context
from starfc.models.structural import StructuralModel
from starfc.runtime.memory import mapped_bytes
from starfc.runtime.stages import Stages
from starfc.runtime.words import word
from starfc.scoring.projections import (
    TARGET_BYTES,
    NodeProjections,
    num_entries,
    num_pairs,
    parse_affinity,
    parse_graph,
    project_nodes,
)
from starfc.scoring.structural import Scoring


@dataclass(frozen=True)
class ParsedEdges:
    """The E edges that graph parsing kept, and the values that decided about each edge.

    Attributes
    ----------
    edges : EdgeList
        The edges, with p.
    intimacy : (E,) float32
        Node intimacy.
    kept : (E,) bool
        Which edges refinement kept. With communities: which edges lie inside one community.
    logits : (N, k) int8, optional
        Of a structural model with two rounds: the first round's logits of the kNN graph's entries
        (:class:`starfc.graph.structure.EdgeLogits`).
    context : Context, optional
        Of a contextual model: the set's context, which the scores depend on.
    """

    edges: EdgeList
    intimacy: NDArray[np.float32]
    kept: NDArray[np.bool_]
    logits: NDArray[np.int8] | None = None
    context: Context | None = None


@dataclass(frozen=True)
class Parsed:
    """The result of :func:`parse`.

    Attributes
    ----------
    edges : Edges
        The edges with p > τ1.
    order : (N,) integers
        The order in which kernels process the nodes (:func:`starfc.graph.order.locality_order`).
    candidates : int
        The number of candidate edges.
    mass : float
        Of a structural model: Σ p of all candidate edges.
    scoring : Scoring, optional
        Of a structural model: the object that scored the edges.
    """

    edges: Edges
    order: NDArray[np.integer]
    candidates: int
    mass: float = 0.0
    scoring: Scoring | None = None

    def kept(
        self, edges: EdgeList, intimacy: NDArray[np.float32], stay: NDArray[np.bool_], adapted: Adapted | None = None
    ) -> ParsedEdges:
        """Return the edges with the first round's logits and the context of the scoring.

        Parameters
        ----------
        edges : EdgeList
            The E edges with p > τ1.
        intimacy, stay : (E,) float32, (E,) bool
            Node intimacy, and which edges are kept.
        adapted : Adapted, optional
            The adapted scorers, stored in the context.
        """
        codes, context = (None, None) if self.scoring is None else (self.scoring.codes, self.scoring.context)
        if adapted is not None and context is not None:
            context = replace(context, adapted=adapted.parameters())
        return ParsedEdges(edges, intimacy, stay, codes, context)


@dataclass(frozen=True)
class CandidateSet:
    """The candidate edges of a method, for models that score pairs of embeddings.

    Attributes
    ----------
    parse : function (node projections, τ1, slice bytes) -> EdgeList
        Returns the candidate edges with p > τ1. It processes node projections in slices of this many bytes.
    count : function (node projections) -> int
        Returns the number of candidate edges.
    entry_bytes : int
        Memory of parsing per kNN entry, in bytes, if half of the candidates are kept.
    undirected : bool
        The candidates are the edges of the affinity graph, not the kNN entries.
    """

    parse: Callable[[NodeProjections, float, int], EdgeList]
    count: Callable[[NodeProjections], int]
    entry_bytes: int
    undirected: bool


class Parser(Protocol):
    """What scores the candidate edges of a set elsewhere than in this process (:mod:`starfc.shards`)."""

    order: NDArray[np.integer]

    def parse(self, tau1: float) -> tuple[Edges, int, float]:
        """Return the edges with p > τ1, the number of candidates, and Σ p of all candidates of a structural model."""


#: Returns what scores the edges of a kNN graph of features, of a candidate set, with a threshold ``th_sim``.
MakeParser = Callable[[Features, KnnGraph, CandidateSet, float], Parser]

ENTRIES = CandidateSet(parse_graph, num_entries, 9, undirected=False)  # all kNN entries i -> j
PAIRS = CandidateSet(parse_affinity, num_pairs, 22, undirected=True)  # the edges of the affinity graph


def parse(
    features: Features | NDArray[np.float32],
    graph: KnnGraph,
    model: Model,
    candidates: CandidateSet,
    *,
    tau1: float,
    tau2: float = 0.0,
    th_sim: float = 0.0,
    device: str | torch.device,
    stages: Stages,
    scratch: Path | None,
    make_parser: MakeParser | None = None,
) -> Parsed:
    """Score the candidate edges and return those with p > τ1.

    The parameters are those of :func:`starfc.clustering.pipeline.cluster`. Without ``make_parser``, edges are scored
    in this process. A structural model ignores ``candidates``: it always has its own candidates, which are undirected.
    """
    for name, tau in (("tau1", tau1), ("tau2", tau2)):
        if not 0 <= tau <= 1:
            raise InputError(f"{word(name)}: between 0 and 1 needed; found {tau!r}")
    features = as_features(features)
    if model.feature_dim not in (None, features.dim):
        raise InputError(
            f"features: {model.feature_dim} columns needed by the model; found {features.dim}; "
            "use features of the kind that the model was trained on, or another model"
        )
    if make_parser is not None:
        held = 0 if model.kind.structural else candidates.entry_bytes * graph.num_nodes * graph.k
        with stages.stage("edge scores", needs=held):
            parser = make_parser(features, graph, candidates, th_sim)
            found, count, mass = parser.parse(tau1)
        return Parsed(found, parser.order, count, mass, parser if isinstance(parser, Scoring) else None)
    widths = scale_widths(graph, model.scales)
    n, scales, entries = graph.num_nodes, len(widths), graph.num_nodes * int(widths[-1])
    with stages.stage("node order", needs=10 * n):
        order = locality_order(graph)
    inputs = (features.array, graph.ids, graph.sims)
    if isinstance(model, StructuralModel):
        if th_sim > 0:
            raise InputError(
                f"{word('th_sim')}: 0 needed by a structural model, which compares whole lists; found {th_sim!r}"
            )
        with stages.stage("edge scores", needs=structural_bytes(features, graph, model)):
            scoring = Scoring(model, features, graph, order, device, scratch)
            parsed, count, mass = scoring.parse(tau1)
        return Parsed(parsed, order, count, mass, scoring)
    # per entry: one byte for its kind, and 8 bytes if it is one-sided (a third of them); terms per node; row blocks
    needs = mapped_bytes(*inputs) + 4 * entries + (16 + 8 * scales) * n + (128 << 20) * scales
    with stages.stage("node projections", needs=needs):
        nodes = project_nodes(model, features, graph, th_sim, device, order, scratch)
    left = stages.memory_left()
    room = TARGET_BYTES if left is None else max(left // 4, 1 << 20)
    target_bytes = min(TARGET_BYTES, room, 2 * n * model.nhid)
    # one slice of v, and the kept edges while they are sorted; most graphs keep at most half of their entries
    with stages.stage("edge scores", needs=target_bytes + mapped_bytes(graph.ids) + candidates.entry_bytes * entries):
        count = candidates.count(nodes)
        parsed = candidates.parse(nodes, tau1, target_bytes)
    return Parsed(parsed, order, count)


def structural_bytes(features: Features, graph: KnnGraph, model: StructuralModel) -> int:
    """Return the memory that scoring with a structural model will need, in bytes: its largest phase, and N-size arrays.

    The phases are smoothing, which reads features and graph; the rounds of scoring, which read smoothed features and
    graph; and the assembly of the kept edges. About 0.55 of the candidates of a node are kept, each at one end.
    """
    n, smoothed = graph.num_nodes, 2 * graph.num_nodes * features.dim
    lists, codes = mapped_bytes(graph.ids, graph.sims), graph.num_nodes * model.columns
    pairs = int(0.55 * n * model.candidates)
    phases = mapped_bytes(features.array) + lists, lists + codes + 8 * pairs, codes + 24 * pairs - smoothed
    return smoothed + max(phases) + 60 * n + (96 << 20)


@dataclass(frozen=True)
class Decision:
    """The rule that decided whether a parsed edge is kept: a threshold of node intimacy, or communities.

    ``refinement`` is 'fixed' or 'dynamic', ``partition`` is 'components', 'infomap' or 'leiden'.
    """

    tau1: float
    tau2: float
    refinement: str = "fixed"
    partition: str = "components"

    @property
    def communities(self) -> bool:
        """Whether communities decided."""
        return self.partition != "components"
