"""``starfc explain``: why two instances are in one cluster, or are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from starfc.commands import options


def explain(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run that kept its edges: -o of `starfc cluster`.")],
    a: Annotated[int, typer.Argument(metavar="A", help="Row of an instance, from 0.")],
    b: Annotated[int, typer.Argument(metavar="B", help="Row of another.")],
    as_json: options.Json = False,
) -> None:
    """Say why two instances are in one cluster, or are not.

    Prints the strongest path of edges between them, with p, intimacy and similarity of each; where they are apart, the
    edges on it that failed, and by how much.
    """
    from starfc.errors import InputError, MissingFileError
    from starfc.review.explain import explain_pair
    from starfc.review.pairs import Pairs
    from starfc.runs.folder import Run

    run = Run.open(folder)
    for row in {a, b} & set(run.removed):
        raise InputError(f"row {row}: removed from {folder}, so nothing joins it to others; name a row that is there")
    try:
        features = run.features()
    except MissingFileError as error:
        typer.echo(f"{error}; going on without similarities", err=True)
        features = None
    columns = run.record["config"]["knn"] - 1
    found = explain_pair(Pairs.of(run.parsed), run.labels, run.rule, a, b, features, columns)
    print(json.dumps(found.as_dict()) if as_json else found.text())
