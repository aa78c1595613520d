"""``starfc name``: give a cluster a name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from starfc.commands import options
from starfc.errors import InputError


def name(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run of `starfc cluster`.")],
    cluster: Annotated[int | None, typer.Argument(metavar="CLUSTER", help="Cluster id. Leave out to list.")] = None,
    text: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The name. Leave out to show the present one.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the name of CLUSTER.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Give a cluster a name, show its name, or list all names.

    Names stay with their clusters through `starfc assign`, `apply` and `undo`. If two clusters with names are joined,
    the name of the larger one stays, and the other is listed.
    """
    options.set_messages(quiet)
    from starfc.runs.apply import Marked

    if remove and (cluster is None or text is not None):
        raise InputError(
            "--remove: needs CLUSTER and no NAME; found " + ("no CLUSTER" if cluster is None else repr(text))
        )
    marked = Marked(folder)
    record: dict[str, Any] = {}
    before = None if cluster is None else marked.names.get(cluster)
    if cluster is not None:
        marked.require_cluster(cluster)
    if cluster is not None and (remove or text is not None):
        if remove and before is None:
            raise InputError(f"{folder}: cluster {cluster} has no name to remove")
        marked.name({cluster: text})
        record["before"] = before
    names = {label: name for label, name in sorted(marked.names.items()) if text or remove or cluster in (None, label)}
    record["names"] = {str(label): name for label, name in names.items()}
    lines = [f"{label:>8}  {name}" for label, name in names.items()]
    if remove:
        lines = [f"cluster {cluster}: the name {before!r} was removed"]
    elif not lines:
        lines = ["no cluster has a name" if cluster is None else f"cluster {cluster} has no name"]
    options.show(record, "\n".join(lines), as_json=as_json, quiet=quiet)
