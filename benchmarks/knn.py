"""kNN graphs against faiss IndexFlatIP search, each in its own process, on the same features.

    python benchmarks/knn.py --features F [--methods faiss ivf hnsw] [--knn 80] [--threads 2] [--json OUT]

Prints and writes for every method of this repository its seconds, peak_rss_mb, speedup, memory_ratio, recall and
same_neighbours: speedup is the seconds of IndexFlatIP over the method's (building its index and measuring its recall
included), recall is measured on 1,000 sampled rows, same_neighbours is the share of all entries equal to IndexFlatIP's.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import faiss
import numpy as np
from harness import finish_side, report, run_side

from starfc.data.dataset import Features
from starfc.data.formats import read_features
from starfc.graph.knn import KNN_METHODS, build_knn, measure_recall
from starfc.graph.neighbours import KnnGraph, tidy
from starfc.runtime.machine import set_threads
from starfc.runtime.stages import Stages

FLAT = "IndexFlatIP"


def main() -> None:
    parser = argparse.ArgumentParser(description="kNN graphs against faiss IndexFlatIP search.")
    parser.add_argument("--features", type=Path, metavar="F")
    parser.add_argument("--feature-dim", type=int, help="for a raw .bin")
    parser.add_argument("--methods", nargs="+", choices=KNN_METHODS, default=["faiss"])
    parser.add_argument("--knn", type=int, default=80)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    if arguments.side:
        search(arguments)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    features = Features(read_features(arguments.features, arguments.feature_dim), str(arguments.features))
    features.require_valid()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "features.npy", features.all())
        matrix = np.load(folder / "features.npy")
        for method in (FLAT, *arguments.methods):
            side = run_side(__file__, method, folder, "--knn", arguments.knn, "--threads", arguments.threads)
            graph = KnnGraph(*(np.load(folder / f"{method}_{part}.npy") for part in ("ids", "sims")))
            if method == FLAT:
                flat, flat_ids = side, np.sort(graph.ids, axis=1)
            results[method] = {
                "seconds": side["seconds"],
                "peak_rss_mb": side["peak_rss_mb"],
                "speedup": flat["seconds"] / side["seconds"],
                "memory_ratio": side["peak_rss_mb"] / flat["peak_rss_mb"],
                "recall": measure_recall(graph, matrix),
                "same_neighbours": float((np.sort(graph.ids, axis=1) == flat_ids).mean()),
            }
    report({"num_instances": len(matrix), "knn": arguments.knn, "methods": results}, arguments.threads, arguments.json)


def search(arguments: argparse.Namespace) -> None:
    features, stages = np.load(arguments.folder / "features.npy"), Stages()
    build_knn(features[:500], 10)  # loads the compiled code
    with stages.stage("kNN graph"):
        if arguments.side == FLAT:
            index = faiss.IndexFlatIP(features.shape[1])
            index.add(features)
            sims, ids = index.search(features, arguments.knn)
            graph = tidy(ids, sims, 0, len(features))
        else:
            graph = build_knn(features, arguments.knn, arguments.side)
    for part in ("ids", "sims"):
        np.save(arguments.folder / f"{arguments.side}_{part}.npy", getattr(graph, part))
    finish_side(arguments.side, arguments.folder, stages)


if __name__ == "__main__":
    main()
