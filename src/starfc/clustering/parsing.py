"""Graph parsing: features and kNN graph -> the edges with p > τ1, by the model at hand. Every method begins with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.clustering.adaptation import Adapted
from starfc.data.dataset import Features, as_features
from starfc.errors import InputError
from starfc.graph.affinity import scale_widths
from starfc.graph.edges import EdgeList
from starfc.graph.neighbours import KnnGraph
from starfc.graph.order import locality_order
from starfc.models.checkpoint import Model
from starfc.models.contextual import Context
from starfc.models.structural import StructuralModel
from starfc.runtime.memory import mapped_bytes, release
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
    """The edges that graph parsing kept, (E,) entries, with what decided about each.

    ``intimacy`` (E,) float32 is node intimacy, and ``kept`` (E,) bool says which edges are of the clustering: those
    that refinement kept, or with communities those within one. ``logits`` (N, k) int8, of a structural model of two
    rounds, are the first round's, beside the kNN graph (:class:`starfc.graph.structure.EdgeLogits`); ``context`` is
    what a contextual model judged the edges by.
    """

    edges: EdgeList
    intimacy: NDArray[np.float32]
    kept: NDArray[np.bool_]
    logits: NDArray[np.int8] | None = None
    context: Context | None = None


@dataclass(frozen=True)
class Parsed:
    """The edges that parsing keeps, the order of the nodes, the number of candidates, and of a structural model Σ p of
    all candidates and what scored them.
    """

    edges: EdgeList
    order: NDArray[np.integer]
    candidates: int
    mass: float = 0.0
    scoring: Scoring | None = None

    def kept(
        self, edges: EdgeList, intimacy: NDArray[np.float32], stay: NDArray[np.bool_], adapted: Adapted | None = None
    ) -> ParsedEdges:
        """Those of the edges that are left, with what is kept of the scoring."""
        codes, context = (None, None) if self.scoring is None else (self.scoring.codes, self.scoring.context)
        if adapted is not None and context is not None:
            context = replace(context, adapted=adapted.parameters())
        return ParsedEdges(edges, intimacy, stay, codes, context)


@dataclass(frozen=True)
class Candidates:
    """Which pairs of nodes a method takes for edges, where its model scores pairs of embeddings.

    ``parse`` makes the edges with p > τ1 of a model's nodes, τ1 and the bytes of a slice; ``count`` is the number of
    candidates; ``entry_bytes`` is the memory that parsing takes for each kNN entry, where half of the candidates stay.
    """

    parse: Callable[[NodeProjections, float, int], EdgeList]
    count: Callable[[NodeProjections], int]
    entry_bytes: int


ENTRIES = Candidates(parse_graph, num_entries, 9)  # every kNN entry i -> j
PAIRS = Candidates(parse_affinity, num_pairs, 22)  # those of the affinity graph, undirected


def parse(
    features: Features | NDArray[np.float32],
    graph: KnnGraph,
    model: Model,
    candidates: Candidates,
    *,
    tau1: float,
    tau2: float = 0.0,
    th_sim: float = 0.0,
    device: str | torch.device,
    stages: Stages,
    scratch: Path | None,
) -> Parsed:
    """What every method begins with; its parameters are those of :func:`starfc.clustering.pipeline.cluster`.

    A structural model has candidates of its own, undirected ones, whatever the method.
    """
    for name, tau in (("tau1", tau1), ("tau2", tau2)):
        if not 0 <= tau <= 1:
            raise InputError(f"{word(name)}: between 0 and 1 needed; found {tau!r}")
    features = as_features(features)
    if model.feature_dim not in (None, features.dim):
        raise InputError(
            f"features: {features.dim}-d where the model takes {model.feature_dim}-d; "
            "use a model trained on such features"
        )
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
        # a code an entry, kept edges in either direction while they are put in order
        with stages.stage("edge scores", needs=mapped_bytes(*inputs) + 17 * n * model.candidates):
            scoring = Scoring(model, features, graph, order, device, scratch)
            parsed, count, mass = scoring.parse(tau1)
        return Parsed(parsed, order, count, mass, scoring)
    # a byte an entry for its kind, 8 for each of the third that is one-sided, terms of nodes, blocks of rows
    needs = mapped_bytes(*inputs) + 4 * entries + (16 + 8 * scales) * n + (128 << 20) * scales
    with stages.stage("node projections", needs=needs):
        nodes = project_nodes(model, features, graph, th_sim, device, order, scratch)
    for array in inputs:
        release(array)
    left = stages.memory_left()
    room = TARGET_BYTES if left is None else max(left // 4, 1 << 20)
    target_bytes = min(TARGET_BYTES, room, 2 * n * model.nhid)
    # a slice of v, and the kept edges while they are put in order; most graphs keep half of their entries or fewer
    with stages.stage("edge scores", needs=target_bytes + mapped_bytes(graph.ids) + candidates.entry_bytes * entries):
        count = candidates.count(nodes)
        parsed = candidates.parse(nodes, tau1, target_bytes)
    return Parsed(parsed, order, count)


@dataclass(frozen=True)
class Decision:
    """What decided whether a parsed edge stays: its intimacy against a threshold, or communities.

    ``refinement`` is 'fixed' or 'dynamic', ``partition`` 'components', 'infomap' or 'leiden'.
    """

    tau1: float
    tau2: float
    refinement: str = "fixed"
    partition: str = "components"

    @property
    def communities(self) -> bool:
        return self.partition != "components"
