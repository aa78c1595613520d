"""Evaluate all pairs of thresholds of a grid, and choose one on labelled data, for both refinements.

'fixed' is graph parsing and node intimacy with τ1 and τ2 (:func:`starfc.clustering.pipeline.cluster`). 'dynamic' is the
undirected form; its τ2 is the upper limit of a threshold that depends on the degrees
(:func:`~starfc.clustering.pipeline.cluster_dynamic`). Edges are scored once, for the lowest τ1 of the grid. Each pair
of the grid then needs only a selection, a refinement and the components. The pipeline scores edges close to τ1 again
at higher precision; here this is done for the lowest τ1 only. So at a higher τ1, an edge within the error of half
precision can be on the other side of τ1.

Thresholds of one data set are not right for another. Choose them on labelled instances that are similar to the data to
cluster and that the model was not trained on. Without such instances, :func:`outline` shows the effect of each pair
on the graph.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.clustering.components import components
from starfc.clustering.refinement import node_intimacy, node_intimacy_undirected, refine, refine_dynamic
from starfc.config.thresholds import save_thresholds
from starfc.data.dataset import Features
from starfc.evaluation.metrics import bcubed, contingency, fscore_error, labelled, pairwise, pairwise_around
from starfc.evaluation.surface import Panel, draw, write_csv
from starfc.graph.edges import EdgeList
from starfc.graph.neighbours import KnnGraph
from starfc.graph.order import locality_order
from starfc.models.checkpoint import Model
from starfc.models.structural import StructuralModel
from starfc.runtime.progress import progress
from starfc.scoring.projections import parse_affinity, parse_graph, project_nodes
from starfc.scoring.structural import parse_structure

log = logging.getLogger("starfc")

Grid = tuple[tuple[float, ...], tuple[float, ...]]


def _steps(low: float, high: float) -> tuple[float, ...]:
    return tuple(np.round(np.arange(low, high + 0.001, 0.04), 2).tolist())


# Values of τ1 and τ2. For 'dynamic', τ2 is the upper limit; the threshold of nodes with few edges is 0.84 of it.
GRIDS: dict[str, Grid] = {
    "fixed": (_steps(0.50, 0.98), _steps(0.40, 0.92)),
    "dynamic": (_steps(0.50, 0.98), _steps(0.48, 1.00)),
}


@dataclass(frozen=True)
class Point:
    """The scores of a pair of thresholds, fractions between 0 and 1; ``error`` is the standard error of ``fscore``."""

    tau1: float
    tau2: float
    precision: float
    recall: float
    fscore: float
    bcubed: float
    num_clusters: int
    error: float = 0.0


@dataclass(frozen=True)
class Outline:
    """The effect of one pair of thresholds on a graph, without labels.

    ``edges`` is the number of edges that are kept (an undirected edge counts once), ``num_clusters`` the number of
    clusters, ``num_singletons`` the number of clusters of one instance, and ``largest_share`` the share of all
    instances in the largest cluster.
    """

    tau1: float
    tau2: float
    edges: int
    num_clusters: int
    largest_share: float
    num_singletons: int


def sweep_thresholds(
    edges: EdgeList,
    labels: NDArray[np.integer],
    refinement: str = "fixed",
    grid: Grid | None = None,
    scored: NDArray[np.bool_] | None = None,
) -> list[Point]:
    """Cluster at each pair of thresholds of a grid, and score each clustering.

    Parameters
    ----------
    edges : EdgeList
        All scored edges with p > min τ1; symmetric for 'dynamic'.
    labels : (N,) integers
        Identities. Instances with label -1 (unknown identity) are clustered but not scored.
    refinement : {'fixed', 'dynamic'}
    grid : two tuples of float, optional
        Values of τ1 and of τ2. Default: :data:`GRIDS`.
    scored : (N,) bool, optional
        The instances that are scored. The pairwise score uses the pairs with at least one scored instance; BCubed F and
        the number of clusters use scored instances only. Default: all instances.
    """
    points = []
    known = labelled(labels)
    scored = np.ones(int(known.sum()), bool) if scored is None else scored[known]
    labels = labels[known]
    for tau1, tau2, _, clusters in _clusterings(edges, refinement, grid):
        members = clusters[known]
        table = contingency(labels, members)
        if scored.all():
            score = pairwise(table)
        else:
            score = pairwise_around(table, contingency(labels[~scored], members[~scored]))
            table = contingency(labels[scored], members[scored])
        scores = (score.precision, score.recall, score.fscore, bcubed(table).fscore)
        error = fscore_error(labels, members, scored)
        points.append(Point(tau1, tau2, *scores, len(table.col_sums), error))
    return points


def sweep_outlines(edges: EdgeList, refinement: str = "fixed", grid: Grid | None = None) -> list[Outline]:
    """Cluster at each pair of a grid as :func:`sweep_thresholds` does, and describe each clustering without labels."""
    outlines = []
    for tau1, tau2, kept, members in _clusterings(edges, refinement, grid):
        sizes = np.bincount(members, minlength=1)
        count, single = int((sizes > 0).sum()), int((sizes == 1).sum())
        outlines.append(Outline(tau1, tau2, kept, count, int(sizes.max()) / len(members), single))
    return outlines


def _clusterings(
    edges: EdgeList, refinement: str, grid: Grid | None
) -> Iterator[tuple[float, float, int, NDArray[np.integer]]]:
    """Yield τ1, τ2, the number of refined edges and the components (N,) for each pair of the grid."""
    tau1_grid, tau2_grid = grid or GRIDS[refinement]
    intimacy_of, refined_by = {
        "fixed": (node_intimacy, refine),
        "dynamic": (node_intimacy_undirected, refine_dynamic),
    }[refinement]
    for tau1 in progress(f"thresholds, {refinement}", tau1_grid):
        parsed = edges.select(edges.scores > tau1)
        intimacy = intimacy_of(parsed)
        for tau2 in tau2_grid:
            refined = refined_by(parsed, intimacy, tau2)
            yield tau1, tau2, refined.num_edges, components(refined)


def best(points: list[Point]) -> Point:
    """Return the point with the highest smoothed pairwise F.

    F is averaged over the 3 x 3 pairs around each point (fewer at the border), because a single peak can be chance.
    """
    return max(_smoothed(points), key=lambda pair: pair[1])[0]


def lowest(points: list[Point]) -> Point:
    """Return the point with the lowest τ1 whose F is within one standard error of the F of :func:`best`.

    Of several points with this τ1, the one with the highest F is returned. F is smoothed as in :func:`best`. This is
    the one-standard-error rule (Breiman et al. 1984, section 3.4.3), for calibrated probabilities: these data cannot
    distinguish the thresholds within one standard error. The lowest of these τ1 keeps the most edges, and node intimacy
    then decides about them. On other data, edges of the same structure are often more likely to be right, and a higher
    τ1 would remove them.
    """
    smoothed = _smoothed(points)
    top, height = max(smoothed, key=lambda pair: pair[1])
    within = [(p, f) for p, f in smoothed if f >= height - top.error]
    return min(within, key=lambda pair: (pair[0].tau1, -pair[1]))[0]


def _smoothed(points: list[Point]) -> list[tuple[Point, float]]:
    """Return the points of a grid, sorted by τ1 and τ2, each with the mean F of the 3 x 3 points around it."""
    ordered = sorted(points, key=lambda p: (p.tau1, p.tau2))
    surface = np.array([p.fscore for p in ordered]).reshape(len({p.tau1 for p in points}), -1)
    padded = np.pad(surface, 1, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    return list(zip(ordered, np.nanmean(windows, axis=(2, 3)).ravel().tolist(), strict=True))


def choose_and_store(
    folder: Path,
    features: Features | NDArray[np.float32],
    graph: KnnGraph,
    labels: NDArray[np.integer],
    model: Model,
    *,
    scored: NDArray[np.bool_] | None = None,
    th_sim: float = 0.0,
    device: str | torch.device = "cpu",
    chosen_on: str,
    beside: Mapping[str, Point] | None = None,
) -> dict[str, Point]:
    """Choose a pair of thresholds for each refinement on a labelled kNN graph, and store them in a folder.

    A structural model has calibrated probabilities, and the choice is :func:`lowest`. For other models it is
    :func:`best`.

    The files are ``thresholds.json``, which inference reads, and the surfaces: ``threshold_surface.csv`` and, as a
    picture, ``threshold_surface.png``.

    Parameters
    ----------
    folder : path
        Folder for the files.
    features : Features, or (N, d) float32 L2-normalised
    graph : KnnGraph
        kNN graph of the features, with at least as many neighbours as the model's largest scale.
    labels : (N,) integers
        Identities; -1 for unknown ones. The model must not have been trained on those of the scored instances.
    model : StarFCModel, HierarchicalModel or StructuralModel
    scored : (N,) bool, optional
        The instances that are scored, as for :func:`sweep_thresholds`. Default: all.
    th_sim : float
        kNN entries below this similarity are left out of the affinity graph.
    device
        Device of the model.
    chosen_on : str
        A description of these instances, stored in ``thresholds.json``.
    beside : mapping, optional
        Points of other ways to cluster the instances, by name. They are stored and returned with the chosen ones.

    Returns
    -------
    dict
        The chosen :class:`Point` of 'fixed' and of 'dynamic', and those of ``beside``.
    """
    surfaces = {
        refinement: sweep_thresholds(edges, labels, refinement, scored=scored)
        for refinement, edges in _parsed(features, graph, model, th_sim, device)
    }
    choose = lowest if model.kind.structural else best
    chosen = {refinement: choose(points) for refinement, points in surfaces.items()}
    write_csv(folder / "threshold_surface.csv", surfaces)
    panels = [
        Panel(f"{name}: F {p.fscore:.4f} at tau1 {p.tau1:g}, tau2 {p.tau2:g}", points, "fscore", (p.tau1, p.tau2))
        for (name, points), p in zip(surfaces.items(), chosen.values(), strict=True)
    ]
    count = int((labelled(labels) if scored is None else labelled(labels) & scored).sum())
    draw(folder / "threshold_surface.png", [panels], f"pairwise F, {count:,} instances")
    for refinement, point in chosen.items():
        log.info("thresholds, %s: tau1 %g, tau2 %g, pairwise F %.4f", refinement, point.tau1, point.tau2, point.fscore)
    chosen |= beside or {}
    save_thresholds(folder, {name: asdict(point) for name, point in chosen.items()}, chosen_on)
    return chosen


def outline(
    folder: Path,
    features: Features | NDArray[np.float32],
    graph: KnnGraph,
    model: Model,
    *,
    th_sim: float = 0.0,
    device: str | torch.device = "cpu",
) -> dict[str, list[Outline]]:
    """Describe the effect of each pair of thresholds on a kNN graph without labels, for both refinements.

    Nothing is chosen. The files are ``threshold_outline.csv`` and ``threshold_outline.png`` in ``folder``. The
    parameters are as for :func:`choose_and_store`.
    """
    surfaces = {
        refinement: sweep_outlines(edges, refinement)
        for refinement, edges in _parsed(features, graph, model, th_sim, device)
    }
    write_csv(folder / "threshold_outline.csv", surfaces)
    rows = [
        [Panel(f"{refinement}: {what}", outlines, field) for field, what in OUTLINED.items()]
        for refinement, outlines in surfaces.items()
    ]
    draw(folder / "threshold_outline.png", rows, f"{graph.num_nodes:,} instances without labels")
    return surfaces


OUTLINED = {
    "edges": "edges kept",
    "num_clusters": "clusters",
    "largest_share": "share of the largest",
    "num_singletons": "singletons",
}


def _parsed(
    features: Features | NDArray[np.float32],
    graph: KnnGraph,
    model: Model,
    th_sim: float,
    device: str | torch.device,
) -> Iterator[tuple[str, EdgeList]]:
    """Yield each refinement with its candidate edges above the lowest τ1 of its grid, one list at a time."""
    order = locality_order(graph)
    if isinstance(model, StructuralModel):
        edges, _ = parse_structure(model, features, graph, min(GRIDS["fixed"][0]), order, device)
        yield from (("fixed", edges), ("dynamic", edges))
        return
    nodes = project_nodes(model, features, graph, th_sim, device, order)
    yield "fixed", parse_graph(nodes, min(GRIDS["fixed"][0]))
    yield "dynamic", parse_affinity(nodes, min(GRIDS["dynamic"][0]))
