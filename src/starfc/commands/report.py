"""``starfc report``: write a static page for the review of clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from starfc.commands import options


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a run with stored edges (-o of `starfc cluster`).")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the page; open its index.html.")],
    images: options.Images = None,
    thumbnails: options.Thumbnails = 64,
    names: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Names of the instances, one per line. Default: the names of the pictures."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Identities that the data were labelled with; the page lists those that may be wrong."
        ),
    ] = None,
    questions: Annotated[
        int, typer.Option(min=0, max=1000, help="Number of questions to ask first; 0: none, which is faster.")
    ] = 50,
    overwrite: options.Overwrite = False,
    threads: options.Threads = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write a page for the review of clusters in a browser, without a server or a network.

    The page first asks the questions whose answers change the most (`starfc ask`). Of the clusters the most doubtful
    come first. Mark clusters as wrong, as the same or to be split; the page exports answers and marks for
    `starfc apply`. It opens pictures in full size from where they are. With --labels it lists the labels that the edges
    contradict.
    """
    options.set_messages(quiet, verbose)
    from starfc.data.files import read_labels
    from starfc.data.instance_files import text_of
    from starfc.errors import InputError, MissingFileError
    from starfc.review.report import SURFACE, write_report
    from starfc.runs.apply import Marked
    from starfc.runtime.machine import set_threads
    from starfc.storage.opened import opened

    set_threads(threads)
    marked = Marked(folder)
    run = marked.run
    try:
        features = run.features()
    except MissingFileError as error:
        typer.echo(f"{error}; the page leaves out projections and questions", err=True)
        features, questions = None, 0
    asked, expected, doubts = [], None, None
    if questions:
        try:
            asked = [question.record() for question in marked.questions(questions, reading=True)]
            expected, doubts = vars(marked.expected()), marked.doubts()
        except InputError as error:
            typer.echo(f"{error}; the page has no questions", err=True)
    identities = None if labels is None else read_labels(labels, len(run.labels))
    shown: Path | list[str] | None = names
    files = marked.files
    if names is None and images is None and files is not None:
        shown = [text_of(file and Path(file.name)) for file in files]
    surfaces = [opened(place).verified(SURFACE) for place in (folder, run.record["model"])]
    found = write_report(
        out,
        run.labels,
        run.parsed,
        run.rule,
        removed=run.removed,
        features=features,
        images=images,
        names=shown,
        thumbnails=thumbnails,
        identities=identities,
        record=run.record,
        run=folder,
        files=files,
        surface=next((path for path in surfaces if path.is_file()), None),
        questions=asked,
        expected=expected,
        doubts=doubts,
        cluster_names=marked.names,
        title=Path(run.record["features"]).stem,
        overwrite=overwrite,
    )
    found = {**found, "page": str(out / "index.html")}
    text = (
        f"{found['instances']:,} instances, {found['clusters']:,} clusters, {found['doubtful']:,} of them doubtful, "
        f"{found['merges']:,} merge candidates\n"
        f"written to {out}: {found['files']:,} files, {found['bytes'] / 1e6:,.1f} MB; open {out / 'index.html'}"
    )
    options.show(found, text, as_json=as_json, quiet=quiet)
