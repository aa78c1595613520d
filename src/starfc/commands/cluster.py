"""``starfc cluster``: cluster features."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from starfc.commands import options
from starfc.commands.options import PartitionName, RefinementName
from starfc.errors import InputError


def cluster(
    features: options.FeaturesFile,
    out: Annotated[
        str,
        typer.Option("--out", "-o", metavar="DIR", help="Folder or URL for the results; - prints one label per line."),
    ],
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of weights or of a training run. Default: the packaged weights."),
    ] = None,
    labels: options.LabelsOption = None,
    tau1: Annotated[float | None, typer.Option(help="Keep edges with p > tau1. Default: chosen from the data.")] = None,
    tau2: Annotated[
        float | None, typer.Option(help="For components: keep only edges whose node intimacy is > tau2 as well.")
    ] = None,
    k: options.Neighbours = None,
    knn: options.SearchMethod = None,
    recall: options.Recall = None,
    knn_graph: options.KnnGraph = None,
    min_cluster_size: Annotated[
        int,
        typer.Option(min=1, max=2**62, help="Instances of smaller clusters get label -1. Metrics are computed before."),
    ] = 1,
    partition: Annotated[
        PartitionName | None,
        typer.Option(help="Connected components of the refined edges, or communities (default)."),
    ] = None,
    refinement: Annotated[
        RefinementName,
        typer.Option(help="fixed: the same thresholds everywhere; dynamic: undirected, thresholds by degree."),
    ] = RefinementName.fixed,
    edges: Annotated[
        bool, typer.Option(help="Store the scored edges, for `starfc assign`, `explain` and `report`.")
    ] = True,
    files: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Files of the instances, to be kept with their clusters: a list (one path per line), a folder of "
            "pictures, or a table with paths. Default: the column file or path of FEATURES, if it has one.",
        ),
    ] = None,
    invalid_rows: options.Invalid = None,
    copies: options.CopiesOption = None,
    adapt: options.AdaptOption = None,
    reach: options.ReachOption = None,
    marks: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Marks to apply to the clusters: pairs that are, and are not, one person."),
    ] = None,
    overwrite: options.Overwrite = False,
    feature_dim: options.FeatureDim = None,
    key: options.Key = None,
    memory: options.Memory = None,
    threads: options.Threads = None,
    device: options.Device = None,
    device_memory: options.DeviceMemory = None,
    seed: options.Seed = None,
    engine: options.EngineOption = None,
    workers: options.Workers = None,
    address: options.Address = None,
    store: options.StoreOption = None,
    shard_rows: options.ShardRows = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Cluster embeddings. The number of clusters need not be known.

    Writes labels.npy, labels.meta, clusters.parquet (row, label, confidence, file) and run.json into the folder. Also
    stores the kNN graph, the scored edges, and features that were read from stdin, a URL or a folder of parts. With
    --engine, --no-edges leaves the kNN graph out too. Labels are 0..C-1; 0 is the largest cluster. Results for a URL
    are uploaded at the end.
    """
    if out == options.STREAM and as_json:
        raise InputError("--json: needs a folder for the results (-o DIR); with -o - stdout is used for the labels")
    if marks is not None and (out == options.STREAM or not edges):
        raise InputError("--marks: needs a folder for the results (-o DIR) and the edges of the run (no --no-edges)")
    options.set_messages(quiet, verbose)
    from starfc.answers.marks import require_consistent
    from starfc.answers.marks_file import read_marks
    from starfc.commands.apply import applied_text
    from starfc.commands.opening import opened_split
    from starfc.config.recipes import with_changes
    from starfc.data.instance_files import read_files
    from starfc.data.parts import files_of, is_gathered
    from starfc.models.checkpoint import PRETRAINED
    from starfc.runs.apply import Marked
    from starfc.runs.cluster import cluster_text, run_inference
    from starfc.storage.atomic import temporary_folder
    from starfc.storage.opened import opened
    from starfc.storage.records import RunRecord
    from starfc.storage.remote import Upload, is_url

    read = [str(name) for name in (features, labels, files, marks, knn_graph, model) if name is not None]
    model = PRETRAINED if model is None else model
    shards = options.shard_options(
        out, engine=engine, workers=workers, address=address, store=store, shard_rows=shard_rows
    )
    if shards is not None and out == options.STREAM:
        raise InputError("--engine: needs a folder for the results (-o DIR); found -o -")
    asked: dict[str, Any] = {
        **options.given(
            knn=k,
            invalid_rows=invalid_rows,
            copies=copies,
            adapt=adapt,
            reach=reach,
            memory_limit=memory,
            threads=threads,
            device=device,
            device_memory=device_memory,
            seed=seed,
        ),
        **options.search_options(knn, recall),
    }
    if partition is not None:
        asked["partition"] = {"type": partition.value}
    with ExitStack() as stack:
        upload = Upload(out, overwrite, [name for name in read if name != options.STREAM]) if is_url(out) else None
        local = out != options.STREAM and upload is None
        folder = Path(out) if local else stack.enter_context(temporary_folder())
        place, name = stack.enter_context(options.stored_features(features, folder, keep=out != options.STREAM))
        config, split = opened_split(model, asked, place, name, labels, feature_dim, key)
        if marks is not None:
            require_consistent(read_marks(marks, len(split)), len(split), str(marks))
        if refinement is RefinementName.dynamic and partition is None:
            config = with_changes(config, {"partition": {"type": "components"}})
        gathered = features == options.STREAM or is_gathered(features)
        known = files_of(features) if is_gathered(features) else None
        if known is not None and files is not None:
            known = read_files(files, len(split), known=known)
        record = run_inference(
            config,
            refinement=refinement.value,
            model_folder=model,
            tau1=tau1,
            tau2=tau2,
            features=split,
            knn_graph=knn_graph,
            min_cluster_size=min_cluster_size,
            out=folder,
            keep_edges=edges and out != options.STREAM,
            files=files if known is None else known,
            gathered=place if gathered else None,
            inputs=(None if gathered else features, labels, marks, files),
            overwrite=overwrite,
            shards=shards,
        )
        if out == options.STREAM:
            sys.stdout.write((folder / "labels.meta").read_text(encoding="utf-8"))
            return
        text = cluster_text(record, out)
        if marks is not None:
            applied = Marked(folder).apply(marks)
            record = opened(folder).json("run.json", RunRecord).as_dict() | {"metrics": record["metrics"]}
            text += f"\n\nThe figures above are those before the marks.\n{applied_text(applied, folder)}"
        if upload is not None:
            upload.send(folder)
    if shards is not None:
        shards.clear()
    options.show({**record, "out": out}, text, as_json=as_json, quiet=quiet)
