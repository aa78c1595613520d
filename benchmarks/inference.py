"""Inference after kNN against the reference twin, on the same graph, each in its own process.

    python benchmarks/inference.py --features F --labels L --model DIR [--json OUT] [--threads 2]

Prints and writes {"speedup", "memory_ratio", "labels_equal", "fscore", "twin_fscore", "stages", ...}: speedup is twin
seconds / ours, memory_ratio ours / twin, both over everything between the kNN graph in memory and the labels. Compiled
code is loaded from its cache (one small run warms it up); loading inputs from disk is not counted on either side.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from harness import finish_side, report, run_side

from starfc.clustering.pipeline import cluster
from starfc.data.dataset import Features
from starfc.data.formats import read_features, read_labels
from starfc.errors import InputError
from starfc.evaluation.metrics import contingency, pairwise
from starfc.graph.knn import build_knn
from starfc.graph.neighbours import KnnGraph
from starfc.models.checkpoint import load_model, load_thresholds
from starfc.runtime.machine import set_threads
from starfc.runtime.stages import Stages


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
    parser.add_argument("--side", choices=("pipeline", "twin"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    if arguments.side:
        {"pipeline": run_pipeline, "twin": run_twin}[arguments.side](arguments)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    tau1, tau2 = thresholds(arguments)
    features = Features(
        read_features(arguments.features, load_model(arguments.model).feature_dim), str(arguments.features)
    )
    features.require_valid()
    labels = read_labels(arguments.labels, len(features))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        matrix = features.all()
        graph = build_knn(matrix, arguments.knn)
        for key, array in (("features", matrix), ("ids", graph.ids), ("sims", graph.sims)):
            np.save(folder / f"{key}.npy", array)
        common = ("--model", arguments.model, "--tau1", tau1, "--tau2", tau2, "--threads", arguments.threads)
        ours = run_side(__file__, "pipeline", folder, *common)
        twin = run_side(__file__, "twin", folder, *common)
        ours_labels, twin_labels = (np.load(folder / f"{side}_labels.npy") for side in ("pipeline", "twin"))
    result = {
        "speedup": twin["seconds"] / ours["seconds"],
        "memory_ratio": ours["peak_rss_mb"] / twin["peak_rss_mb"],
        "labels_equal": same_partition(ours_labels, twin_labels),
        "fscore": pairwise(contingency(labels, ours_labels)).fscore,
        "twin_fscore": pairwise(contingency(labels, twin_labels)).fscore,
        "stages": {"pipeline": ours["stages"], "twin": twin["stages"]},
        "seconds": {"pipeline": ours["seconds"], "twin": twin["seconds"]},
        "peak_rss_mb": {"pipeline": ours["peak_rss_mb"], "twin": twin["peak_rss_mb"]},
        "num_instances": len(labels),
        "thresholds": {"tau1": tau1, "tau2": tau2},
    }
    report(result, arguments.threads, arguments.json)


def thresholds(arguments: argparse.Namespace) -> tuple[float, float]:
    if arguments.tau1 is not None and arguments.tau2 is not None:
        return arguments.tau1, arguments.tau2
    try:
        return load_thresholds(arguments.model)
    except InputError:
        return 0.7, 0.72


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two labelings are equal up to renaming."""
    table = contingency(a, b)
    return len(table.cells) == len(table.row_sums) == len(table.col_sums)


def load_inputs(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(np.load(folder / f"{key}.npy") for key in ("features", "ids", "sims"))


def run_pipeline(arguments: argparse.Namespace) -> None:
    features, ids, sims = load_inputs(arguments.folder)
    model, stages = load_model(arguments.model), Stages()
    few = slice(0, min(500, len(features)))  # loads the compiled code
    cluster(features[few], build_knn(features[few], 10), model, tau1=0.5, tau2=0.5)
    result = cluster(features, KnnGraph(ids, sims), model, tau1=arguments.tau1, tau2=arguments.tau2, stages=stages)
    np.save(arguments.folder / "pipeline_labels.npy", result.labels)
    finish_side("pipeline", arguments.folder, stages)


def run_twin(arguments: argparse.Namespace) -> None:
    import reference

    features, ids, sims = load_inputs(arguments.folder)
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


if __name__ == "__main__":
    main()
