"""Compare the extended method with the basic one after the kNN search, each side in its own process.

    python benchmarks/extended.py --features F --model DIR [--hierarchical-model DIR] [--json OUT] [--threads 2]

Prints and writes {"ratio", "memory_ratio", "stages", "seconds", "peak_rss_mb", ...}. The ratios are extended / basic
for all stages from the kNN graph in memory to the labels, the best of ``--repeats`` runs. One search builds the kNN
graph with the k of the largest scale; the basic method uses the first ``--knn`` neighbours. Without
``--hierarchical-model`` the selector has initial weights, and backbone and head are those of the basic model. The
stages then process as many edges as with a trained model. Compiled code is loaded from its cache. The time to read,
check and normalise features is not included.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from harness import finish_side, report, run_side
from inference import load_graph, open_features, save_graph, thresholds
from starfc.clustering.pipeline import Clustering, cluster, cluster_dynamic
from starfc.data.dataset import Features
from starfc.graph.knn import build_knn
from starfc.graph.neighbours import KnnGraph
from starfc.models.checkpoint import Model, load_model
from starfc.models.hierarchical import HierarchicalModel
from starfc.runtime.machine import set_threads
from starfc.runtime.stages import Stages
from starfc.scoring.projections import edge_probabilities, project_nodes


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the extended method with the basic one after the kNN search.")
    parser.add_argument("--features", type=Path, required=True, metavar="F")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--hierarchical-model", type=Path, metavar="DIR")
    parser.add_argument("--tau1", type=float, help="for both methods; default: the model's thresholds.json, else 0.7")
    parser.add_argument("--tau2", type=float, help="for the basic method; default: thresholds.json, else 0.72")
    parser.add_argument("--ceiling", type=float, default=0.78, help="ceiling of the dynamic thresholds")
    parser.add_argument("--knn", type=int, default=80, help="neighbours of the basic method")
    parser.add_argument("--repeats", type=int, default=3)
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
    common = ("--features", arguments.features, "--model", arguments.model, "--knn", arguments.knn)
    common += ("--tau1", tau1, "--tau2", tau2, "--ceiling", arguments.ceiling, "--threads", arguments.threads)
    if arguments.hierarchical_model:
        common += ("--hierarchical-model", arguments.hierarchical_model)
    with tempfile.TemporaryDirectory() as name:
        run_side(__file__, "knn", Path(name), *common)
        runs = [
            {side: run_side(__file__, side, Path(name), *common) for side in ("basic", "extended")}
            for _ in range(arguments.repeats)
        ]
    best = {side: min((run[side] for run in runs), key=lambda run: run["seconds"]) for side in runs[0]}
    result = {
        "ratio": best["extended"]["seconds"] / best["basic"]["seconds"],
        "memory_ratio": best["extended"]["peak_rss_mb"] / best["basic"]["peak_rss_mb"],
        **{
            key: {side: run[key] for side, run in best.items()} for key in ("stages", "seconds", "peak_rss_mb", "edges")
        },
        "num_instances": len(open_features(arguments)),
        "thresholds": {"tau1": tau1, "tau2": tau2, "ceiling": arguments.ceiling},
    }
    report(result, arguments.threads, arguments.json)


def hierarchical_model(arguments: argparse.Namespace) -> HierarchicalModel:
    if arguments.hierarchical_model:
        return load_model(arguments.hierarchical_model)
    basic = load_model(arguments.model)
    model = HierarchicalModel(basic.feature_dim, basic.nhid, generator=torch.Generator().manual_seed(0))
    model.backbone.load_state_dict(basic.backbone.state_dict())
    model.head.load_state_dict(basic.head.state_dict())
    return model.eval()


def run_knn(arguments: argparse.Namespace) -> None:
    features, stages = open_features(arguments), Stages()
    with stages.stage("kNN graph"):
        graph = build_knn(features, max(hierarchical_model(arguments).scales))
    save_graph(arguments.folder, "knn", graph)
    finish_side("knn", arguments.folder, stages)


def run_basic(arguments: argparse.Namespace) -> None:
    graph, others = load_graph(arguments.folder, "knn"), arguments.knn - 1
    graph = KnnGraph(*(np.ascontiguousarray(part[:, :others]) for part in (graph.ids, graph.sims)))

    def run(features: Features, graph: KnnGraph, model: Model, stages: Stages) -> Clustering:
        return cluster(features, graph, model, tau1=arguments.tau1, tau2=arguments.tau2, stages=stages)

    measure(arguments, "basic", run, graph, load_model(arguments.model))


def run_extended(arguments: argparse.Namespace) -> None:
    def run(features: Features, graph: KnnGraph, model: Model, stages: Stages) -> Clustering:
        return cluster_dynamic(features, graph, model, tau1=arguments.tau1, tau2=arguments.ceiling, stages=stages)

    measure(arguments, "extended", run, load_graph(arguments.folder, "knn"), hierarchical_model(arguments))


def measure(arguments: argparse.Namespace, side: str, run, graph: KnnGraph, model: Model) -> None:
    features, stages = open_features(arguments), Stages()
    few = Features(features.array[:500])  # loads the compiled code, also that for near-ties of the threshold
    small = build_knn(few, graph.k)
    run(few, small, model, Stages())
    edge_probabilities(project_nodes(model, few, small).in_double(), np.arange(2), small.ids[:2, 0])
    features.scaled  # noqa: B018 reads and normalises the features before the time starts
    result = run(features, graph, model, stages)
    finish_side(side, arguments.folder, stages, edges=[result.edges_parsed, result.edges_refined])


SIDES = {"knn": run_knn, "basic": run_basic, "extended": run_extended}

if __name__ == "__main__":
    main()
