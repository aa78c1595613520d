"""``starfc evaluate``: compare clusters with the true identities."""

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
    """Metrics of a clustering."""

    pairwise = "pairwise"
    bcubed = "bcubed"
    nmi = "nmi"


def evaluate(
    truth: Annotated[Path, typer.Argument(metavar="GT", help=f"True identities. {options.LABELS_HELP}")],
    predicted: Annotated[
        Path, typer.Argument(metavar="PRED", help="Clusters, in the same formats, or the folder of a run.")
    ],
    metrics: Annotated[
        list[Metric] | None, typer.Option(help="A metric to compute; may be repeated. Default: all.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Compare clusters with the true identities.

    Computes pairwise and BCubed precision, recall and F-score, and NMI. An instance with label -1 in PRED is in no
    cluster and counts as a cluster of its own. Instances with label -1 in GT have no known identity and are left out.
    Instances that `starfc assign` removed from the run are left out too.
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
                f"{predicted}: holds {len(clusters):,} rows, but {truth} has {len(identities):,} labels; give one "
                "label for each row, removed rows included"
            )
        if removed and not 0 <= min(removed) <= max(removed) < len(clusters):
            raise InputError(
                f"{predicted / 'run.json'}: removed rows must be 0..{len(clusters) - 1}, and one is not; "
                "run starfc cluster again"
            )
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
        f"{counts['num_clusters']:,} clusters ({len(outside):,} of them instances with label -1)"
    )
    left_out = {"num_unlabelled": "of unknown identity (-1 in GT)", "num_removed": "removed"}
    text += "".join(f"\n{counts[key]:,} instances left out: {why}" for key, why in left_out.items() if counts[key])
    options.show({"metrics": found, **counts}, text, as_json=as_json)


def _removed(folder: OpenedFolder) -> list[int]:
    """Return the rows that ``starfc assign`` has removed from a run."""
    from starfc.storage.records import Removals

    if not folder.has("run.json"):
        return []
    return [row for step in folder.json("run.json", Removals).steps for row in step.removed]
