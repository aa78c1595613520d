"""Build exact and approximate kNN graphs, which follow the contract of :mod:`starfc.graph.neighbours`.

=============  ==========================================================================================
``exact``      finds all neighbours, on the CPU (:mod:`starfc.graph.exact`) or on a GPU, as ``torch`` does. ``faiss``,
               its name in the published configs, is accepted too
``torch``      finds all neighbours with products on the device, in torch (:mod:`starfc.graph.device_search`); also on
               the CPU, where ``exact`` is faster
``faiss_gpu``  finds all neighbours on GPUs, with a GPU build of the package faiss
``ivf``        searches approximately, in each row's nearest cells and among the neighbours of its neighbours
               (:mod:`starfc.graph.approximate`), until the target recall is reached on sampled rows. The search
               writes chunks of rows to disk and continues after an interruption. With fewer than 150,000 rows
               exact search is as fast, and is used instead
=============  ==========================================================================================

``knn_params`` in the config sets the parameters of ``ivf``: nlist (number of cells), nprobe (number of cells that each
row probes), partitions (number of partitions into cells), sweeps (number of sweeps).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.data.dataset import Features, as_features
from starfc.errors import InputError
from starfc.graph.approximate import approximate_search, chooses, rows_per_chunk
from starfc.graph.device_search import SIDE, device_search
from starfc.graph.exact import MOST_KEPT, exact_search
from starfc.graph.neighbours import KnnGraph, empty_graph, id_dtype, tidy
from starfc.graph.recall import Judge
from starfc.runtime.defaults import KNN_FORMER, KNN_METHODS, KNN_PARAMS, RECALL
from starfc.runtime.device import uses_torch
from starfc.runtime.extras import require
from starfc.runtime.products import product_dtype, slices
from starfc.runtime.progress import progress
from starfc.runtime.words import word
from starfc.storage.atomic import temporary_folder, writes

log = logging.getLogger("starfc")

_FEW = 150_000  # with fewer rows, exact search is as fast as an approximate one
_MANY = 500_000  # with more rows, exact search takes many minutes, and the log says what is faster
_QUERY_BLOCK = 1 << 13


def fitting_k(k: int, num_nodes: int, where: str = "features", columns: int = 0) -> int:
    """Return the number of entries per neighbour list, the node itself included: min(k, N).

    Log the warning of :func:`short_lists`.

    Parameters
    ----------
    k : int
        The requested number of entries, at least 2.
    num_nodes : int
        Number of nodes N.
    where : str
        File or parameter of the features, for messages.
    columns : int
        Number of neighbours in the lists that the model was trained on; 0 means no check.

    Raises
    ------
    InputError
        If k is below 2.
    """
    if k < 2:
        raise InputError(f"{word('knn')}: at least 2 needed, the instance itself and one neighbour; found {k}")
    short = short_lists(k, num_nodes, where, columns)
    if short is not None:
        log.warning("%s", short)
    return min(k, num_nodes)


def short_lists(k: int, num_nodes: int, where: str = "features", columns: int = 0) -> str | None:
    """Return a warning if N < k, or if the lists are shorter than those that the model was trained on; else None.

    The parameters are those of :func:`fitting_k`.
    """
    wanted, fitting = max(k - 1, columns), min(k, num_nodes)
    if not num_nodes or fitting > wanted:
        return None
    short = where if num_nodes < k else f"{word('knn')} {k}"
    return f"{short}: lists of at most {fitting - 1} neighbours instead of {wanted}; clusters may be less certain"


def build_knn(
    features: Features | NDArray[np.float32],
    k: int,
    method: str = "exact",
    params: Mapping[str, int] | None = None,
    seed: int = 0,
    recall: float = RECALL,
    folder: Path | None = None,
    judge: Judge | None = None,
    device: str | torch.device = "cpu",
) -> KnnGraph:
    """Build the kNN graph of features.

    Parameters
    ----------
    features : Features, or (N, d) float32 L2-normalised
    k : int
        Entries per node, the node itself included, 1 <= k <= N. With k = N, each list holds all other nodes.
    method : {'exact', 'torch', 'faiss_gpu', 'ivf'}
        The search method, see the table above.
    params : mapping, optional
        Parameters of an approximate method (:data:`starfc.runtime.defaults.KNN_PARAMS`).
    seed : int
        Seed of the rows on which recall is measured, and of the sample for k-means.
    recall : float
        The share that an approximate method must find: of the edges that matter with a judge, of all neighbours without
        one. Ignored if ``nprobe``, ``partitions`` or ``sweeps`` is given.
    folder : path, optional
        Folder in which an approximate search stores its progress, to continue after an interruption. Default: a
        temporary folder.
    judge : Judge, optional
        Says which edges matter, for example :func:`starfc.models.judge.first_round_judge`.
    device : str or torch device
        Where products are made.

    Returns
    -------
    KnnGraph
        ``info`` holds the backend, its parameters, the recall that was reached on 1,000 sampled rows (1 for exact
        methods), and all :class:`~starfc.graph.recall.Recalls`.

    Raises
    ------
    InputError
        If there are no features, k is out of range, or the method or its parameters are wrong.
    """
    features, params, method = as_features(features), dict(params or {}), KNN_FORMER.get(method, method)
    if not len(features):
        raise InputError(f"{features.name}: at least 1 row needed; found none")
    if not 1 <= k <= len(features):
        raise InputError(f"{word('knn')}: between 1 and N = {len(features)} needed; found {k}")
    if len(features) == 1:
        return empty_graph(1, k)
    _check_method(features, method, params)
    if method == "ivf":
        if is_small(features, params):
            return _exact_instead(features, k, recall, device)
        if folder is not None:
            with writes(folder, folder.parent):
                return approximate_search(features, k, params, seed, recall, folder, judge, device)
        with temporary_folder() as temporary:
            return approximate_search(features, k, params, seed, recall, temporary, judge, device)
    if method == "exact" and len(features) > _MANY and not uses_torch(device):
        log.info(
            "kNN graph: exact search compares all %.1e pairs of rows; %s 'ivf' is several times faster, and finds "
            "%g of the edges that matter",
            len(features) * (len(features) - 1) / 2,
            word("knn_method"),
            RECALL,
        )
    return _faiss_search(features, k) if method == "faiss_gpu" else _exact(features, k, method, device)


def is_small(features: Features, params: Mapping[str, int]) -> bool:
    """Return whether an approximate search that chooses its phases gives way to exact search."""
    return chooses(params) and len(features) < _FEW


def search_bytes(
    features: Features,
    k: int,
    method: str = "exact",
    params: Mapping[str, int] | None = None,
    device: str | torch.device = "cpu",
) -> int:
    """Return the memory that a search will need, in bytes: features (mapped, or copied to 2 bytes), candidates, graph.

    An exact search holds all of them at the same time; its number of candidates depends on the data, and the bound is
    used here. On a GPU it holds the lists before and after they are sorted out, and the candidates of two blocks. An
    approximate one holds a copy of the features, up to 40 ids per row and a chunk per thread; at the end it reads the
    graph from disk.
    """
    n, graph = len(features), 8 * len(features) * k
    copy = product_dtype().itemsize * n * features.dim
    if method != "ivf" or is_small(features, params or {}):
        if uses_torch(device):
            return 2 * graph + 2 * 8 * min(n, SIDE) * MOST_KEPT * k
        return copy + graph + 6 * n * (MOST_KEPT * k + 64)
    chunks = torch.get_num_threads() * rows_per_chunk(n) * 38 * k  # 3 KB per row at k = 80
    return features.array.nbytes + max(copy + 120 * n + chunks, graph) + (512 << 20)


def exact_knn(features: Features | NDArray[np.float32], k: int) -> KnnGraph:
    """Return the exact kNN graph (:mod:`starfc.graph.exact`); 1 <= k <= N."""
    sims, ids = exact_search(features, k)
    return tidy(ids, sims, np.arange(len(ids)), len(ids))


def _exact(features: Features, k: int, method: str, device: str | torch.device) -> KnnGraph:
    """Return the exact kNN graph, searched in torch if the device or the method says so."""
    if method == "torch" or uses_torch(device):
        sims, ids = device_search(features, k, torch.device(device))
        graph, backend = tidy(ids, sims, np.arange(len(ids)), len(ids)), "torch"
    else:
        graph, backend = exact_knn(features, k), "exact"
    return KnnGraph(graph.ids, graph.sims, {"backend": backend, "params": {}, "recall": 1.0, "recall_rows": 0})


def _exact_instead(features: Features, k: int, recall: float, device: str | torch.device) -> KnnGraph:
    log.info(
        "kNN graph: exact search is used, because it is as fast for these %s rows; it finds all neighbours, so "
        "%s %g has no effect",
        f"{len(features):,}",
        word("knn_recall"),
        recall,
    )
    return _exact(features, k, "exact", device)


def _check_method(features: Features, method: str, params: dict[str, int]) -> None:
    if method not in KNN_METHODS:
        raise InputError(f"{word('knn_method')}: one of {', '.join(KNN_METHODS)} needed; found {method!r}")
    allowed = KNN_PARAMS.get(method, ())
    if not set(params) <= set(allowed):
        known = " and ".join(allowed) or "no parameters"
        raise InputError(f"knn_params: {method!r} takes {known}; found {', '.join(map(str, sorted(params)))}")
    for name in params:
        if params[name] > len(features):
            raise InputError(f"knn_params.{name}: at most the {len(features)} instances needed; found {params[name]}")


def _faiss_search(features: Features, k: int) -> KnnGraph:
    require("faiss", f"{word('knn_method')}: 'faiss_gpu'")
    import faiss

    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        raise InputError(
            f"{word('knn_method')}: 'faiss_gpu' needs a GPU build of faiss and a GPU; at least one of them is "
            "missing; use 'exact', or pip install 'starfc[faiss-gpu]'"
        )
    n = len(features)
    index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(features.dim))
    for rows in features.blocks():
        index.add(features.rows(rows))
    ids, sims = np.empty((n, k), id_dtype(n)), np.empty((n, k), np.float32)
    with progress("kNN graph", total=n, unit="row") as bar:
        for rows in slices(n, _QUERY_BLOCK):
            raw_sims, raw_ids = index.search(features.rows(rows), k)
            block = tidy(raw_ids, raw_sims, np.arange(rows.start, rows.stop), n)
            ids[rows], sims[rows] = block.ids, block.sims
            bar.update(rows.stop - rows.start)
    return KnnGraph(ids, sims, {"backend": "faiss_gpu", "params": {}, "recall": 1.0, "recall_rows": 0})
