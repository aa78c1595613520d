"""``starfc name``: give a cluster a name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from starfc.commands import options
from starfc.errors import InputError


def name(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run of `starfc cluster`.")],
    cluster: Annotated[int | None, typer.Argument(metavar="CLUSTER", help="Cluster id. Leave out to list.")] = None,
    text: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The name. Leave out to take the name away.")
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Give a cluster a name, or list the names.

    Names stay with their clusters through `starfc assign`, `apply` and `undo`. If two clusters with names are joined,
    the name of the larger one stays, and the other is listed.
    """
    options.set_messages(quiet)
    from starfc.runs.apply import Marked

    marked = Marked(folder)
    if cluster is not None:
        if text is None and cluster not in marked.names:
            raise InputError(f"{folder}: cluster {cluster} has no name to take away")
        marked.name({cluster: text})
    shown = (
        "\n".join(f"{label:>8}  {known}" for label, known in sorted(marked.names.items())) or "no cluster has a name"
    )
    record = {"names": {str(label): known for label, known in sorted(marked.names.items())}}
    options.show(record, shown, as_json=as_json, quiet=quiet)
