"""Compare metrics at scale with those of scikit-learn, each side in its own process, on the same labels.

    python benchmarks/metrics.py [--nodes 10000000] [--json OUT]

Ours are pairwise, BCubed and NMI. Those of scikit-learn are pair_confusion_matrix and normalized_mutual_info_score.
They are enough for pairwise and NMI; it has no BCubed. Prints and writes the seconds and peak_rss_mb of each side
(including the labels, 160 MB at 10^7, and the libraries), their ratios, and the largest difference of a common score.
The identities have the sizes of :mod:`starfc.data.synthetic`. A tenth of them is merged with another, a fifth of the
instances of each is in a second cluster, and 15 % of all instances are alone. Compiled code is loaded from its cache by
one small run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import numpy as np

from harness import finish_side, report, run_side
from starfc.data.synthetic import Population
from starfc.evaluation.metrics import evaluate
from starfc.runtime.machine import set_threads
from starfc.runtime.stages import Stages
from starfc.storage.atomic import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare metrics at scale with those of scikit-learn.")
    parser.add_argument("--nodes", type=int, default=10_000_000)
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--side", choices=("starfc", "sklearn"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    set_threads(1)
    if arguments.side:
        measure(arguments.side, arguments.folder)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key, labels in zip(("truth", "predicted"), make_labels(arguments.nodes), strict=True):
            np.save(folder / f"{key}.npy", labels)
        sides = {side: run_side(__file__, side, folder) for side in ("starfc", "sklearn")}
        ours, theirs = (json.loads((folder / f"{side}_figures.json").read_text()) for side in sides)
    result = {
        "num_instances": arguments.nodes,
        "speedup": sides["sklearn"]["seconds"] / sides["starfc"]["seconds"],
        "memory_ratio": sides["starfc"]["peak_rss_mb"] / sides["sklearn"]["peak_rss_mb"],
        "largest_difference": max(abs(ours[key] - theirs[key]) for key in theirs),
        "seconds": {side: record["seconds"] for side, record in sides.items()},
        "peak_rss_mb": {side: record["peak_rss_mb"] for side, record in sides.items()},
    }
    report(result, 1, arguments.json)


def make_labels(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = Population(num_nodes).sizes
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    merged = truth - (truth % 10 == 9)
    predicted = 2 * merged + (rng.random(num_nodes) < 0.2)
    alone = np.flatnonzero(rng.random(num_nodes) < 0.15)
    predicted[alone] = 2 * len(sizes) + np.arange(len(alone))
    return truth, predicted


def measure(side: str, folder: Path) -> None:
    truth, predicted = (np.load(folder / f"{key}.npy") for key in ("truth", "predicted"))
    stages, function = Stages(), {"starfc": starfc_figures, "sklearn": sklearn_figures}[side]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function(truth[:100], predicted[:100])
    with stages.stage("metrics"):
        figures = function(truth, predicted)
    write_json(folder / f"{side}_figures.json", figures)
    finish_side(side, folder, stages)


def starfc_figures(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    results = evaluate(truth, predicted)
    return {
        "precision": results["pairwise"]["precision"],
        "recall": results["pairwise"]["recall"],
        "nmi": results["nmi"],
    }


def sklearn_figures(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.metrics.cluster import pair_confusion_matrix

    (_, false_pairs), (missed, true_pairs) = pair_confusion_matrix(truth, predicted)
    return {
        "precision": float(true_pairs / (true_pairs + false_pairs)) if true_pairs else 0.0,
        "recall": float(true_pairs / (true_pairs + missed)) if true_pairs else 0.0,
        "nmi": float(normalized_mutual_info_score(truth, predicted)),
    }


if __name__ == "__main__":
    main()
