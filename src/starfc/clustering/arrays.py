"""From features to the clusters of all their rows: what the command line, the estimator and ``starfc tune`` share.

features -> rows without direction and copies set aside -> k that fits -> kNN graph -> clustering -> those rows put back

Arrays and plain numbers in, arrays and plain numbers out; nothing here knows of files or configs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.clustering.copies import collapsed, copies_among, sizes_of, with_copies
from starfc.clustering.diagnostics import doubts
from starfc.clustering.pipeline import (
    COMPONENTS,
    REFINEMENTS,
    Clustering,
    with_singletons,
    without_search,
)
from starfc.data.dataset import Features
from starfc.graph.knn import fitting_k, search_bytes
from starfc.graph.neighbours import KnnGraph, empty_graph
from starfc.graph.opening import Search
from starfc.models.checkpoint import Model
from starfc.models.structural import StructuralModel
from starfc.runtime.defaults import RESOLUTION
from starfc.runtime.stages import Stages

log = logging.getLogger("starfc")

MakeGraph = Callable[[Features, int, bool], KnnGraph]


@dataclass(frozen=True)
class Settings:
    """What a clustering is asked for.

    Parameters
    ----------
    tau1, tau2 : float or None
        Thresholds; None, with a contextual model and fixed refinement, leaves the choice to the data.
    refinement : {'fixed', 'dynamic'}
        :func:`starfc.clustering.pipeline.cluster` or :func:`~starfc.clustering.pipeline.cluster_dynamic`.
    k : int
        Entries of a list of neighbours, the row itself counted; there are fewer where there are fewer rows.
    search : Search
        Of the kNN graph, and of the samples that ``reach`` looks at.
    partition, resolution, adapt, seed, th_sim
        As for :func:`~starfc.clustering.pipeline.cluster`.
    reach : {'auto', 'off'}
        Join clusters that samples of the rows hold together, or do not.
    invalid_rows : {'error', 'singleton'}
        Rows without direction: refuse them, or make each a cluster of its own.
    copies : {'collapse', 'keep'}
        With a structural model: cluster one of the rows of a direction, and put its copies where it goes, or do not.
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


@dataclass(frozen=True)
class Prepared:
    """The rows that are searched among and clustered, and the kNN graph of these.

    Parameters
    ----------
    features : Features
        Of these m rows.
    graph : KnnGraph
        Of these rows, in their order.
    rows : (m,) int64
        Which of all N rows they are.
    representative : (N,) int64
        For every row the one whose cluster it goes to: itself, or of a copy the first of its direction.
    invalid : (i,) int64
        Rows without direction.
    """

    features: Features
    graph: KnnGraph
    rows: NDArray[np.int64]
    representative: NDArray[np.int64]
    invalid: NDArray[np.int64]

    @property
    def num_copies(self) -> int:
        return len(self.representative) - len(self.rows) - len(self.invalid)


@dataclass(frozen=True)
class Clustered:
    """A clustering of all rows, how it came about, and the thresholds that were used in the end."""

    result: Clustering
    prepared: Prepared
    tau1: float
    tau2: float
    doubts: list[str]


def cluster_features(
    features: Features,
    model: Model,
    settings: Settings,
    *,
    make_graph: MakeGraph | None = None,
    graph_of_all: Path | None = None,
    keep_edges: bool = False,
    device: str | torch.device = "cpu",
    stages: Stages | None = None,
    scratch: Path | None = None,
) -> Clustered:
    """Cluster the rows of features; what is doubtful about the result is logged as warnings, too.

    Parameters
    ----------
    features : Features
        (N, d), rows without direction among them as ``settings.invalid_rows`` allows.
    make_graph, graph_of_all
        As for :func:`prepare`.
    keep_edges, device, stages, scratch
        As for :func:`starfc.clustering.pipeline.cluster`.
    """
    stages = stages or Stages()
    given: dict[str, Any] = {"stages": stages, "scratch": scratch}
    prepared = prepare(features, model, settings, make_graph=make_graph, graph_of_all=graph_of_all, **given)
    return cluster_prepared(prepared, model, settings, keep_edges=keep_edges, device=device, **given)


def prepare(
    features: Features,
    model: Model,
    settings: Settings,
    *,
    make_graph: MakeGraph | None = None,
    graph_of_all: Path | None = None,
    stages: Stages | None = None,
    scratch: Path | None = None,
) -> Prepared:
    """Set rows without direction and copies aside, and make the kNN graph of the others.

    Parameters
    ----------
    make_graph : function of features, k and a bool, optional
        Gives the kNN graph of these features; the bool says whether they are all rows with a direction, and k is the
        one that was asked for. It is built otherwise.
    graph_of_all : path, optional
        The stored graph that ``make_graph`` will give, where it is of all rows: copies are kept then.
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
    k = fitting_k(settings.k, len(distinct), features.name, model.columns if isinstance(model, StructuralModel) else 0)
    if len(distinct) < 2:
        return Prepared(distinct, empty_graph(len(distinct), k), rows, representative, invalid)
    with stages.stage("kNN graph", needs=search_bytes(distinct, k, settings.search.method)):
        if make_graph is None:
            graph = settings.search.build(distinct, k)
        else:
            graph = make_graph(distinct, k, distinct is valid and k == settings.k)
    return Prepared(distinct, graph, rows, representative, invalid)


def cluster_prepared(
    prepared: Prepared,
    model: Model,
    settings: Settings,
    *,
    keep_edges: bool = False,
    device: str | torch.device = "cpu",
    stages: Stages | None = None,
    scratch: Path | None = None,
) -> Clustered:
    """The second half of :func:`cluster_features`: cluster the rows, and put the others back."""
    graph, invalid = prepared.graph, prepared.invalid
    # among the rows with a direction
    valid = np.setdiff1d(np.arange(len(prepared.representative)), invalid)
    kept = np.searchsorted(valid, prepared.representative[valid]) if prepared.num_copies else None
    sizes = None if kept is None else sizes_of(kept)
    given: dict[str, Any] = {"tau1": settings.tau1, "tau2": settings.tau2, "th_sim": settings.th_sim, "sizes": sizes}
    given |= {"keep_edges": keep_edges, "device": device, "stages": stages, "scratch": scratch}
    if graph.num_nodes < 2:
        result = without_search(graph.num_nodes, keep_edges)
    else:
        if settings.refinement == "fixed":
            given |= {"partition": settings.partition, "resolution": settings.resolution, "adapt": settings.adapt}
            given |= {"seed": settings.seed, "search": _search(settings, graph.k) if settings.reach == "auto" else None}
        result = REFINEMENTS[settings.refinement](prepared.features, graph, model, **given)
    found = doubts(result, max(graph.k - 1, 0), sizes)  # k counts the row itself
    for doubt in found:
        log.warning("%s", doubt)
    if kept is not None:
        result = with_copies(result, kept)
    result = with_singletons(result, invalid)
    tau1, tau2 = settings.tau1 if result.choice is None else result.choice.tau1, settings.tau2
    # None: the data were to decide, of components or of fewer than two rows
    tau1, tau2 = (own if tau is None else tau for tau, own in zip((tau1, tau2), COMPONENTS, strict=True))
    return Clustered(result, prepared, tau1, tau2, found)


def _search(settings: Settings, k: int) -> Callable[[Features], KnnGraph]:
    return lambda rows: settings.search.build(rows, k)
