"""Grids that fit any embedding, for suite.py. A minimum similarity is given as a quantile of the set's similarities.

The grids of :data:`baselines.BASELINES` are for one embedding; in another one near neighbours may have a similarity of
0.9 or of 0.3. Here ``quantile`` replaces ``min_sim``. It is the share of the entries of the set's kNN graph (of its
first k - 1 columns if the grid has a k) with a lower similarity; 1 keeps no entry. The best point of a coarse grid is
then refined three times: from the best point so far, each value is moved halfway to its next lower and next higher
value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from baselines import grid
from starfc.graph.neighbours import KnnGraph

LARGE = 50_000  # the smaller grid is used for more instances
ROUNDS = 3
_WIDE = tuple(np.linspace(0, 1, 41).round(3).tolist())
_HALF = tuple(np.linspace(0, 1, 21).round(3).tolist())
_SPARSE = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.88, 0.96, 1.0)
_FEW = (0.0, 0.25, 0.5, 0.75, 1.0)
_KS = (10, 15, 20, 30, 50, 80)
_COUNTS = ("k", "min_points", "min_samples", "min_cluster_size")  # counts, at most the length of a neighbour list
_GEOMETRIC = ("resolution", "k")  # the middle of two values is their geometric mean


@dataclass(frozen=True)
class Grid:
    """The coarse grid, for sets of up to :data:`LARGE` instances and for larger ones, and the values to refine."""

    points: tuple[dict[str, Any], ...]
    large: tuple[dict[str, Any], ...]
    refined: tuple[str, ...] = ()

    def of(self, num_nodes: int) -> tuple[dict[str, Any], ...]:
        return self.points if num_nodes <= LARGE else self.large


GRIDS = {
    "single_link": Grid(grid(quantile=_WIDE), grid(quantile=_WIDE), ("quantile",)),
    "knn_dbscan": Grid(
        grid(min_points=(2, 3, 6, 12), quantile=_HALF), grid(min_points=(3, 6, 12), quantile=_HALF), ("quantile",)
    ),
    "hdbscan": Grid(
        grid(min_cluster_size=(2, 3, 5, 10, 20), min_samples=(1, 2, 3, 5), selection=("eom", "leaf")),
        grid(min_cluster_size=(5, 10, 20), min_samples=(1, 3), selection=("eom", "leaf")),
    ),
    "chinese_whispers": Grid(
        grid(k=_KS, quantile=_SPARSE), grid(k=(20, 30, 80), quantile=_SPARSE[1:-1]), ("quantile", "k")
    ),
    "rank_order": Grid(
        grid(k=(6, 10, 15, 20, 30, 50), threshold=(0.05, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 2.0)),
        grid(k=(10, 15, 20, 30), threshold=(0.6, 0.8, 1.0, 1.2, 1.4)),
        ("threshold", "k"),
    ),
    "leiden": Grid(
        grid(
            k=(6, 8, 10, 15),
            quantile=(0.0, 0.2, 0.4, 0.6, 0.85),
            resolution=(0.0025, 0.005, 0.01, 0.02, 0.04, 0.15, 0.5),
        )
        + grid(k=(30, 80), quantile=(0.0, 0.4, 0.7, 0.88, 0.96), resolution=(0.0025, 0.01, 0.04, 0.15, 0.5)),
        grid(k=(8, 15), quantile=(0.0, 0.3, 0.6), resolution=(0.0025, 0.005, 0.01, 0.04)),
        ("quantile", "resolution", "k"),
    ),
    "infomap": Grid(
        grid(k=_KS[:4], quantile=_SPARSE[:-1])
        + grid(k=_KS[4:], quantile=_SPARSE[:-1:2])
        + grid(k=(20,), quantile=(1.0,)),
        grid(k=(15, 20, 30, 50), quantile=_FEW[:-1]),
        ("quantile", "k"),
    ),
    "finch": Grid(grid(level=(1, 2, 3, 4, 5, 6)), grid(level=(1, 2, 3, 4))),
    "fc_es": Grid(
        grid(k=(15, 20, 30, 50, 80), theta=(0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65)),
        grid(k=(20, 30, 50), theta=(0.1, 0.2, 0.3, 0.4)),
        ("theta", "k"),
    ),
    "kmeans": Grid(
        grid(init=("k-means++", "random"), batch_size=(4096, 16384)), grid(init=("k-means++",), batch_size=(16384,))
    ),
}


def fitted(choice: dict[str, Any], graph: KnnGraph) -> dict[str, Any]:
    """Return a grid point as parameters of a baseline: the quantile as a similarity, and counts within the lists."""
    most = graph.k + 1
    parameters = {key: min(value, most) if key in _COUNTS else value for key, value in choice.items()}
    if parameters.pop("quantile", None) is not None:
        columns = parameters.get("k", most) - 1
        sims = graph.sims[:, :columns][graph.ids[:, :columns] >= 0]
        above = choice["quantile"] >= 1 or not sims.size
        parameters["min_sim"] = 1.1 if above else round(float(np.quantile(sims, choice["quantile"])), 6)
    return parameters


def search(
    made: Grid, graph: KnnGraph, run: Callable[[dict[str, Any]], dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run all points of the grid and of its refinement. Return them, and the best one (the first one) by ``fscore``.

    ``run`` is a function from a baseline's parameters to its scores.
    """
    points: list[dict[str, Any]] = []
    seen: set[str] = set()

    def attempt(choice: dict[str, Any]) -> None:
        parameters = fitted(choice, graph)
        if repr(sorted(parameters.items())) not in seen:
            seen.add(repr(sorted(parameters.items())))
            points.append({"choice": choice, "parameters": parameters, **run(parameters)})

    for choice in made.of(graph.num_nodes):
        attempt(choice)
    for name in made.refined * ROUNDS:
        best = max(points, key=lambda point: point["fscore"])
        for choice in _around(best["choice"], name, [point["choice"] for point in points]):
            attempt(choice)
    return points, max(points, key=lambda point: point["fscore"])


def _around(best: dict[str, Any], name: str, tried: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the best point with one value moved halfway to the next lower and to the next higher value tried so far."""
    here, values = best[name], sorted({choice[name] for choice in tried})
    at = values.index(here)
    for other in values[max(0, at - 1) : at] + values[at + 1 : at + 2]:
        halfway = math.sqrt(here * other) if name in _GEOMETRIC else (here + other) / 2
        yield best | {name: round(halfway) if isinstance(here, int) else round(halfway, 6)}
