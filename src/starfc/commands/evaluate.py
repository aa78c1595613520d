"""``starfc evaluate``: compare clusters with the true identities."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starfc.commands import options
from starfc.errors import InputError
from starfc.runtime.words import counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
    errors: Annotated[
        bool,
        typer.Option("--errors", help="List the labels of GT that the edges of the run PRED contradict most."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="With --errors: write all of them: .csv, .parquet or .json."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing FILE.")] = False,
    as_json: options.Json = False,
    quiet: options.QuietBesideResult = False,
) -> None:
    """Compare clusters with the true identities, or find identities that are wrong.

    Computes pairwise and BCubed precision, recall and F-score, and NMI. An instance with label -1 in PRED is in no
    cluster and counts as a cluster of its own. Instances with label -1 in GT have no known identity and are left out.
    Instances that `starfc assign` removed from the run are left out too.

    With --errors, GT is what may be wrong: labels of single instances, outliers, identities that are one, identities
    that are two, and near-duplicates, each with a score. That of a label is the probability that it is wrong; labels
    below 0.05 are left out (docs/reviewing.md).
    """
    if (out is not None or errors) and not (errors and predicted.is_dir()):
        needed = "--errors" if out is not None and not errors else "the folder of a run with stored edges as PRED"
        raise InputError(f"{'--out' if out is not None and not errors else '--errors'}: needs {needed}")
    options.set_messages(quiet)
    import numpy as np

    from starfc.data.files import read_labels
    from starfc.evaluation.metrics import evaluate as scores
    from starfc.evaluation.metrics import labelled, metrics_table
    from starfc.storage.opened import opened

    identities = given = read_labels(truth)
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
        f"{metrics_table(found)}\n\n{counted(counts['num_instances'], 'instance')}, "
        f"{counted(counts['num_identities'], 'identity', 'identities')}, "
        f"{counted(counts['num_clusters'], 'cluster')} ({len(outside):,} of them instances with label -1)"
    )
    left_out = {"num_unlabelled": "of unknown identity (-1 in GT)", "num_removed": "removed"}
    text += "".join(
        f"\n{counted(counts[key], 'instance')} left out: {why}" for key, why in left_out.items() if counts[key]
    )
    record = {"metrics": found, **counts}
    if errors:
        record["errors"], told = _errors(predicted, given, removed, out, overwrite)
        text += f"\n\n{told}"
    options.show(record, text, as_json=as_json)  # the result, which --quiet does not leave out


def _errors(
    folder: Path, given: NDArray[np.int64], removed: list[int], out: Path | None, overwrite: bool
) -> tuple[dict[str, Any], str]:
    """Find the labels that a run's edges contradict, and write them to a file. Return a record and a text."""
    from starfc.clustering.diagnostics import DOUBTFUL_F
    from starfc.data.tables import TABLE_FORMATS, require_new, rows_of, write_table
    from starfc.errors import MissingFileError
    from starfc.review.label_errors import label_issues
    from starfc.review.label_tables import issue_counts, issues_table, issues_text, top_issues
    from starfc.review.pairs import Pairs
    from starfc.runs.folder import Run
    from starfc.runs.outputs import read_instances

    if out is not None:
        if out.suffix[1:] not in TABLE_FORMATS:
            raise InputError(f"{out}: the suffix must be .csv, .parquet or .json; found {out.suffix or 'no suffix'!r}")
        require_new(out, overwrite)
    run = Run.open(folder)
    given[removed] = -1
    try:
        features = run.features()
    except MissingFileError as error:
        typer.echo(f"{error}; near-duplicates are left out", err=True)
        features = None
    every = label_issues(Pairs.of(run.parsed), given, run.labels, features)
    issues = every.doubtful()
    table = issues_table(issues, read_instances(folder, len(given))[1])
    text = issues_text(issues, int((given >= 0).sum()))
    expected = (run.record.get("estimate") or {}).get("fscore", 1)
    if expected < DOUBTFUL_F:
        text += (
            f"\n\nthe expected F of this run is {100 * expected:.1f}: its edges tell identities apart less well, so "
            "this list is less reliable than usual"
        )
    if out is not None:
        write_table(out, table, out.suffix[1:], overwrite)
        text += f"\n\nall {len(issues):,}: {out}"
    top = list(rows_of(table.take(top_issues(issues))))
    record = {
        "expected_wrong": round(issues.expected, 1),
        "found": issue_counts(issues),
        "left_out": len(every) - len(issues),
        "top": top,
    }
    return record, text


def _removed(folder: OpenedFolder) -> list[int]:
    """Return the rows that ``starfc assign`` has removed from a run."""
    from starfc.storage.records import Removals

    if not folder.has("run.json"):
        return []
    return [row for step in folder.json("run.json", Removals).steps for row in step.removed]
