"""Cluster the data that a config names, and write the results: `starfc cluster`, test_final.py, test_dynamic.py."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from starfc.clustering.adaptation import GAIN, stayed
from starfc.clustering.arrays import Prepared, Settings, cluster_features
from starfc.clustering.choice import GIVEN
from starfc.clustering.diagnostics import diagnostics_table
from starfc.clustering.part import MANY
from starfc.clustering.pipeline import Clustering, without_small
from starfc.clustering.reach import TIMES
from starfc.clustering.samples import LEAST
from starfc.config.config import Config
from starfc.config.recipes import with_changes
from starfc.config.splits import graph_source, open_test_split, search_of, stored_graph
from starfc.config.thresholds import Thresholds, resolve
from starfc.data.dataset import Split
from starfc.data.fingerprint import fingerprint
from starfc.data.instance_files import Files, file_column, files_beside, read_files
from starfc.errors import InputError
from starfc.evaluation.metrics import evaluate, labelled, metrics_table
from starfc.graph.recall import Recalls, same_identity_recall
from starfc.graph.store import find_graph
from starfc.models.checkpoint import Model, load_model
from starfc.review.measures import instance_columns
from starfc.runs.asked import kept_names
from starfc.runs.on_shards import ShardOptions, on_shards
from starfc.runs.outputs import write_clustering, write_edges, write_run
from starfc.runtime.device import device_limit, uses_torch
from starfc.runtime.machine import choose_device, environment, set_threads
from starfc.runtime.stages import Stage, Stages
from starfc.runtime.words import advice, counted, word
from starfc.shards.driver import require_kind
from starfc.storage.commit import Change, changing
from starfc.storage.owners import CLUSTER

log = logging.getLogger("starfc")


def run_inference(
    config: Config,
    *,
    refinement: str = "fixed",
    model_folder: str | Path | None = None,
    tau1: float | None = None,
    tau2: float | None = None,
    features: str | Path | Split | None = None,
    labels: str | Path | None = None,
    knn_graph: str | Path | None = None,
    min_cluster_size: int = 1,
    out: str | Path = "outputs",
    keep_edges: bool = False,
    files: str | Path | Files | None = None,
    gathered: Path | None = None,
    inputs: Iterable[str | Path | None] = (),
    overwrite: bool = False,
    shards: ShardOptions | None = None,
) -> dict[str, Any]:
    """Cluster the test split of a config, or a file of the user, and write the results.

    Parameters
    ----------
    config : Config
        All settings that the other parameters do not override.
    refinement : {'fixed', 'dynamic'}
        'fixed' compares node intimacy with the config's τ2 (:func:`~starfc.clustering.pipeline.cluster`). 'dynamic'
        uses undirected edges and a threshold that depends on the degrees
        (:func:`~starfc.clustering.pipeline.cluster_dynamic`), with the thresholds of ``config.dynamic``. Both work with
        every type of model.
    model_folder : path, optional
        Folder of the weights. Default: ``config.pretrained``.
    tau1, tau2 : float, optional
        Thresholds. Default: those stored with the weights, or else those of the config
        (:func:`~starfc.config.thresholds.resolve`).
    features, labels : path, optional
        Features to cluster instead of the config's test split, and their labels if there are any. ``features`` may also
        be an open split that holds both.
    knn_graph : path, optional
        Path of a stored kNN graph of these features. Default: the path that the config names.
    min_cluster_size : int
        Instances of smaller clusters get label -1 in the files. The metrics and the other numbers of the record are
        computed before that.
    out : path
        Folder for the results.
    keep_edges : bool
        Write the parsed edges too. If False, edges of an earlier run in ``out`` are removed.
    files : path or list, optional
        Files of the instances, for the column ``file`` of clusters.parquet (:mod:`starfc.data.instance_files`).
        Default: those that a table of features names.
    gathered : path, optional
        Temporary file with the features that were read from stdin, a URL or a folder of parts. It is moved to
        ``out/features.npy``.
    inputs : paths, optional
        Other files that were read. The results must not replace them; ``features`` and ``labels`` are protected too.
    overwrite : bool
        Whether to replace files in ``out`` that no earlier run wrote, and a run that instances were added to.
    shards : ShardOptions, optional
        Run neighbour search and scoring as tasks on shards (:mod:`starfc.shards`). Default: in this process.

    Returns
    -------
    dict
        The record, which is also written to ``out/run.json``. :func:`cluster_text` prints it as text.

    Raises
    ------
    InputError
        There is a mistake in the input. No earlier file has been changed.
    """
    if refinement == "dynamic" and config.partition.type != "components":
        raise InputError(
            f"{word('partition.type')}: {config.partition.type!r} does not use the dynamic thresholds; use the fixed "
            f"refinement{advice(', or set {} to components', 'partition.type')}"
        )
    chosen = {name: tau for name, tau in (("tau1", tau1), ("tau2", tau2)) if tau is not None}
    if shards is not None:
        require_kind(config.kind)
    if shards is not None and knn_graph is not None:
        raise InputError(f"{word('knn_graph_path')}: {word('engine')} builds its own graph; leave one of them out")
    if chosen:
        config = with_changes(config, {"dynamic": chosen} if refinement == "dynamic" else chosen)
    read = [path for path in (features, labels, files, *inputs) if isinstance(path, str | Path)]
    also = () if gathered is None else ("features.npy",)
    with (
        device_limit(config.device_memory_bytes()),
        changing(out, CLUSTER, also=also, inputs=read, overwrite=overwrite) as change,
    ):
        if gathered is not None:
            change.take(gathered, "features.npy")
        change.removed += kept_names(change.folder)  # of the former run
        record = _run(
            config, (tau1, tau2), change, refinement, model_folder, features, labels, knn_graph, min_cluster_size,
            keep_edges, files, shards,
        )  # fmt: skip
    return record


def _run(
    config: Config,
    explicit: tuple[float | None, float | None],
    change: Change,
    refinement: str,
    model_folder: str | Path | None,
    features: str | Path | Split | None,
    labels: str | Path | None,
    knn_graph: str | Path | None,
    min_cluster_size: int,
    keep_edges: bool,
    files: str | Path | Files | None,
    shards: ShardOptions | None,
) -> dict[str, Any]:
    threads, device = set_threads(config.threads), choose_device(config.device)
    if shards is not None and uses_torch(device):
        level = logging.INFO if config.device == "auto" else logging.WARNING
        log.log(level, "%s: %s is not used, because tasks compute on the CPU", word("device"), device)
        device = choose_device("cpu")
    stages, out = Stages(config.memory_limit_bytes()), change.folder
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")

    split, graph_path = open_test_split(config, features, labels)
    if features is None:
        change.inputs.append(Path(split.features.name))
    of_rows = files_beside(split.features.name, len(split))
    if files is not None:
        of_rows = read_files(files, len(split), known=of_rows) if isinstance(files, str | Path) else files
    recognised = fingerprint(split.features.array)
    if knn_graph is not None:
        graph_path = stored_graph(knn_graph)
    model_folder = Path(os.path.normpath(config.pretrained if model_folder is None else model_folder))
    model = open_model(config, model_folder)
    decided = resolve(explicit, config, model, refinement)

    stored: Path | None = None
    with ExitStack() as stack:
        if shards is None:
            make_graph, stored = graph_source(config, model.kind.structural, graph_path, out)
            how: dict[str, Any] = {"make_graph": make_graph, "graph_of_all": stored}
        else:
            if graph_path is not None and find_graph(graph_path) is not None:
                log.info("%s: is not read, because %s builds its own kNN graph", graph_path, word("engine"))
            search = search_of(config)
            how = stack.enter_context(on_shards(shards, model, search, out, threads, keep_graph=keep_edges))
        done = cluster_features(
            split.features,
            model,
            settings_of(config, decided, refinement),
            keep_edges=keep_edges,
            device=device,
            stages=stages,
            scratch=out,
            **how,
        )
    result, graph, num_copies = done.result, done.prepared.graph, done.prepared.num_copies

    metrics: dict[str, Any] = {}
    if split.labels is not None and config.metrics:
        with stages.stage("metrics"):
            metrics = evaluate(split.labels, result.labels, tuple(config.metrics))
            if recalls := graph.info.get("recalls"):
                identities = split.labels[done.prepared.rows]
                recalls["same_identity"] = same_identity_recall(done.prepared.features, graph, identities, config.seed)
    num_clusters, num_singletons = result.num_clusters, int((np.bincount(result.labels) == 1).sum())
    kept = 0 if result.parsed is None else int(np.count_nonzero(result.parsed.kept))
    with stages.stage("write", needs=16 * kept + 150 * len(split)):
        measures = {} if result.parsed is None else instance_columns(result.parsed, result.labels)
        if of_rows is not None:
            measures["file"] = file_column(of_rows)
        result = without_small(result, min_cluster_size)
        write_clustering(change.place, result.labels, result.confidence, measures)
        if result.parsed is not None:
            write_edges(change.place, result.parsed)
    record = {
        "metrics": metrics,
        "labelled": split.labels is not None,
        "num_clusters": num_clusters,
        "num_instances": len(split),
        "num_unlabelled": 0 if split.labels is None else int(np.count_nonzero(~labelled(split.labels))),
        "num_singletons": num_singletons,
        "min_cluster_size": min_cluster_size,
        "num_left_out": int((result.labels < 0).sum()),
        "num_invalid_rows": len(done.prepared.invalid),
        "num_copies": num_copies,
        "refinement": refinement,
        "partition": config.partition.type,
        "thresholds": {"tau1": done.tau1, "tau2": done.tau2},
        "thresholds_source": decided.source,
        "choices": choices(result, config, decided, done.prepared, stored is not None),
        "estimate": None if result.estimate is None else vars(result.estimate),
        "doubts": done.doubts,
        "diagnostics": done.diagnostics,
        "knn_graph": {"k": graph.k, **graph.info},
        "stages": [vars(stage) for stage in stages.finished],
        "peak_rss_mb": max(stage.peak_rss_mb for stage in stages.finished),
        "config": config.as_dict(),
        "features": str(Path(split.features.name).absolute()),
        "key": split.key,
        "features_fingerprint": recognised,
        "feature_dim": split.features.dim,
        "normalise": split.features.normalise,
        "model": str(model_folder),
        "seed": config.seed,
        "started": started,
        **environment(threads, device),
    }
    write_run(change.place, record)
    return record


def choices(
    result: Clustering, config: Config, decided: Thresholds, prepared: Prepared, stored: bool
) -> dict[str, dict[str, Any]]:
    """Return the settings that were chosen for these data or given by the user, each with a reason of one line.

    Parameters
    ----------
    result : Clustering
        The clustering.
    config : Config
        The config.
    decided : Thresholds
        The thresholds before the clustering. A threshold that is None was then chosen from the data.
    prepared : Prepared
        The rows that were clustered, and how.
    stored : bool
        Whether the kNN graph was stored before. Such a graph has all rows.

    Returns
    -------
    dict
        ``value`` and ``reason`` by the name of the setting.
    """
    n, k, num_copies = prepared.graph.num_nodes, prepared.graph.k, prepared.num_copies
    reason = "as the config says" if k == config.knn else f"there are only {n:,} distinct instances"
    copies = {"value": "collapse", "reason": f"{num_copies:,} instances are copies of others"}
    if config.copies == "keep":
        copies = {"value": "keep", "reason": GIVEN}
    elif stored and not num_copies:
        copies = {"value": "keep", "reason": "the given kNN graph has all rows"}
    default = config.partition.type == config.kind.partition
    found: dict[str, dict[str, Any]] = {
        "knn": {"value": k, "reason": reason},
        "partition": {"value": config.partition.type, "reason": "the default of the model" if default else GIVEN},
        "copies": copies,
    }
    if result.choice is not None:
        found["tau1"] = {"value": result.choice.tau1, "reason": decided.reason or result.choice.reason}
        found["adapt"] = _adaptation(result, config)
        found["reach"] = _reach(result, config)
    return found


def _reach(result: Clustering, config: Config) -> dict[str, Any]:
    """Return how many times farther than the neighbour lists the clustering searched, and why."""
    if config.reach == "off" or config.partition.type == "components":
        off = config.reach == "off"
        return {"value": 1, "reason": f"{word('reach')} is off" if off else "only communities are searched again"}
    if result.reached is None:
        return {"value": 1, "reason": f"too few clusters have {LEAST} rows or more, or there are few rows"}
    counts = result.reached
    found = f"{counts.joined} clusters became {counts.into}" if counts.joined else "no clusters were joined"
    if counts.apart:
        found += f"; taken apart, because they mix identities: {counted(counts.apart, 'cluster')}"
    return {
        "value": counts.times,
        "reason": f"searched farther in samples of {_part(counts.times)} of the rows: {found}",
    }


def _part(times: int) -> str:
    """Return the share of the rows in a sample in which lists reach ``times`` times as far, as a word."""
    return "a third" if times == TIMES else f"1/{times}"


def _adaptation(result: Clustering, config: Config) -> dict[str, Any]:
    """Return how many rounds of adaptation were kept, and why."""
    if config.adapt == "off" or config.partition.type != "infomap":
        off = config.adapt == "off"
        reason = f"{word('adapt')} is off" if off else "the model adapts to communities of infomap only"
        return {"value": 0, "reason": reason}
    expected = result.rounds
    if len(expected) < 2:
        return {"value": 0, "reason": "the clusters or edges are too few or too doubtful to learn from"}
    kept = stayed(expected)
    rise = " -> ".join(f"{100 * value:.2f}" for value in kept)
    reason = f"expected F by the adapted model: {rise}" if len(kept) > 1 else f"expected F {rise}"
    if len(kept) < len(expected):
        change = f"gained less than {100 * GAIN:g}" if expected[-1] >= kept[-1] else "lowered it"
        reason += f"; one more round ({100 * expected[-1]:.2f}) {change} and was undone"
    if len(result.labels) > MANY:
        reason += f"; in a part of the set, because there are more than {MANY:,} rows"
    return {"value": len(kept) - 1, "reason": reason}


def open_model(config: Config, folder: Path) -> Model:
    """Load the model of a folder with the scales of the config. Raise InputError unless type and widths agree."""
    kwargs = config.model.kwargs
    model = load_model(folder, kwargs.feature_dim, kwargs.nhid, tuple(config.hierarchical.scales))
    if model.kind is not config.kind:
        raise InputError(
            f"{folder}: holds weights of a model of type {model.kind.name!r}, but model.type of the config is "
            f"{config.model.type!r}; name a config of that type, such as configs/{model.kind.config}, or other weights"
        )
    return model


def settings_of(config: Config, decided: Thresholds, refinement: str) -> Settings:
    """Return the settings of a clustering: those of the config, with the given thresholds."""
    return Settings(
        tau1=decided.tau1,
        tau2=decided.tau2,
        refinement=refinement,
        k=config.knn,
        search=search_of(config),
        partition=config.partition.type,
        resolution=config.partition.resolution,
        adapt=config.adapt,
        reach=config.reach,
        th_sim=config.th_sim,
        seed=config.seed,
        invalid_rows=config.invalid_rows,
        copies=config.copies,
        giant_share=config.giant_share,
    )


def cluster_text(record: dict[str, Any], out: str | Path) -> str:
    """Return a run's record as the text that commands print: stages, metrics, diagnostics, clusters."""
    tau1, tau2 = record["thresholds"]["tau1"], record["thresholds"]["tau2"]
    components = record["partition"] == "components"
    how = f"{record['refinement']} refinement" if components else f"{record['partition']} communities"
    if record["metrics"]:
        metrics = [metrics_table(record["metrics"])]
    else:
        metrics = [] if record["labelled"] else ["no labels: no metrics"]
    lines = [
        Stages(finished=[Stage(**stage) for stage in record["stages"]]).table(),
        "",
        *metrics,
        "",
        diagnostics_table(record["diagnostics"], tau1, tau2, record["refinement"], record["partition"]),
        "",
        f"{counted(record['num_instances'], 'instance')}, {counted(record['num_clusters'], 'cluster')} "
        f"({record['num_singletons']:,} of one instance), {how}, tau1 {tau1:g}, tau2 {tau2:g}",
    ]
    if record.get("num_copies", 0):
        lines.append(f"{record['num_copies']:,} instances are copies of others, and have the same labels as these")
    if recalls := record["knn_graph"].get("recalls"):
        lines.append(f"approximate neighbour lists {Recalls.text_of(recalls)}")
    if record.get("estimate"):
        e = {name: 100 * value for name, value in record["estimate"].items() if value is not None}
        agreed = ""
        if "agreement" in e:
            part = _part(record["choices"]["reach"]["value"])
            agreed = f"; {part} of the rows, clustered alone, agrees to F {e['agreement']:.1f}"
        lines.append(
            f"expected without labels: pairwise precision {e['precision']:.1f}, recall {e['recall']:.1f}, F "
            f"{e['fscore']:.1f}; BCubed F {e['bcubed']:.1f}{agreed}"
        )
        if few := record["choices"].get("weights"):
            knn = record["choices"]["knn"]["value"]
            lines.append(f"weights {few['value']!r}, lists of {knn - 1} neighbours: {few['reason']}")
        lines.append(f"tau1 {tau1:g}: {record['choices']['tau1']['reason']}")
        if adapted := record["choices"].get("adapt"):
            times = {0: "not adapted", 1: "adapted once"}.get(adapted["value"], f"adapted {adapted['value']} times")
            lines.append(f"{times}: {adapted['reason']}")
        if (reached := record["choices"].get("reach")) and reached["value"] > 1:
            lines.append(reached["reason"])
    if record.get("min_cluster_size", 1) > 1:
        left_out, size = record["num_left_out"], record["min_cluster_size"]
        lines.append(f"{left_out:,} instances in clusters of fewer than {size:,} instances have label -1")
    return "\n".join([*lines, f"written to {out}: labels.npy, labels.meta, clusters.parquet, run.json"])
