"""``starfc ask``: list the questions whose answers are expected to change the most."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starfc.commands import options

if TYPE_CHECKING:
    from starfc.answers.questions import Question


def ask(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run of `starfc cluster`.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=100_000, help="Number of questions.")] = 50,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="File for the questions (JSON). With a key `same` (true or false) in its entries it can be applied.",
        ),
    ] = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """List questions about the clusters: is this one person? The answer expected to change the most comes first.

    A question is about two clusters that may be one, or about two parts of a cluster that may be two. Answer them in
    the file (-o), and apply it: `starfc apply DIR FILE` reads the entries that have an answer.
    """
    options.set_messages(quiet)
    from starfc.answers.marks import FORMAT, VERSION
    from starfc.runs.apply import Marked
    from starfc.runtime.machine import set_threads
    from starfc.storage.atomic import require_place, write_json

    set_threads(threads)
    if out is not None:
        require_place(out)
    marked = Marked(folder)
    questions = marked.questions(count)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "num_instances": len(marked.labels),
        "answers": [question.record() for question in questions],
    }
    if out is not None:
        write_json(out, content)
    options.show(content, _table(questions, marked.names), as_json=as_json, quiet=quiet)


def _table(questions: list[Question], names: dict[int, str]) -> str:
    if not questions:
        return "no questions: there is no evidence that clusters should be joined or divided"

    def cluster(label: int) -> str:
        return f"{label} {names[label]}" if label in names else str(label)

    lines = [f"{'':>4} {'one person?':<42}{'sizes':>13}{'p':>7}{'gain':>11}  rows"]
    for number, one in enumerate(questions, 1):
        a, b = one.clusters
        what = f"clusters {cluster(a)} and {cluster(b)}" if a != b else f"two parts of cluster {cluster(a)}"
        again = f", asked {one.asked}x" if one.asked else ""
        rows = " | ".join(" ".join(map(str, side[:3])) for side in one.shown)
        sizes = f"{one.sizes[0]:,} + {one.sizes[1]:,}"
        lines.append(f"{number:>4} {what + again:<42}{sizes:>13}{one.p:>7.2f}{one.gain:>11,.0f}  {rows}")
    total = sum(one.gain for one in questions)
    lines.append(f"expected: {total:,.0f} wrong pairs of instances set right by these answers")
    return "\n".join(lines)
