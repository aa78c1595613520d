"""Measure how hard a data set is, by its neighbours, single link and Infomap, and compare with published MS1M scores.

    python benchmarks/synthetic_baselines.py [--nodes 50000] [--seed 0] [--threads 2] [--json OUT]
    python benchmarks/synthetic_baselines.py --features F --labels L [--threads 2] [--json OUT]

The script uses an exact kNN graph (k = 80). It prints and writes:

- same_identity: the share of the first m neighbours of all instances that have the same identity;
- single_link: the scores at every threshold, and the best;
- infomap (k = 50): the scores at every minimum similarity, and the best. It is skipped with a message if the package is
  missing: `pip install 'starfc[baselines]'`;
- the seconds of both;
- the published pairwise F of single link (README of learn-to-cluster) and Infomap (README of face-cluster-by-infomap)
  on the 584,013 instances of part1_test of MS1M.

The best is chosen by pairwise F on the same labels that score it, for both methods.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from baselines import BASELINES
from baselines.communities import infomap
from baselines.connected import sweep_single_link
from harness import report
from starfc.commands.scripts import run_command
from starfc.data.dataset import Features, Split, open_split
from starfc.data.synthetic import Population, Synthetic
from starfc.errors import InputError
from starfc.evaluation.metrics import evaluate
from starfc.graph.knn import build_knn
from starfc.graph.neighbours import KnnGraph
from starfc.runtime.machine import set_threads

PUBLISHED = {"single_link": 0.7063, "infomap": 0.9398}
NEIGHBOURS = (1, 10, 20, 40, 79)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how hard a data set is: neighbours, single link, Infomap.")
    parser.add_argument("--nodes", type=int, default=50_000, help="synthetic instances, if no files are named")
    parser.add_argument("--seed", type=int, default=0, help="seed of the synthetic data")
    parser.add_argument("--features", type=Path, metavar="F")
    parser.add_argument("--labels", type=Path, metavar="L")
    parser.add_argument("--feature-dim", type=int, help="for a raw .bin")
    parser.add_argument("--thresholds", type=float, nargs=3, default=(0.4, 0.9, 0.01), metavar=("LOW", "HIGH", "STEP"))
    parser.add_argument("--min-sims", type=float, nargs="+", default=(0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    split = open_data(arguments)
    started = time.perf_counter()
    graph = build_knn(split.features.all(), 80)
    result = {
        "data": split.name,
        "parameters": None if arguments.features else asdict(Synthetic()),
        "num_instances": len(split),
        "num_identities": len(np.unique(split.labels)),
        "seconds_knn": time.perf_counter() - started,
        "same_identity": same_identity(graph, split.labels),
        "published_ms1m_fscore": PUBLISHED,
        "single_link": best_single_link(graph, split.labels, arguments.thresholds),
    }
    if BASELINES["infomap"].available:
        result["infomap"] = best_infomap(graph, split.labels, arguments.min_sims)
    else:
        print("infomap is not installed, so it is skipped: pip install 'starfc[baselines]'")
    report(result, arguments.threads, arguments.json)


def open_data(arguments: argparse.Namespace) -> Split:
    if (arguments.features is None) != (arguments.labels is None):
        raise InputError("--features and --labels: give both or neither")
    if arguments.features is not None:
        return open_split(arguments.features, arguments.labels, feature_dim=arguments.feature_dim)
    features, labels = Population(arguments.nodes, seed=arguments.seed).rows(0, arguments.nodes)
    return Split(Features(features), labels, f"synthetic, seed {arguments.seed}")


def same_identity(graph: KnnGraph, labels: np.ndarray) -> dict[int, float]:
    """Return the share of the first m neighbours that have the same identity, for several m."""
    same = (labels[graph.ids] == labels[:, None]) & (graph.ids >= 0)
    return {m: float(same[:, :m].mean()) for m in NEIGHBOURS}


def best_single_link(graph: KnnGraph, labels: np.ndarray, bounds: tuple[float, float, float]) -> dict[str, Any]:
    low, high, step = bounds
    started = time.perf_counter()
    points = sweep_single_link(graph, labels, np.arange(low, high + step / 2, step).round(6).tolist())
    best = max(points, key=lambda point: point.fscore)
    return {
        "seconds": time.perf_counter() - started,
        "best": best._asdict(),
        "sweep": [point._asdict() for point in points],
    }


def best_infomap(graph: KnnGraph, labels: np.ndarray, min_sims: list[float]) -> dict[str, Any]:
    started, points = time.perf_counter(), []
    for min_sim in min_sims:
        predicted = infomap(graph, min_sim=min_sim, k=50)
        points.append({"min_sim": min_sim, **evaluate(labels, predicted), "num_clusters": len(np.unique(predicted))})
    best = max(points, key=lambda point: point["pairwise"]["fscore"])
    return {"seconds": time.perf_counter() - started, "best": best, "sweep": points}


if __name__ == "__main__":
    raise SystemExit(run_command(main))
