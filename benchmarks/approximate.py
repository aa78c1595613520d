"""Compare approximate kNN graphs with the exact one: recalls, edges, calibration and clusters of the packaged model.

    python benchmarks/approximate.py --features F --labels L [--params nprobe=2,partitions=2,sweeps=1 ...] [--json OUT]

For the exact graph and each approximate one:

* seconds of the search, and the recalls that the search itself measures on sampled rows (starfc.graph.recall);
* the recall of edges that matter by the whole model: of all edges with p > 0.5 after both rounds on the exact graph,
  the share that has p > 0.5 on the approximate graph. The search cannot know this number; it shows how good its
  measurement is;
* the share of the exact neighbours of the same identity that the lists hold;
* calibration: the expected calibration error of p over the edges with p > 0.01, and Σp divided by the number of those
  that are right;
* pairwise F and BCubed F of communities without adaptation and without samples, and the τ1 that was chosen.

``auto`` is the search that chooses its phases for the target recall.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from harness import report
from starfc.clustering.pipeline import cluster
from starfc.data.dataset import Features
from starfc.data.files import read_features, read_labels
from starfc.evaluation.calibration import calibration_error, reliability
from starfc.evaluation.metrics import evaluate
from starfc.graph.approximate import approximate_search
from starfc.graph.edges import EdgeList
from starfc.graph.knn import exact_knn
from starfc.graph.neighbours import KnnGraph
from starfc.graph.recall import MATTERS, same_identity_recall
from starfc.models.checkpoint import PRETRAINED, load_model
from starfc.models.judge import first_round_judge
from starfc.runtime.machine import set_threads
from starfc.runtime.stages import Stages
from starfc.scoring.structural import Scoring
from starfc.storage.atomic import temporary_folder

LEAST_P = 0.01
DEFAULT = [
    "nprobe=1",
    "nprobe=2",
    "nprobe=2,sweeps=1",
    "nprobe=2,partitions=2",
    "nprobe=2,partitions=2,sweeps=1",
    "auto",
]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare approximate kNN graphs with the exact one.")
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--rows", type=int, metavar="N", help="use the first N rows only")
    parser.add_argument("--params", nargs="+", default=DEFAULT, metavar="P", help="name=number,... or auto")
    parser.add_argument("--knn", type=int, default=80)
    parser.add_argument("--recall", type=float, default=0.98, help="target of auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    features = Features(read_features(arguments.features)[: arguments.rows], str(arguments.features))
    labels = read_labels(arguments.labels)[: len(features)]
    build(features, arguments, "nprobe=1,nlist=4")  # loads the compiled code
    exact, seconds = build(features, arguments, None)
    found = {"exact": {"seconds": seconds} | judged(features, exact, exact, labels)}
    for text in arguments.params:
        graph, seconds = build(features, arguments, text)
        found[text] = {"seconds": seconds, **graph.info} | judged(features, graph, exact, labels)
        print(text, found[text], flush=True)
    report({"rows": len(features), "dim": features.dim, "graphs": found}, arguments.threads, arguments.json)


def build(features: Features, arguments: argparse.Namespace, text: str | None) -> tuple[KnnGraph, float]:
    """Return the graph with the parameters in a text, or the exact graph, and the seconds of the search."""
    stages = Stages()
    with temporary_folder() as folder, stages.stage("kNN graph"):
        if text is None:
            graph = exact_knn(features, arguments.knn)
        else:
            pairs = [] if text == "auto" else [pair.split("=") for pair in text.split(",")]
            params = {name: int(number) for name, number in pairs}
            graph = approximate_search(features, arguments.knn, params, 0, arguments.recall, folder, first_round_judge)
    return graph, stages.finished[0].seconds


def judged(features: Features, graph: KnnGraph, exact: KnnGraph, labels: np.ndarray) -> dict[str, Any]:
    """Return what the packaged model makes of a graph."""
    model = load_model(PRETRAINED)
    edges = Scoring(model, features, graph).parse(LEAST_P)[0]
    true = edges if graph is exact else Scoring(model, features, exact).parse(LEAST_P)[0]
    wanted, kept = keys(true, MATTERS), keys(edges, MATTERS)
    right = labels[edges.rows] == labels[edges.cols]
    result = cluster(features, graph, model, tau1=None, tau2=None, partition="infomap", adapt="off")
    scores = evaluate(labels, result.labels, ("pairwise", "bcubed"))
    assert result.choice is not None
    return {
        "whole_model_edges": float(np.isin(wanted, kept, assume_unique=True).mean()),
        "same_identity": same_identity_recall(features, graph, labels),
        "calibration_error": calibration_error(reliability(edges.scores, right)),
        "expected_to_right": float(edges.scores.sum(dtype=np.float64) / max(right.sum(), 1)),
        "pairwise": scores["pairwise"]["fscore"],
        "bcubed": scores["bcubed"]["fscore"],
        "tau1": result.choice.tau1,
    }


def keys(edges: EdgeList, above: float) -> np.ndarray:
    """Return one number for each undirected edge with p above a value."""
    rows, cols = edges.rows.astype(np.int64), edges.cols.astype(np.int64)
    some = (edges.scores > above) & (rows < cols)
    return rows[some] * edges.num_nodes + cols[some]


if __name__ == "__main__":
    main()
