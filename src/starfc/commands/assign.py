"""``starfc assign``: add new instances to the clusters of a finished run, and remove instances from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starfc.commands import options
from starfc.errors import InputError
from starfc.runtime.words import counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from starfc.incremental.state import Assigned

_LINES = 20  # so many merges and so many splits are printed; assign.json lists all of them


def assign(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run of `starfc cluster`.")],
    features: Annotated[
        Path | None, typer.Argument(metavar="FEATURES", help="Features of the new instances. Leave out to remove only.")
    ] = None,
    remove: Annotated[
        str | None, typer.Option(metavar="ROWS", help="Rows to remove: 3,17,20, or a file of row ids (text, .npy).")
    ] = None,
    apply_merges: Annotated[
        bool,
        typer.Option("--apply-merges", help="Make the proposed merges and splits, instead of only listing them."),
    ] = False,
    labels: Annotated[
        Path | None, typer.Option("--labels", metavar="FILE", help="Identities of all rows, to compute the metrics.")
    ] = None,
    key: options.Key = None,
    files: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Files of the new instances: a list (one path per line), a folder of pictures, or a table with paths.",
        ),
    ] = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Add instances to the clusters of a run, or remove some, without clustering everything again.

    Cluster ids and row ids do not change. New rows follow the existing ones. The new edges may show that clusters
    should be merged or split: the command prints these proposals and writes them to DIR/assign.json. It makes them only
    with --apply-merges.
    """
    if features is None and remove is None and not apply_merges:
        raise InputError("FEATURES: nothing to do; give new instances, rows to remove (--remove), or --apply-merges")
    options.set_messages(quiet, verbose)
    from starfc.evaluation.metrics import metrics_table
    from starfc.runs.assign import assign as add
    from starfc.runtime.machine import set_threads
    from starfc.runtime.stages import Stages
    from starfc.storage.opened import opened
    from starfc.storage.records import RunRecord

    set_threads(threads)
    stages = Stages()
    rows = () if remove is None else _rows(remove)
    assigned = add(
        folder, features, remove=rows, apply_merges=apply_merges, labels=labels, key=key, files=files, stages=stages
    )
    metrics = opened(folder).json("run.json", RunRecord).as_dict()["metrics"]
    if as_json:
        print(json.dumps({**assigned.record(), "metrics": metrics, "folder": str(folder)}))
    elif not quiet:
        print(
            "\n".join([stages.table(), "", *([metrics_table(metrics), ""] if metrics else []), _text(assigned, folder)])
        )


def _rows(remove: str) -> NDArray[np.integer]:
    """Return the row ids that ``--remove`` names: ids separated by commas, or the path of a file of ids."""
    import numpy as np

    from starfc.data.files import read_labels

    try:
        return np.array([int(row) for row in remove.split(",") if row.strip()], np.int64)
    except (ValueError, OverflowError):
        pass  # not a list of ids, so it may be a path
    try:
        if Path(remove).is_file():
            return read_labels(remove)
    except (OSError, ValueError):
        pass  # not a valid path
    shown = remove if len(remove) <= 60 else f"{remove[:57]}..."
    raise InputError(
        f"--remove: needs row ids such as 3,17,20, or a file of row ids; found {shown!r}, which is neither"
    )


def _text(assigned: Assigned, folder: Path) -> str:
    done = "done" if assigned.applied else "not done; --apply-merges makes them"
    lines = [
        f"{counted(len(assigned.labels), 'instance')} added from row {assigned.first_row:,}: {assigned.joined:,} "
        f"joined existing clusters, the others form {counted(len(assigned.created), 'new cluster')}; "
        f"{len(assigned.removed):,} removed",
    ]
    if assigned.merges:
        lines.append(f"{counted(len(assigned.merges), 'merge')} ({done}):")
        for merge in sorted(assigned.merges, key=lambda merge: -merge.score)[:_LINES]:
            a, b, *_ = merge.evidence[0]
            count = "an edge" if merge.edges == 1 else f"{merge.edges:,} edges, the best"
            lines.append(
                f"  clusters {merge.clusters[0]} and {merge.clusters[1]}: {count} between rows {a} and {b}, "
                f"p {merge.score:.3f}, intimacy {merge.intimacy:.3f}"
            )
    if assigned.splits:
        lines.append(f"{counted(len(assigned.splits), 'split')} ({done}):")
        for split in assigned.splits[:_LINES]:
            sizes = ", ".join(map(str, split.sizes[:10])) + (", ..." if len(split.sizes) > 10 else "")
            lines.append(f"  cluster {split.cluster} into {counted(len(split.sizes), 'piece')} of {sizes}")
    if max(len(assigned.merges), len(assigned.splits)) > _LINES:
        lines.append(f"  all of them: {folder / 'assign.json'}")
    lines.append(f"{counted(assigned.num_clusters, 'cluster')}; {folder} is up to date")
    return "\n".join(lines)
