"""``starfc knn``: build a kNN graph and store it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from starfc.commands import options


def knn(
    features: options.FeaturesFile,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Folder for the graph, or an .npz file in the published format."
        ),
    ],
    k: Annotated[int, typer.Option(min=2, help="Neighbours per instance, the instance itself included.")] = 80,
    knn: options.SearchMethod = None,
    recall: options.Recall = None,
    invalid_rows: options.Invalid = None,
    feature_dim: options.FeatureDim = None,
    key: options.Key = None,
    memory: options.Memory = None,
    threads: options.Threads = None,
    device: options.Device = None,
    device_memory: options.DeviceMemory = None,
    seed: options.Seed = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Build the kNN graph of features and store it.

    Use the graph with `starfc cluster --knn-graph`. Prints time, peak memory and, for an approximate search, the recall
    on sampled rows. If an approximate search is killed, the next call continues it.
    """
    options.set_messages(quiet, verbose)
    from starfc.config.config import RETIRED, Config
    from starfc.config.schema import build
    from starfc.config.splits import search_of
    from starfc.data.dataset import Features
    from starfc.data.files import read_features
    from starfc.graph.knn import fitting_k
    from starfc.graph.opening import Place, build_graph
    from starfc.graph.recall import Recalls
    from starfc.runtime.device import device_limit
    from starfc.runtime.machine import set_threads
    from starfc.runtime.stages import Stages
    from starfc.storage.atomic import prepare_folder, temporary_folder

    asked = options.given(
        knn=k,
        invalid_rows=invalid_rows,
        memory_limit=memory,
        threads=threads,
        device=device,
        device_memory=device_memory,
        seed=seed,
    )
    config = build(Config, asked | options.search_options(knn, recall), RETIRED)
    set_threads(config.threads)
    stages = Stages(config.memory_limit_bytes())
    prepare_folder(out.parent)
    with temporary_folder() as temporary, options.stored_features(features, temporary) as (place, name):
        with stages.stage("features"):
            valid, invalid = Features(
                read_features(place, feature_dim, key, room=stages.memory_left()), str(name)
            ).valid(config.invalid_rows)
            k = fitting_k(k, len(valid), str(name))
        search = search_of(config)
        with stages.stage("kNN graph", needs=search.bytes(valid, k)), device_limit(config.device_memory_bytes()):
            graph = build_graph(valid, k, search, Place.named(out), inputs=(place,), overwrite=overwrite)
    took = stages.finished[-1]
    record = {
        "out": str(out),
        "num_nodes": graph.num_nodes,
        "k": k,
        "num_invalid_rows": len(invalid),
        **graph.info,
        "seconds": took.seconds,
        "peak_rss_mb": took.peak_rss_mb,
    }
    how = "exact"
    if record["recall_rows"]:
        how = f"{record['backend']} {record['params']}, {Recalls.text_of(record['recalls'])}"
    cost = f"{took.seconds:.1f} s, peak {took.peak_rss_mb:,.0f} MB"
    text = f"{graph.num_nodes:,} nodes, k {k}, {how}, {cost}\nwritten to {out}"
    options.show(record, text, as_json=as_json, quiet=quiet)
