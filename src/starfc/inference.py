"""`test_final.py`: from a config to labels on disk."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from starfc.clustering.outputs import metrics_table, write_clustering, write_run
from starfc.clustering.pipeline import cluster, with_singletons
from starfc.config import Config
from starfc.evaluation.metrics import evaluate
from starfc.graph.knn import check_k, search_bytes
from starfc.models.checkpoint import load_model, load_thresholds
from starfc.runtime.atomic import prepare_folder
from starfc.runtime.machine import choose_device, environment, set_threads
from starfc.runtime.stages import Stages
from starfc.splits import knn_graph, open_test_split

log = logging.getLogger("starfc")


def run_inference(
    config: Config,
    *,
    model_folder: str | Path | None = None,
    features: str | Path | None = None,
    labels: str | Path | None = None,
    out: str | Path = "outputs",
) -> dict[str, Any]:
    """Cluster the configured split, or a file of the user's own, and write the results.

    Parameters
    ----------
    config : Config
    model_folder : path, optional
        Folder of ``Backbone.pth`` and ``Head.pth``; the config's ``pretrained`` otherwise.
    features, labels : path, optional
        Features to cluster instead of the configured split, and their labels, if any.
    out : path
        Folder for the results.

    Returns
    -------
    dict
        The record that is also written to ``out/run.json``.

    Raises
    ------
    InputError
        Anything a user can mend; nothing that was written before is touched by then.
    """
    threads, device = set_threads(config.threads), choose_device(config.device)
    stages, out = Stages(config.memory_limit_bytes()), prepare_folder(out)
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")

    kwargs = config.model.kwargs
    split, graph_path = open_test_split(config, features, labels)
    check_k(config.knn, len(split), split.features.name)
    model_folder = Path(os.path.normpath(config.pretrained if model_folder is None else model_folder))
    model = load_model(model_folder, kwargs.feature_dim, kwargs.nhid)
    config = with_thresholds(config, model_folder)

    with stages.stage("features"):
        valid, invalid_rows = split.features.valid(config.invalid_rows)
        check_k(config.knn, len(valid), split.features.name)
    with stages.stage("kNN graph", needs=search_bytes(valid, config.knn, config.knn_method)):
        graph = knn_graph(config, valid, graph_path, out)
    result = cluster(
        valid,
        graph,
        model,
        tau1=config.tau1,
        tau2=config.tau2,
        th_sim=config.th_sim,
        device=device,
        stages=stages,
        scratch=out,
    )
    result = with_singletons(result, invalid_rows)

    metrics: dict[str, Any] = {}
    if split.labels is not None and config.metrics:
        with stages.stage("metrics"):
            metrics = evaluate(split.labels, result.labels, tuple(config.metrics))
    with stages.stage("write"):
        write_clustering(out, result)
    record = {
        "metrics": metrics,
        "num_clusters": result.num_clusters,
        "num_instances": len(split),
        "num_singletons": int((np.bincount(result.labels) == 1).sum()),
        "num_invalid_rows": len(invalid_rows),
        "edges": {"parsed": result.edges_parsed, "refined": result.edges_refined},
        "thresholds": {"tau1": config.tau1, "tau2": config.tau2},
        "knn_graph": {"k": graph.k, **graph.info},
        "stages": [vars(stage) for stage in stages.finished],
        "peak_rss_mb": max(stage.peak_rss_mb for stage in stages.finished),
        "config": config.as_dict(),
        "features": split.features.name,
        "model": str(model_folder),
        "seed": config.seed,
        "started": started,
        **environment(threads, device),
    }
    write_run(out, record)
    _report(stages, record, out, labelled=split.labels is not None)
    return record


def with_thresholds(config: Config, model_folder: Path) -> Config:
    """The config with τ1 and τ2 as numbers: its own, or those stored beside the weights."""
    if config.tau1 is not None and config.tau2 is not None:
        return config
    tau1, tau2 = load_thresholds(model_folder)
    log.info("thresholds of %s: tau1 %.3f, tau2 %.3f", model_folder, tau1, tau2)
    return replace(config, tau1=tau1, tau2=tau2)


def _report(stages: Stages, record: dict[str, Any], out: Path, labelled: bool) -> None:
    print(stages.table())
    print()
    if record["metrics"]:
        print(metrics_table(record["metrics"]))
    elif not labelled:
        print("no labels: metrics skipped")
    print()
    print(
        f"{record['num_instances']:,} instances, {record['num_clusters']:,} clusters "
        f"({record['num_singletons']:,} of one instance), tau1 {record['thresholds']['tau1']:g}, "
        f"tau2 {record['thresholds']['tau2']:g}"
    )
    print(f"written to {out}: labels.npy, labels.meta, clusters.parquet, run.json")
