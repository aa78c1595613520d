"""``starfc assign``: new instances into a finished run's clusters, others out of it."""

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

_LINES = 20  # merges and splits that are printed; assign.json has all


def assign(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run of `starfc cluster`.")],
    features: Annotated[
        Path | None, typer.Argument(metavar="FEATURES", help="Features of the new instances; none to remove only.")
    ] = None,
    remove: Annotated[
        str | None, typer.Option(metavar="ROWS", help="Rows to take out: 3,17,20, or a file of row ids (text, .npy).")
    ] = None,
    apply_merges: Annotated[
        bool,
        typer.Option("--apply-merges", help="Do the merges and splits that the edges ask for, not only list them."),
    ] = False,
    labels: Annotated[
        Path | None, typer.Option("--labels", metavar="FILE", help="Identities of all rows, for the metrics.")
    ] = None,
    key: options.Key = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Add instances to a run's clusters, and remove some, without clustering everything again.

    Cluster ids and row ids stay what they are; new rows follow the earlier ones. Merges and splits of clusters that the
    edges ask for are listed, here and in DIR/assign.json, and done with --apply-merges only.
    """
    if features is None and remove is None and not apply_merges:
        raise InputError("FEATURES: new instances needed, or rows to take out (--remove), or --apply-merges")
    options.set_messages(quiet)
    from starfc.evaluation.metrics import metrics_table
    from starfc.runs.assign import assign as add
    from starfc.runtime.machine import set_threads
    from starfc.runtime.stages import Stages
    from starfc.storage.opened import opened
    from starfc.storage.records import RunRecord

    set_threads(threads)
    stages = Stages()
    rows = () if remove is None else _rows(remove)
    assigned = add(folder, features, remove=rows, apply_merges=apply_merges, labels=labels, key=key, stages=stages)
    metrics = opened(folder).json("run.json", RunRecord).as_dict()["metrics"]
    if as_json:
        print(json.dumps({**assigned.record(), "metrics": metrics, "folder": str(folder)}))
    elif not quiet:
        print(
            "\n".join([stages.table(), "", *([metrics_table(metrics), ""] if metrics else []), _text(assigned, folder)])
        )


def _rows(remove: str) -> NDArray[np.integer]:
    """Row ids of a list with commas, or of a file."""
    import numpy as np

    from starfc.data.files import read_labels

    try:
        return np.array([int(row) for row in remove.split(",") if row.strip()], np.int64)
    except (ValueError, OverflowError):
        pass  # then the name of a file
    try:
        if Path(remove).is_file():
            return read_labels(remove)
    except (OSError, ValueError):
        pass  # no name
    shown = remove if len(remove) <= 60 else f"{remove[:57]}..."
    raise InputError(f"--remove: row ids such as 3,17,20, or a file of them, needed; found {shown!r}, which is neither")


def _text(assigned: Assigned, folder: Path) -> str:
    done = "done" if assigned.applied else "not done: --apply-merges does that"
    lines = [
        f"{counted(len(assigned.labels), 'instance')} added, rows {assigned.first_row:,} and on: {assigned.joined:,} "
        f"joined clusters that were there, the others made {counted(len(assigned.created), 'new one')}; "
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
