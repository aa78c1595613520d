"""``starfc ask``: list the questions whose answers are expected to change the most."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starfc.commands import options
from starfc.runtime.words import counted

if TYPE_CHECKING:
    from starfc.answers.questions import Question
    from starfc.runs.outputs import Files


def ask(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run of `starfc cluster`.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=100_000, help="Number of questions.")] = 50,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="File for the questions (JSON). Set `same` to true or false in its entries, and apply it.",
        ),
    ] = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
    quiet: options.QuietBesideResult = False,
    verbose: options.Verbose = False,
) -> None:
    """List questions about the clusters: is this one person? The answer expected to change the most comes first.

    A question is about two clusters that may be one, or about two parts of a cluster that may be two. Answer them in
    the file (-o) by "same": true or false, and apply it: `starfc apply DIR FILE` reads the entries with an answer.
    """
    options.set_messages(quiet, verbose)
    from starfc.answers.marks import FORMAT, VERSION
    from starfc.answers.questions import EACH
    from starfc.runs.apply import Marked
    from starfc.runtime.machine import set_threads
    from starfc.storage.atomic import require_place, write_bytes

    set_threads(threads)
    if out is not None:
        require_place(out)
    marked = Marked(folder)
    questions = marked.questions(count)
    files = marked.files
    content = {
        "format": FORMAT,
        "version": VERSION,
        "num_instances": len(marked.labels),
        "answers": [question.record(files) for question in questions],
    }
    text = _table(questions, marked.names, files)
    if 0 < len(questions) < count:
        text += (
            f"\n{counted(len(questions), 'question')} instead of {count:,}: all other doubts are about clusters of "
            f"these questions (a list has one about a cluster, or {EACH} if it is the larger side); after starfc "
            "apply, ask again"
        )
    if out is not None:
        write_bytes(out, _lines(content).encode())
        text += f"\n{out}: {counted(len(questions), 'question')} written"
        if questions:
            text += f'. Set "same" to true or false in its entries, then: starfc apply {folder} {out}'
    options.show(content, text, as_json=as_json)  # the result, which --quiet does not leave out
    if questions and files is None and not quiet:
        typer.echo(
            f"to see the rows: starfc review {folder} --images FOLDER, or give their --files to starfc cluster",
            err=True,
        )


def _lines(content: dict[str, Any]) -> str:
    """Return the file of questions: JSON with a line for each key, so that an answer is easy to fill in."""
    head = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items() if key != "answers")
    entries = [
        "  {\n" + ",\n".join(f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in entry.items()) + "\n  }"
        for entry in content["answers"]
    ]
    return f'{{\n{head},\n "answers": [\n' + ",\n".join(entries) + "\n ]\n}\n"


def _table(questions: list[Question], names: dict[int, str], files: Files | None) -> str:
    if not questions:
        return "no questions: there is no evidence that clusters should be joined or divided"

    def cluster(label: int) -> str:
        return f"{label} {names[label]}" if label in names else str(label)

    lines = [f"{'':>4} {'one person?':<42}{'sizes':>13}{'p':>7}{'gain':>11}  rows"]
    for number, one in enumerate(questions, 1):
        a, b = one.clusters
        what = f"clusters {cluster(a)} and {cluster(b)}" if a != b else f"two parts of cluster {cluster(a)}"
        again = f", asked {one.asked}x" if one.asked else ""
        rows = " | ".join(" ".join(map(str, side)) for side in one.shown)
        sizes = f"{one.sizes[0]:,} + {one.sizes[1]:,}"
        lines.append(f"{number:>4} {what + again:<42}{sizes:>13}{one.p:>7.2f}{one.gain:>11,.0f}  {rows}")
        if files is not None:
            shown = (" ".join(_name(files[row]) for row in side) for side in one.shown)
            lines.append(f"{'':>5}files: {' | '.join(shown)}")
    total = sum(one.gain for one in questions)
    lines.append(f"expected: {total:,.0f} wrong pairs of instances set right by these answers")
    return "\n".join(lines)


def _name(path: Path | None) -> str:
    """Return the name of a file without its folder; control characters never reach the terminal."""
    if path is None:
        return "-"
    return path.name if path.name.isprintable() else ascii(path.name)
