"""``starfc explain``: explain why two instances share a cluster, or do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from starfc.commands import options


def explain(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a run with stored edges (-o of `starfc cluster`).")
    ],
    a: Annotated[int, typer.Argument(metavar="A", help="Row of an instance; the first row is 0.")],
    b: Annotated[int, typer.Argument(metavar="B", help="Row of another instance.")],
    as_json: options.Json = False,
) -> None:
    """Explain why two instances share a cluster, or do not.

    Prints the strongest path of edges between them, with p, node intimacy and similarity of each edge. If they are in
    different clusters, prints which edges of the path fail a threshold, and by how much.
    """
    from starfc.errors import InputError, MissingFileError
    from starfc.review.explain import explain_pair
    from starfc.review.pairs import Pairs
    from starfc.runs.folder import Run

    run = Run.open(folder)
    for row in {a, b} & set(run.removed):
        raise InputError(f"row {row}: was removed from {folder} and has no edges; name a row that is still there")
    try:
        features = run.features()
    except MissingFileError as error:
        typer.echo(f"{error}; the explanation leaves out similarities", err=True)
        features = None
    columns = run.list_length
    found = explain_pair(Pairs.of(run.parsed), run.labels, run.rule, a, b, features, columns)
    print(json.dumps(found.as_dict()) if as_json else found.text())
