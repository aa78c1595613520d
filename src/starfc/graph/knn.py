"""kNN search: exact and approximate, over query blocks, under the contract of :mod:`starfc.graph.neighbours`.

=============  ==========================================================================================
``faiss``      exact, under the name that the published configs give it (:mod:`starfc.graph.exact`)
``faiss_gpu``  exact, on GPUs, with a GPU build of faiss
``ivf``        inverted file: nlist = 4·sqrt(N) cells, an eighth of them probed
``hnsw``       hierarchical small-world graph: M = 32, efConstruction = efSearch = 128. Its construction on several
               threads depends on their timing: two graphs of the same data may differ a little
=============  ==========================================================================================

The parameters of the last two are ``knn_params`` of the config.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping

import faiss
import numpy as np
from numpy.typing import NDArray

from starfc.errors import InputError
from starfc.graph.exact import exact_search
from starfc.graph.neighbours import KnnGraph, id_dtype, tidy
from starfc.runtime.progress import progress

log = logging.getLogger("starfc")

KNN_METHODS = ("faiss", "faiss_gpu", "ivf", "hnsw")
KNN_PARAMS = {"ivf": ("nlist", "nprobe"), "hnsw": ("m", "ef_construction", "ef_search")}
RECALL_ROWS = 1000
_QUERY_BLOCK = 1 << 13

Search = Callable[[NDArray[np.float32], int], tuple[NDArray[np.float32], NDArray[np.int64]]]


def check_k(k: int, num_nodes: int, where: str = "features") -> None:
    """Raise :class:`InputError` unless 2 <= k < N."""
    if num_nodes < 2:
        raise InputError(f"{where}: {num_nodes} instance(s), n_samples = {num_nodes}; clustering needs at least 2")
    if not 2 <= k < num_nodes:
        raise InputError(
            f"knn: between 2 and N - 1 = {num_nodes - 1} neighbours (the node itself counted) for the {num_nodes} "
            f"instances of {where}; found {k}; lower knn"
        )


def build_knn(
    features: NDArray[np.float32],
    k: int,
    method: str = "faiss",
    params: Mapping[str, int] | None = None,
    seed: int = 0,
) -> KnnGraph:
    """kNN graph of L2-normalised features.

    Parameters
    ----------
    features : (N, d) float32, C-contiguous
    k : int
        Entries per node, the node itself counted, 2 <= k < N.
    method : {'faiss', 'faiss_gpu', 'ivf', 'hnsw'}
    params : mapping, optional
        Parameters of an approximate method (:data:`KNN_PARAMS`).
    seed : int
        Chooses the rows on which an approximate graph's recall is measured.

    Returns
    -------
    KnnGraph
        ``info`` holds the backend, its parameters, and the recall against exact search on 1,000 sampled rows (1 for
        exact methods, by construction).
    """
    check_k(k, len(features))
    if method == "faiss" and not params:
        graph = exact_knn(features, k)
        return KnnGraph(graph.ids, graph.sims, {"backend": "exact", "params": {}, "recall": 1.0, "recall_rows": 0})
    search, used = _open_search(features, method, dict(params or {}))
    graph = _search_all(search, features, k)
    info = {"backend": method, "params": used, "recall": 1.0, "recall_rows": 0}
    if method in KNN_PARAMS:
        info["recall_rows"] = min(RECALL_ROWS, len(features))
        info["recall"] = measure_recall(graph, features, seed)
        log.info("kNN graph: recall %.4f of %s on %d rows", info["recall"], method, info["recall_rows"])
    return KnnGraph(graph.ids, graph.sims, info)


def exact_knn(features: NDArray[np.float32], k: int) -> KnnGraph:
    """Exact kNN graph (:mod:`starfc.graph.exact`), whatever the number of nodes; 1 <= k <= N."""
    sims, ids = exact_search(np.ascontiguousarray(features), k)
    return tidy(ids, sims, 0, len(features))


def measure_recall(graph: KnnGraph, features: NDArray[np.float32], seed: int = 0) -> float:
    """Share of the exact neighbours that the graph holds, on up to 1,000 sampled rows.

    A row has found as many as it holds neighbours at least as similar as its last exact one: ties are no misses.
    """
    rows = np.sort(np.random.default_rng(seed).choice(len(features), min(RECALL_ROWS, len(features)), replace=False))
    sims, ids = faiss.knn(features[rows], features, graph.k, metric=faiss.METRIC_INNER_PRODUCT)
    found = wanted = 0
    for at, row in enumerate(rows):
        others = ids[at] != row
        wanted += int(others.sum())
        last = np.clip(sims[at][others][-1], 0, 1) - 1e-6
        found += min(int((graph.sims[row][graph.ids[row] >= 0] >= last).sum()), int(others.sum()))
    return found / wanted


def _search_all(search: Search, features: NDArray[np.float32], k: int) -> KnnGraph:
    n = len(features)
    ids, sims = np.empty((n, k), id_dtype(n)), np.empty((n, k), np.float32)
    with progress("kNN graph", total=n, unit="row") as bar:
        for start in range(0, n, _QUERY_BLOCK):
            rows = slice(start, min(start + _QUERY_BLOCK, n))
            raw_sims, raw_ids = search(features[rows], k)
            block = tidy(raw_ids, raw_sims, start, n)
            ids[rows], sims[rows] = block.ids, block.sims
            bar.update(rows.stop - start)
    return KnnGraph(ids, sims)


def _open_search(features: NDArray[np.float32], method: str, params: dict[str, int]) -> tuple[Search, dict[str, int]]:
    if method not in KNN_METHODS:
        raise InputError(f"knn_method: one of {KNN_METHODS} needed; found {method!r}")
    allowed = KNN_PARAMS.get(method, ())
    if not set(params) <= set(allowed):
        raise InputError(f"knn_params: {method!r} takes {allowed}; found {sorted(params)}")
    if params.get("nlist", 1) > len(features):
        raise InputError(f"knn_params.nlist: at most the {len(features)} instances needed; found {params['nlist']}")
    if method == "faiss_gpu":
        return _gpu_search(features), {}
    n, d = features.shape
    if method == "ivf":
        # k-means wants 39 points a cell; fewer cells than that make no sense to faiss
        nlist = params.get("nlist", max(1, min(int(4 * math.sqrt(n)), n // 39)))
        used = {"nlist": nlist, "nprobe": params.get("nprobe", min(nlist, max(16, math.ceil(nlist / 8))))}
        index = faiss.index_factory(d, f"IVF{nlist},Flat", faiss.METRIC_INNER_PRODUCT)
        index.train(features)
        index.nprobe = used["nprobe"]
    else:
        used = {"m": 32, "ef_construction": 128, "ef_search": 128} | params
        index = faiss.IndexHNSWFlat(d, used["m"], faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = used["ef_construction"], used["ef_search"]
    index.add(features)
    return index.search, used


def _gpu_search(features: NDArray[np.float32]) -> Search:
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        raise InputError(
            "knn_method: 'faiss_gpu' needs a GPU build of faiss and a GPU; found neither or only one of them; "
            "use 'faiss' (exact, CPU), or install faiss-gpu"
        )
    index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(features.shape[1]))
    index.add(features)
    return index.search
