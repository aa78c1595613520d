"""``starfc apply``: make the clusters of a run again around marks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starfc.commands import options
from starfc.runtime.words import counted

if TYPE_CHECKING:
    from starfc.answers.marks import Marks
    from starfc.runs.apply import Applied

LINES = 20  # so many joins, divisions and doubtful answers are printed


def apply(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run of `starfc cluster`.")],
    marks: Annotated[
        Path,
        typer.Argument(metavar="MARKS", help="Marks: the export of the review page, or answered questions (JSON)."),
    ],
    threads: options.Threads = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make the clusters of a run again so that marks hold, and keep the marks.

    Only clusters in which a mark does not hold change. Cluster ids do not change, apart from clusters that are joined
    or divided. The marks also hold after `starfc assign`. `starfc undo` takes the last call back.
    """
    options.set_messages(quiet)
    from starfc.runs.apply import Marked
    from starfc.runtime.machine import set_threads

    set_threads(threads)
    applied = Marked(folder).apply(marks)
    options.show(
        {**applied.record(), "folder": str(folder)}, applied_text(applied, folder), as_json=as_json, quiet=quiet
    )


def applied_text(applied: Applied, folder: Path) -> str:
    """Return the result of a step as text."""
    lines = [] if applied.given is None else [_given_text(applied.given)]
    lines.append(
        f"{counted(len(applied.rows), 'instance')} changed cluster, {counted(applied.pairs, 'pair')} of instances "
        f"changed; {counted(applied.num_clusters, 'cluster')} now"
    )
    lines += [f"  cluster {gone} is now part of cluster {into}" for into, gone in applied.joined[:LINES]]
    lines += [f"  a part of cluster {former} is now cluster {new}" for former, new in applied.divided[:LINES]]
    if applied.doubtful:
        lines.append(
            f"{counted(len(applied.doubtful), 'answer')} contradicted by stronger ones; `starfc ask` asks again:"
        )
        for one in applied.doubtful[:LINES]:
            lines.append(f"  rows {one.a[0]} and {one.b[0]}: {'the same' if one.same else 'different'}")
    lines += [one.text() for one in applied.lost]
    lines.append(f"{counted(applied.steps, 'step')} can be undone; {folder} is up to date")
    return "\n".join(lines)


def _given_text(marks: Marks) -> str:
    """Return the numbers of marks that were read as text."""
    text = (
        f"{counted(len(marks.answers), 'answer')}, {counted(len(marks.must), 'must-link')} and "
        f"{counted(len(marks.cannot), 'cannot-link')} read"
    )
    if marks.unanswered:
        text += f"; {marks.unanswered:,} of {counted(marks.unanswered + len(marks.answers), 'question')} unanswered"
    return text
