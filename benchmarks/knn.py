"""Compare kNN graphs of this project and of other libraries with faiss IndexFlatIP, each in its own process.

    python benchmarks/knn.py --features F [--methods exact cells faiss-hnsw ...] [--recall 0.99] [--json OUT]

``exact`` and ``cells`` are knn_method='exact' and 'ivf' of this project. The other libraries must reach the same
recall: their search parameter is doubled until it is reached on 1,000 sampled rows. For them the time includes only
building the index and searching all rows; our time also includes tuning and measuring the recall. ``--flat-queries M``
measures IndexFlatIP on M rows and scales the time to all rows, if the whole search would take too long.

Prints and writes for every method seconds, peak_rss_mb, speedup and memory_ratio relative to IndexFlatIP, and the
recall on 1,000 rows that were not used for tuning. If IndexFlatIP searched all rows, also the share of entries that are
equal to its entries.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from harness import finish_side, report, run_side
from starfc.data.dataset import Features
from starfc.data.files import read_features
from starfc.graph.knn import build_knn
from starfc.graph.neighbours import KnnGraph, tidy
from starfc.graph.recall import Sample
from starfc.runtime.machine import set_threads
from starfc.runtime.stages import Stages

FLAT = "IndexFlatIP"
Found = tuple[np.ndarray, np.ndarray]  # sims and ids (m, k)
Search = Callable[[np.ndarray, int, int], Found]  # queries, k, effort


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare kNN graphs with faiss IndexFlatIP.")
    parser.add_argument("--features", type=Path, metavar="F")
    parser.add_argument("--feature-dim", type=int, help="for a raw .bin")
    parser.add_argument("--methods", nargs="+", choices=("exact", "cells", *OTHERS), default=["exact", "cells"])
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--flat-queries", type=int, metavar="M", help="default: all rows")
    parser.add_argument("--knn", type=int, default=80)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    if arguments.side:
        run(arguments, open_features(arguments))
    else:
        compare(arguments, open_features(arguments))


def open_features(arguments: argparse.Namespace) -> Features:
    return Features(read_features(arguments.features, arguments.feature_dim), str(arguments.features))


def compare(arguments: argparse.Namespace, features: Features) -> None:
    features.require_valid()
    options = [str(w) for n in ("features", "knn", "threads", "recall") for w in (f"--{n}", getattr(arguments, n))]
    for name in ("feature_dim", "flat_queries"):
        if getattr(arguments, name) is not None:
            options += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    sample = Sample.draw(features, arguments.knn, np.random.default_rng(1), judged=False)
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for method in (FLAT, *arguments.methods):
            side = run_side(__file__, method, folder, *options)
            graph = KnnGraph(*(np.load(folder / f"{method}_{part}.npy") for part in ("ids", "sims")))
            if method == FLAT:
                flat, flat_ids = side, np.sort(graph.ids, axis=1)
            whole = len(graph.ids) == len(flat_ids) == len(features)
            results[method] = {
                **{key: side[key] for key in ("seconds", "peak_rss_mb", "params")},
                "speedup": flat["seconds"] / side["seconds"],
                "memory_ratio": side["peak_rss_mb"] / flat["peak_rss_mb"],
                "recall": sample.recall_of(graph) if len(graph.ids) == len(features) else None,
                "same_neighbours": float((np.sort(graph.ids, axis=1) == flat_ids).mean()) if whole else None,
            }
    result = {"num_instances": len(features), "knn": arguments.knn, "target_recall": arguments.recall}
    report(result | {"methods": results}, arguments.threads, arguments.json)


def run(arguments: argparse.Namespace, features: Features) -> None:
    n, k, stages, method = len(features), arguments.knn, Stages(), arguments.side
    scale, params = 1.0, {}
    if method in ("exact", "cells"):
        few = Features(features.array[:20000])  # loads the compiled code
        build_knn(few, 10), build_knn(few, 10, "ivf", {"nlist": 4, "nprobe": 2})
        features.check  # noqa: B018 reads and checks the features before the time starts
        with stages.stage("kNN graph"):
            graph = build_knn(features, k, "exact" if method == "exact" else "ivf", recall=arguments.recall)
        params = graph.info
    elif method == FLAT:
        import faiss

        faiss.omp_set_num_threads(arguments.threads)
        matrix, rows = features.all(), np.arange(n)
        if arguments.flat_queries is not None and arguments.flat_queries < n:
            rows = np.sort(np.random.default_rng(0).choice(n, arguments.flat_queries, replace=False))
            scale, params = n / len(rows), {"rows_searched": len(rows)}
        index = faiss.IndexFlatIP(features.dim)
        index.add(matrix)
        queries = matrix[rows]
        with stages.stage("kNN graph"):
            sims, ids = index.search(queries, k)
        graph = tidy(ids, sims, rows, n)
    else:
        sample = Sample.draw(features, k, np.random.default_rng(0), judged=False)
        matrix = features.all()
        with stages.stage("index"):
            search, effort, limit = OTHERS[method](matrix, k, arguments.threads)
        effort = tuned(search, sample, matrix, k, effort, limit, arguments.recall)
        with stages.stage("search"):
            sims, ids = search(matrix, k, effort)
        graph, params = tidy(ids.astype(np.int64), sims, np.arange(n), n), {"effort": effort}
    for part in ("ids", "sims"):
        np.save(arguments.folder / f"{method}_{part}.npy", getattr(graph, part))
    for stage in stages.finished:
        object.__setattr__(stage, "seconds", stage.seconds * scale)
    finish_side(method, arguments.folder, stages, params=params)


def tuned(search: Search, sample: Sample, matrix: np.ndarray, k: int, effort: int, limit: int, recall: float) -> int:
    """Return the first of effort, 2 effort, ... that reaches the recall on the sample, or 3/4 of it if enough."""

    def reaches(effort: int) -> bool:
        sims, ids = search(matrix[sample.rows], k, effort)
        return sample.recall(tidy(ids.astype(np.int64), sims, sample.rows, len(matrix))) >= recall

    while effort < limit and not reaches(effort):
        effort *= 2
    lower = effort * 3 // 4
    return lower if effort <= limit and reaches(lower) else min(effort, limit)


def faiss_index(factory: str, parameter: str, effort: int, limit: int, train: int | None = None) -> Callable:
    """Return a function that makes a faiss index from its factory string; ``{nlist}`` is 4 sqrt(N)."""

    def make(matrix: np.ndarray, k: int, threads: int) -> tuple[Search, int, int]:
        import faiss

        faiss.omp_set_num_threads(threads)
        nlist = int(4 * len(matrix) ** 0.5)
        index = faiss.index_factory(matrix.shape[1], factory.format(nlist=nlist), faiss.METRIC_INNER_PRODUCT)
        if "HNSW" in factory:
            index.hnsw.efConstruction = 128
        if not index.is_trained:
            index.train(matrix[np.random.default_rng(0).permutation(len(matrix))[: 64 * nlist]])
        index.add(matrix)
        space = faiss.ParameterSpace()

        def search(queries: np.ndarray, k: int, effort: int) -> Found:
            space.set_index_parameter(index, parameter, effort)
            return index.search(queries, k)

        return search, effort, nlist if limit == 0 else limit

    return make


def hnswlib_index(matrix: np.ndarray, k: int, threads: int) -> tuple[Search, int, int]:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=matrix.shape[1])
    index.init_index(len(matrix), M=32, ef_construction=128)
    index.add_items(matrix, num_threads=threads)

    def search(queries: np.ndarray, k: int, effort: int) -> Found:
        index.set_ef(effort)
        ids, distances = index.knn_query(queries, k, num_threads=threads)
        return 1 - distances, ids.astype(np.int64)

    return search, 96, 4096


def nn_descent(matrix: np.ndarray, k: int, threads: int) -> tuple[Search, int, int]:
    """Build the graph with pynndescent. There is nothing to tune: the queries of the tuning only read the graph."""
    from pynndescent import NNDescent

    graph = NNDescent(matrix, metric="cosine", n_neighbors=k, n_jobs=threads, random_state=0).neighbor_graph
    place = {row.tobytes(): at for at, row in enumerate(matrix)}

    def search(queries: np.ndarray, k: int, effort: int) -> Found:
        rows = slice(None) if len(queries) == len(matrix) else [place[q.tobytes()] for q in queries]
        return 1 - graph[1][rows], graph[0][rows].astype(np.int64)

    return search, 1, 1


OTHERS = {
    "faiss-ivf-flat": faiss_index("IVF{nlist},Flat", "nprobe", 16, 0),
    "faiss-ivf-sq8": faiss_index("IVF{nlist},SQ8", "nprobe", 16, 0),
    "faiss-ivf-fastscan": faiss_index("IVF{nlist},PQ128x4fs,RFlat", "nprobe", 16, 0),
    "faiss-hnsw": faiss_index("HNSW32,Flat", "efSearch", 96, 4096),
    "hnswlib": hnswlib_index,
    "nn-descent": nn_descent,
}

if __name__ == "__main__":
    main()
