"""Compare inference with the reference twin, after the kNN search and as a whole, each side in its own process.

    python benchmarks/inference.py --features F --labels L --model DIR [--json OUT] [--threads 2]

Prints and writes {"speedup", "memory_ratio", "labels_equal", "fscore", "twin_fscore", "stages", "whole", ...}. speedup
is twin / ours in seconds, and memory_ratio is ours / twin. Both cover all stages from the kNN graph in memory (that of
faiss IndexFlatIP on both sides) to the labels. ``whole`` includes the kNN search: our approximate search with its
target recall, and IndexFlatIP for the twin; its fscore is that of the approximate graph. Compiled code is loaded from
its cache by one small run. The time to read, check and normalise features is not included on either side.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from harness import finish_side, report, run_side
from starfc.clustering.pipeline import cluster
from starfc.config.thresholds import load_thresholds
from starfc.data.dataset import Features
from starfc.data.files import read_features, read_labels
from starfc.errors import InputError
from starfc.evaluation.metrics import contingency, pairwise
from starfc.graph.knn import build_knn
from starfc.graph.neighbours import KnnGraph, tidy
from starfc.models.checkpoint import load_model
from starfc.runtime.machine import set_threads
from starfc.runtime.stages import Stages
from starfc.scoring.projections import edge_probabilities, project_nodes


def main() -> None:
    parser = argparse.ArgumentParser(description="Inference after kNN: the pipeline against the reference twin.")
    parser.add_argument("--features", type=Path, metavar="F")
    parser.add_argument("--labels", type=Path, metavar="L")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tau1", type=float, help="default: the model's thresholds.json, else 0.7")
    parser.add_argument("--tau2", type=float, help="default: the model's thresholds.json, else 0.72")
    parser.add_argument("--knn", type=int, default=80)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    if arguments.side:
        SIDES[arguments.side](arguments)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    tau1, tau2 = thresholds(arguments)
    features = open_features(arguments)
    features.require_valid()
    labels = read_labels(arguments.labels, len(features))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common = ("--features", arguments.features, "--model", arguments.model, "--knn", arguments.knn)
        common += ("--tau1", tau1, "--tau2", tau2, "--threads", arguments.threads)
        sides = {side: run_side(__file__, side, folder, *common) for side in SIDES}
        found = {side: np.load(folder / f"{side}_labels.npy") for side in ("pipeline", "twin", "approximate")}
    ours, twin = sides["pipeline"], sides["twin"]
    fscores = {side: pairwise(contingency(labels, predicted)).fscore for side, predicted in found.items()}
    whole = sides["cells"]["seconds"] + sides["approximate"]["seconds"]
    whole_twin = sides["flat"]["seconds"] + twin["seconds"]
    result = {
        "speedup": twin["seconds"] / ours["seconds"],
        "memory_ratio": ours["peak_rss_mb"] / twin["peak_rss_mb"],
        "labels_equal": same_partition(found["pipeline"], found["twin"]),
        "fscore": fscores["pipeline"],
        "twin_fscore": fscores["twin"],
        "stages": {"pipeline": ours["stages"], "twin": twin["stages"]},
        "seconds": {"pipeline": ours["seconds"], "twin": twin["seconds"]},
        "peak_rss_mb": {side: measured["peak_rss_mb"] for side, measured in sides.items()},
        "whole": {
            "speedup": whole_twin / whole,
            "seconds": {"pipeline": whole, "twin": whole_twin},
            "knn_seconds": {"pipeline": sides["cells"]["seconds"], "twin": sides["flat"]["seconds"]},
            "knn": sides["cells"]["info"],
            "fscore": fscores["approximate"],
        },
        "num_instances": len(labels),
        "thresholds": {"tau1": tau1, "tau2": tau2},
    }
    report(result, arguments.threads, arguments.json)


def open_features(arguments: argparse.Namespace) -> Features:
    dim = load_model(arguments.model).feature_dim
    return Features(read_features(arguments.features, dim), str(arguments.features))


def thresholds(arguments: argparse.Namespace) -> tuple[float, float]:
    if arguments.tau1 is not None and arguments.tau2 is not None:
        return arguments.tau1, arguments.tau2
    try:
        return load_thresholds(arguments.model)
    except InputError:
        return 0.7, 0.72


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two labelings are equal after renaming."""
    table = contingency(a, b)
    return len(table.cells) == len(table.row_sums) == len(table.col_sums)


def save_graph(folder: Path, name: str, graph: KnnGraph) -> None:
    for part in ("ids", "sims"):
        np.save(folder / f"{name}_{part}.npy", getattr(graph, part))


def load_graph(folder: Path, name: str) -> KnnGraph:
    return KnnGraph(*(np.load(folder / f"{name}_{part}.npy") for part in ("ids", "sims")))


def run_flat(arguments: argparse.Namespace) -> None:
    """Build the kNN graph as the published code does."""
    import faiss

    faiss.omp_set_num_threads(arguments.threads)
    features, stages = open_features(arguments).all(), Stages()
    with stages.stage("kNN graph"):
        index = faiss.IndexFlatIP(features.shape[1])
        index.add(features)
        sims, ids = index.search(features, arguments.knn)
    save_graph(arguments.folder, "flat", tidy(ids, sims, np.arange(len(ids)), len(ids)))
    finish_side("flat", arguments.folder, stages)


def run_cells(arguments: argparse.Namespace) -> None:
    """Build the approximate kNN graph."""
    features, stages = open_features(arguments), Stages()
    warm_up(features)
    features.check  # noqa: B018 reads and checks the features before the time starts
    with stages.stage("kNN graph"):
        graph = build_knn(features, arguments.knn, "ivf")
    save_graph(arguments.folder, "cells", graph)
    finish_side("cells", arguments.folder, stages, info=graph.info)


def warm_up(features: Features) -> None:
    """Load the compiled code."""
    few = Features(features.array[:5000])
    for method in ("exact", "ivf"):
        build_knn(few, 10, method, {"nlist": 4, "nprobe": 2} if method == "ivf" else {})


def run_pipeline(arguments: argparse.Namespace) -> None:
    cluster_side(arguments, "pipeline", load_graph(arguments.folder, "flat"))


def run_approximate(arguments: argparse.Namespace) -> None:
    cluster_side(arguments, "approximate", load_graph(arguments.folder, "cells"))


def cluster_side(arguments: argparse.Namespace, side: str, graph: KnnGraph) -> None:
    features, model, stages = open_features(arguments), load_model(arguments.model), Stages()
    few = Features(features.array[:500])  # loads the compiled code, also that for near-ties of the threshold
    small = build_knn(few, 10)
    cluster(few, small, model, tau1=0.5, tau2=0.5)
    edge_probabilities(project_nodes(model, few, small).in_double(), np.arange(2), small.ids[:2, 0])
    features.scaled  # noqa: B018 reads and normalises the features before the time starts
    result = cluster(features, graph, model, tau1=arguments.tau1, tau2=arguments.tau2, stages=stages)
    np.save(arguments.folder / f"{side}_labels.npy", result.labels)
    finish_side(side, arguments.folder, stages)


def run_twin(arguments: argparse.Namespace) -> None:
    import reference

    features, graph = open_features(arguments).all(), load_graph(arguments.folder, "flat")
    ids, sims = graph.ids, graph.sims
    model, stages = load_model(arguments.model), Stages()
    state = model.backbone.state_dict() | model.head.state_dict()
    n, k = ids.shape
    with stages.stage("propagation matrix"):
        matrix = reference.propagation_matrix(ids, sims)
    with stages.stage("forward"):
        nodes = reference.node_embeddings(state, features, matrix)
    with stages.stage("edge scores"):
        rows, cols = np.repeat(np.arange(n), k), ids.ravel()
        rows, cols = rows[cols >= 0], cols[cols >= 0]
        scores = reference.edge_probabilities(state, nodes, rows, cols)
    with stages.stage("parsing"):
        edges = reference.parse(rows, cols, scores, arguments.tau1)
    with stages.stage("refinement"):
        edges = reference.refine(edges, n, arguments.tau2)
    with stages.stage("components"):
        labels = reference.union_find(edges, n)
    np.save(arguments.folder / "twin_labels.npy", labels)
    finish_side("twin", arguments.folder, stages)


SIDES = {
    "flat": run_flat,
    "twin": run_twin,
    "pipeline": run_pipeline,
    "cells": run_cells,
    "approximate": run_approximate,
}

if __name__ == "__main__":
    main()
