"""``starfc tune``: choose thresholds on labelled data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from starfc.commands import options
from starfc.errors import InputError


def tune(
    features: options.FeaturesFile,
    labels: options.LabelsFile,
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of weights or of a training run. Default: the packaged weights."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder for the results. Default: the model's folder."),
    ] = None,
    k: options.Neighbours = None,
    knn: options.SearchMethod = None,
    recall: options.Recall = None,
    knn_graph: options.KnnGraph = None,
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
    """Choose thresholds on labelled features.

    Use features that are like the ones to cluster, with identities that the model was not trained on. The command
    clusters at every pair (tau1, tau2) of a grid and takes the best pairwise F, averaged over neighbours on the grid.
    For a structural model it takes the lowest tau1 within a standard error of the best (docs/tuning.md). The thresholds
    are for connected components. If the model makes communities by default, these are scored on the same labels, and
    the command prints which of the two is better. Writes thresholds.json, threshold_surface.csv and .png. If the folder
    is not the model's, the weights are copied too; use it with `starfc cluster --model DIR`.
    """
    if model is None and out is None:
        raise InputError("--out: needed with the packaged model, whose folder is not written to; or name a --model")
    options.set_messages(quiet, verbose)
    from starfc.commands.opening import opened_split
    from starfc.models.checkpoint import PRETRAINED
    from starfc.runs.tune import run_choice, tune_text
    from starfc.storage.atomic import temporary_folder

    asked = {
        **options.given(
            knn=k,
            invalid_rows=invalid_rows,
            memory_limit=memory,
            threads=threads,
            device=device,
            device_memory=device_memory,
            seed=seed,
        ),
        **options.search_options(knn, recall),
    }
    model = PRETRAINED if model is None else model
    out = model if out is None else out
    with (
        temporary_folder() as temporary,
        options.stored_features(features, temporary) as (place, name),
    ):
        config, split = opened_split(model, asked, place, name, labels, feature_dim, key)
        chosen = run_choice(
            config,
            model_folder=model,
            features=split,
            knn_graph=knn_graph,
            out=out,
            inputs=(place, labels),
            overwrite=overwrite,
        )
    record = {"out": str(out), "thresholds": {refinement: vars(point) for refinement, point in chosen.items()}}
    options.show(record, tune_text(chosen, out), as_json=as_json, quiet=quiet)
