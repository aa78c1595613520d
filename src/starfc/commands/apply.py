"""``starfc apply``: make the clusters of a run again around marks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starfc.commands import options
from starfc.errors import InputError
from starfc.runtime.words import counted

if TYPE_CHECKING:
    from starfc.answers.marks import Marks
    from starfc.runs.apply import Applied, Marked

LINES = 20  # so many joins, divisions and doubtful answers are printed


def apply(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run of `starfc cluster`.")],
    marks: Annotated[
        Path | None,
        typer.Argument(metavar="MARKS", help="Marks: the export of the review page, or answered questions (JSON)."),
    ] = None,
    same: Annotated[
        list[str] | None,
        typer.Option("--same", metavar="A,B", help="Two rows of one identity (must-link); may be repeated."),
    ] = None,
    different: Annotated[
        list[str] | None,
        typer.Option("--different", metavar="A,B", help="Two rows of two identities (cannot-link); may be repeated."),
    ] = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Make the clusters of a run again so that marks hold, and keep the marks.

    Marks come from a file, from --same and --different, or from both: a pair given here replaces an opposite one of the
    file. Only clusters in which a mark does not hold change. Cluster ids do not change, apart from clusters that are
    joined or divided. The marks also hold after `starfc assign`. `starfc undo` takes the last call back.
    """
    if marks is None and not same and not different:
        raise InputError("MARKS: nothing to apply; give a file of marks, --same A,B or --different A,B")
    options.set_messages(quiet, verbose)
    from starfc.runs.apply import Marked
    from starfc.runtime.machine import set_threads

    pairs = _rows("--same", same), _rows("--different", different)
    set_threads(threads)
    marked = Marked(folder)
    applied = marked.apply(_marks(marked, marks, *pairs))
    options.show(
        {**applied.record(), "folder": str(folder)}, applied_text(applied, folder), as_json=as_json, quiet=quiet
    )


def _rows(option: str, values: list[str] | None) -> list[list[int]]:
    """Return the pairs of rows that an option names."""
    pairs = []
    for value in values or []:
        ends = value.split(",")
        if len(ends) != 2 or not all(end.strip().isdecimal() and len(end) < 19 for end in ends):
            raise InputError(f"{option}: two row ids such as 3,8 needed; found {value!r}")
        pairs.append([int(end) for end in ends])
    return pairs


def _marks(marked: Marked, path: Path | None, same: list[list[int]], different: list[list[int]]) -> Marks | Path:
    """Return the marks of the file and those of the options together."""
    from starfc.answers.marks import Marks

    rows = len(marked.labels)
    if path is not None and not same and not different:
        return path
    must = Marks.of(rows, must_link=same, name="--same").must
    cannot = Marks.of(rows, cannot_link=different, name="--different").cannot
    given = Marks.of(rows, must, cannot, name="--same, --different")
    if path is None:
        return given
    read = marked.read(path)
    return replace(read.added(given), unanswered=read.unanswered)


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
    if applied.stayed:
        ids = list(map(str, applied.stayed))
        where = ("cluster " if len(ids) == 1 else "clusters ") + ", ".join(ids[:LINES])
        where += ", ..." if len(ids) > LINES else ""
        count = counted(sum(applied.stayed.values()), "instance")
        lines.append(f"{count} added or moved since then: still in {where}, which the step made")
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
