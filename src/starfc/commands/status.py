"""``starfc status``: show how far a run on shards is."""

from __future__ import annotations

from typing import Annotated

import typer

from starfc.commands import options

StoreName = Annotated[str, typer.Argument(metavar="STORE", help="Folder or URL of the shards of a run.")]


def status(store: StoreName, as_json: options.Json = False) -> None:
    """Show the stages of a run on shards: finished tasks, seconds, peak memory and bytes read."""
    from starfc.shards.status import status_of, status_text
    from starfc.shards.store import Store

    record = status_of(Store(store))
    options.show(record, status_text(record), as_json=as_json)
