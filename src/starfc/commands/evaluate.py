"""``starfc evaluate``: a clustering against the identities."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from starfc.commands import options


class Metric(str, Enum):
    """What a clustering is judged by."""

    pairwise = "pairwise"
    bcubed = "bcubed"
    nmi = "nmi"


def evaluate(
    truth: Annotated[Path, typer.Argument(metavar="GT", help=f"Identities. {options.LABELS_HELP}")],
    predicted: Annotated[Path, typer.Argument(metavar="PRED", help="Clusters, likewise; or the folder of results.")],
    metrics: Annotated[list[Metric] | None, typer.Option(help="Once for each metric. Default: all.")] = None,
    as_json: options.Json = False,
) -> None:
    """Score clusters against identities.

    Pairwise and BCubed precision, recall and F-score, and NMI. Instances of label -1 in PRED, which are in no
    cluster, count as clusters of one.
    """
    options.set_messages()
    import numpy as np

    from starfc.data.formats import read_labels
    from starfc.evaluation.metrics import evaluate as scores
    from starfc.evaluation.metrics import metrics_table
    from starfc.runtime.opened import opened

    identities = read_labels(truth)
    if predicted.is_dir():
        predicted = opened(predicted).verified("labels.npy")
    clusters = read_labels(predicted, len(identities))
    outside = np.flatnonzero(clusters == -1)
    clusters[outside] = clusters.max(initial=-1) + 1 + np.arange(len(outside))
    chosen = tuple(metric.value for metric in metrics or Metric)
    found = scores(identities, clusters, chosen)
    counts = {
        "num_instances": len(identities),
        "num_identities": len(np.unique(identities)),
        "num_clusters": len(np.unique(clusters)),
        "num_without_cluster": len(outside),
    }
    text = (
        f"{metrics_table(found)}\n\n{counts['num_instances']:,} instances, {counts['num_identities']:,} identities, "
        f"{counts['num_clusters']:,} clusters ({len(outside):,} of them instances of label -1)"
    )
    options.show({"metrics": found, **counts}, text, as_json=as_json)
