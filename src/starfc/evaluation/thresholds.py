"""Choice of τ1 and τ2 on labelled data that the model was not trained on."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.clustering.components import components
from starfc.clustering.edges import EdgeList
from starfc.clustering.refinement import node_intimacy, refine
from starfc.clustering.scoring import parse_graph, project_nodes
from starfc.evaluation.metrics import bcubed, contingency, pairwise
from starfc.graph.neighbours import KnnGraph
from starfc.graph.order import locality_order
from starfc.models.gcn import StarFCModel
from starfc.runtime.atomic import replacing
from starfc.runtime.progress import progress

TAU1_GRID = tuple(np.round(np.arange(0.50, 0.981, 0.04), 2).tolist())
TAU2_GRID = tuple(np.round(np.arange(0.40, 0.921, 0.04), 2).tolist())


@dataclass(frozen=True)
class Point:
    """Scores of one pair of thresholds, fractions between 0 and 1."""

    tau1: float
    tau2: float
    precision: float
    recall: float
    fscore: float
    bcubed: float
    num_clusters: int


def sweep_thresholds(
    edges: EdgeList,
    labels: NDArray[np.integer],
    tau1_grid: tuple[float, ...] = TAU1_GRID,
    tau2_grid: tuple[float, ...] = TAU2_GRID,
) -> list[Point]:
    """Cluster at every pair of the grids: scored edges (all with p > min τ1) and labels (N,) -> one point a pair."""
    points = []
    for tau1 in progress("thresholds", tau1_grid):
        parsed = edges.select(edges.scores > tau1)
        intimacy = node_intimacy(parsed)
        for tau2 in tau2_grid:
            predicted = components(refine(parsed, intimacy, tau2))
            table = contingency(labels, predicted)
            score = pairwise(table)
            points.append(
                Point(
                    tau1, tau2, score.precision, score.recall, score.fscore, bcubed(table).fscore, len(table.col_sums)
                )
            )
    return points


def best(points: list[Point]) -> Point:
    """The point of the highest pairwise F whose neighbours on the grid are high too.

    F is averaged over the 3 x 3 pairs around each point (fewer at the border), because a lone peak is luck of the data.
    """
    tau1s, tau2s = sorted({p.tau1 for p in points}), sorted({p.tau2 for p in points})
    surface = np.array([p.fscore for p in sorted(points, key=lambda p: (p.tau1, p.tau2))]).reshape(
        len(tau1s), len(tau2s)
    )
    padded = np.pad(surface, 1, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    at = np.unravel_index(np.argmax(np.nanmean(windows, axis=(2, 3))), surface.shape)
    return next(p for p in points if (p.tau1, p.tau2) == (tau1s[at[0]], tau2s[at[1]]))


def choose_thresholds(
    features: NDArray[np.float32],
    graph: KnnGraph,
    labels: NDArray[np.integer],
    model: StarFCModel,
    th_sim: float = 0.0,
    device: str | torch.device = "cpu",
) -> tuple[Point, list[Point]]:
    """Score a labelled kNN graph with a model and sweep: the chosen point and the whole surface."""
    nodes = project_nodes(model, features, graph, th_sim, device, locality_order(graph))
    edges = parse_graph(nodes, min(TAU1_GRID))
    points = sweep_thresholds(edges, labels)
    return best(points), points


def write_surface(path: Path, points: list[Point]) -> None:
    """The surface as CSV, one line a pair."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(vars(points[0])))
        writer.writeheader()
        writer.writerows({k: round(v, 6) if isinstance(v, float) else v for k, v in vars(p).items()} for p in points)
