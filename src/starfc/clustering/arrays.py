"""Cluster all rows of a feature matrix. The command line, the estimator and ``starfc tune`` share this module.

features -> set aside invalid rows and copies -> limit k to what fits the number of rows -> kNN graph -> clustering ->
put these rows back

Invalid rows have no direction: they hold NaN, infinity or only zeros. Copies are rows with the direction of an earlier
row. The functions take and return arrays and plain numbers; they do not read configs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.clustering.copies import collapsed, copies_among, sizes_of, with_copies
from starfc.clustering.diagnostics import diagnose, doubts, giants_doubt
from starfc.clustering.parsing import MakeParser
from starfc.clustering.pipeline import (
    COMPONENTS,
    REFINEMENTS,
    Clustering,
    with_singletons,
    without_search,
)
from starfc.data.dataset import Features
from starfc.graph.knn import fitting_k, short_lists
from starfc.graph.neighbours import KnnGraph, empty_graph
from starfc.graph.opening import Search
from starfc.models.checkpoint import Model
from starfc.models.contextual import ContextualModel
from starfc.models.structural import StructuralModel
from starfc.runtime.defaults import RESOLUTION
from starfc.runtime.stages import Stages

log = logging.getLogger("starfc")

MakeGraph = Callable[[Features, int, bool, Stages], KnnGraph]


@dataclass(frozen=True)
class Settings:
    """The options of a clustering.

    Parameters
    ----------
    tau1, tau2 : float or None
        Thresholds of p and of node intimacy. None lets the data decide; this needs a contextual model and fixed
        refinement.
    refinement : {'fixed', 'dynamic'}
        'fixed' uses :func:`starfc.clustering.pipeline.cluster`, 'dynamic' uses
        :func:`~starfc.clustering.pipeline.cluster_dynamic`.
    k : int
        Entries of each row of the kNN graph, the row itself included. Smaller if there are fewer rows.
    search : Search
        How kNN graphs are built, both of all rows and of the samples that ``reach`` draws.
    partition, resolution, adapt, seed, th_sim
        As for :func:`~starfc.clustering.pipeline.cluster`.
    reach : {'auto', 'off'}
        'auto' joins and divides clusters as samples of the rows do (:mod:`starfc.clustering.reach`).
    invalid_rows : {'error', 'singleton'}
        Invalid rows: raise an error, or make each a cluster of its own.
    copies : {'collapse', 'keep'}
        With a structural model, 'collapse' clusters one row of each direction and gives its copies the same label.
        'keep' clusters all rows.
    giant_share : float
        Warn of clusters with more than this share of the rows.
    """

    tau1: float | None = None
    tau2: float | None = None
    refinement: str = "fixed"
    k: int = 80
    search: Search = field(default_factory=Search)
    partition: str = "components"
    resolution: float = RESOLUTION
    adapt: str = "auto"
    reach: str = "auto"
    th_sim: float = 0.0
    seed: int = 0
    invalid_rows: str = "error"
    copies: str = "collapse"
    giant_share: float = 0.1


@dataclass(frozen=True)
class Prepared:
    """The m rows that are clustered, after invalid rows and copies were set aside, and their kNN graph.

    Parameters
    ----------
    features : Features
        Features of the m rows.
    graph : KnnGraph
        kNN graph of the m rows, in the same order.
    rows : (m,) int64
        Positions of the m rows among all N rows.
    representative : (N,) int64
        The row whose label each row gets: for a copy the first row of the same direction, otherwise the row itself.
    invalid : (i,) int64
        Invalid rows.
    doubts : list of str
        Warnings about the lists, which were logged.
    """

    features: Features
    graph: KnnGraph
    rows: NDArray[np.int64]
    representative: NDArray[np.int64]
    invalid: NDArray[np.int64]
    doubts: list[str]

    @property
    def num_copies(self) -> int:
        return len(self.representative) - len(self.rows) - len(self.invalid)


@dataclass(frozen=True)
class Clustered:
    """A clustering of all N rows.

    ``prepared`` says which rows were clustered, on which kNN graph. ``tau1`` and ``tau2`` are the thresholds that were
    used. ``diagnostics`` are those of :func:`starfc.clustering.diagnostics.diagnose`, and ``doubts`` the warnings about
    the result, one sentence each.
    """

    result: Clustering
    prepared: Prepared
    tau1: float
    tau2: float
    diagnostics: dict[str, Any]
    doubts: list[str]


def cluster_features(
    features: Features,
    model: Model,
    settings: Settings,
    *,
    make_graph: MakeGraph | None = None,
    graph_of_all: Path | None = None,
    make_parser: MakeParser | None = None,
    keep_edges: bool = False,
    device: str | torch.device = "cpu",
    stages: Stages | None = None,
    scratch: Path | None = None,
) -> Clustered:
    """Cluster all rows of features. Doubts about the result are logged as warnings and returned.

    Parameters
    ----------
    features : Features
        (N, d). Invalid rows are treated as ``settings.invalid_rows`` says.
    make_graph, graph_of_all
        As for :func:`prepare`.
    make_parser, keep_edges, device, stages, scratch
        As for :func:`starfc.clustering.pipeline.cluster`.
    """
    stages = stages or Stages()
    given: dict[str, Any] = {"device": device, "stages": stages, "scratch": scratch}
    prepared = prepare(features, model, settings, make_graph=make_graph, graph_of_all=graph_of_all, **given)
    return cluster_prepared(prepared, model, settings, make_parser=make_parser, keep_edges=keep_edges, **given)


def prepare(
    features: Features,
    model: Model,
    settings: Settings,
    *,
    make_graph: MakeGraph | None = None,
    graph_of_all: Path | None = None,
    device: str | torch.device = "cpu",
    stages: Stages | None = None,
    scratch: Path | None = None,
) -> Prepared:
    """Set invalid rows and copies aside, and build the kNN graph of the other rows.

    Parameters
    ----------
    make_graph : function (features, k, bool, Stages) -> KnnGraph, optional
        Returns the kNN graph of the given features. The bool is True if no copies were set aside and k is
        ``settings.k``. The stages check the memory limit before a graph is built. Default: ``settings.search`` builds
        the graph.
    graph_of_all : path, optional
        Path of the stored graph of all rows that ``make_graph`` returns. Copies are then not set aside.
    device, stages, scratch
        As for :func:`starfc.clustering.pipeline.cluster`.
    """
    stages = stages or Stages()
    with stages.stage("features"):
        valid, invalid = features.valid(settings.invalid_rows)
    distinct, kept = valid, None
    if model.kind.structural and settings.copies == "collapse":
        with stages.stage("copies", needs=64 * len(valid)):
            distinct, kept = collapsed(valid, graph_of_all, scratch)
    representative = np.arange(len(features))
    rows = np.setdiff1d(representative, invalid)
    if kept is not None:
        representative[rows] = rows[kept]
        rows = rows[~copies_among(kept)]
    columns = model.columns if isinstance(model, StructuralModel) else 0
    k = fitting_k(settings.k, len(distinct), features.name, columns)
    short = short_lists(settings.k, len(distinct), features.name, columns)
    rest = rows, representative, invalid, [] if short is None else [short]
    if len(distinct) < 2:
        return Prepared(distinct, empty_graph(len(distinct), k), *rest)
    with stages.stage("kNN graph"):
        if make_graph is None:
            stages.require("kNN graph", settings.search.bytes(distinct, k))
            graph = settings.search.build(distinct, k)
        else:
            graph = make_graph(distinct, k, distinct is valid and k == settings.k, stages)
    return Prepared(distinct, graph, *rest)


def cluster_prepared(
    prepared: Prepared,
    model: Model,
    settings: Settings,
    *,
    make_parser: MakeParser | None = None,
    keep_edges: bool = False,
    device: str | torch.device = "cpu",
    stages: Stages | None = None,
    scratch: Path | None = None,
) -> Clustered:
    """Cluster the prepared rows, then put copies and invalid rows back. The second half of :func:`cluster_features`."""
    graph, invalid = prepared.graph, prepared.invalid
    # with_copies counts rows without the invalid rows, so `kept` does too
    valid = np.setdiff1d(np.arange(len(prepared.representative)), invalid)
    kept = np.searchsorted(valid, prepared.representative[valid]) if prepared.num_copies else None
    sizes = None if kept is None else sizes_of(kept)
    given: dict[str, Any] = {"keep_edges": keep_edges, "device": device, "stages": stages, "scratch": scratch}
    given |= {"make_parser": make_parser, "sizes": sizes}
    if graph.num_nodes < 2:
        result = without_search(graph.num_nodes, keep_edges)
    else:
        result = _clustered(prepared.features, graph, model, settings, **given)
    recalls = graph.info.get("recalls") or {}
    trained = min(model.columns, graph.num_nodes - 1) if isinstance(model, ContextualModel) else 0
    found = doubts(result, max(graph.k - 1, 0), sizes, recalls.get("edges"), trained)  # k includes the row itself
    if kept is not None:
        result = with_copies(result, kept)
    result = with_singletons(result, invalid)
    diagnostics = diagnose(result, settings.giant_share)
    precision = None if result.estimate is None else result.estimate.precision
    partition = settings.partition if settings.refinement == "fixed" else "components"
    found += giants_doubt(diagnostics, max(graph.k - 1, 0), precision, partition)
    for doubt in found:
        log.warning("%s", doubt)
    tau1, tau2 = settings.tau1 if result.choice is None else result.choice.tau1, settings.tau2
    # A threshold is still None with partition 'components' or fewer than two rows: report the defaults.
    tau1, tau2 = (own if tau is None else tau for tau, own in zip((tau1, tau2), COMPONENTS, strict=True))
    return Clustered(result, prepared, tau1, tau2, diagnostics, [*prepared.doubts, *found])


def _clustered(features: Features, graph: KnnGraph, model: Model, settings: Settings, **given: Any) -> Clustering:
    """Cluster the nodes of a kNN graph as the settings say; ``given`` are the other parameters of the method."""
    given |= {"tau1": settings.tau1, "tau2": settings.tau2, "th_sim": settings.th_sim}
    if settings.refinement == "fixed":
        given |= {"partition": settings.partition, "resolution": settings.resolution, "adapt": settings.adapt}
        given |= {"seed": settings.seed, "search": _search(settings, graph.k) if settings.reach == "auto" else None}
    return REFINEMENTS[settings.refinement](features, graph, model, **given)


def _search(settings: Settings, k: int) -> Callable[[Features], KnnGraph]:
    """Return the search of samples. It chooses its own phases: ``knn_params`` are for the number of all rows."""
    own = replace(settings.search, params={})
    return lambda rows: own.build(rows, k)
