"""``starfc evaluate``: a clustering against the identities."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starfc.commands import options
from starfc.errors import InputError

if TYPE_CHECKING:
    from starfc.storage.opened import OpenedFolder


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
    cluster, count as clusters of one; those of label -1 in GT, whose identity is not known, are left out, and so are
    those that `starfc assign` removed from a folder.
    """
    options.set_messages()
    import numpy as np

    from starfc.data.files import read_labels
    from starfc.evaluation.metrics import evaluate as scores
    from starfc.evaluation.metrics import labelled, metrics_table
    from starfc.storage.opened import opened

    identities = read_labels(truth)
    if predicted.is_dir():
        folder = opened(predicted)
        clusters, removed = read_labels(folder.verified("labels.npy")), _removed(folder)
        if len(clusters) != len(identities):
            raise InputError(
                f"{predicted}: clusters of {len(clusters):,} instances, and {truth} has {len(identities):,} labels; "
                "one is needed for each row, those removed since included"
            )
        if removed and not 0 <= min(removed) <= max(removed) < len(clusters):
            raise InputError(f"{predicted / 'run.json'}: rows removed that are none; run starfc cluster again")
        clusters, identities = np.delete(clusters, removed), np.delete(identities, removed)
    else:
        clusters, removed = read_labels(predicted, len(identities)), []
    outside = np.flatnonzero(clusters == -1)
    clusters[outside] = clusters.max(initial=-1) + 1 + np.arange(len(outside))
    chosen = tuple(metric.value for metric in metrics or Metric)
    found = scores(identities, clusters, chosen)
    counts = {
        "num_instances": len(identities),
        "num_identities": len(np.unique(identities[labelled(identities)])),
        "num_unlabelled": int(np.count_nonzero(~labelled(identities))),
        "num_removed": len(removed),
        "num_clusters": len(np.unique(clusters)),
        "num_without_cluster": len(outside),
    }
    text = (
        f"{metrics_table(found)}\n\n{counts['num_instances']:,} instances, {counts['num_identities']:,} identities, "
        f"{counts['num_clusters']:,} clusters ({len(outside):,} of them instances of label -1)"
    )
    left_out = {"num_unlabelled": "of unknown identity (-1 in GT)", "num_removed": "removed"}
    text += "".join(f"\n{counts[key]:,} instances left out: {why}" for key, why in left_out.items() if counts[key])
    options.show({"metrics": found, **counts}, text, as_json=as_json)


def _removed(folder: OpenedFolder) -> list[int]:
    """Rows that were taken out of a run since."""
    from starfc.storage.records import Removals

    if not folder.has("run.json"):
        return []
    return [row for step in folder.json("run.json", Removals).steps for row in step.removed]
