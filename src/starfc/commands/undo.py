"""``starfc undo``: take the last step of `starfc apply` back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from starfc.commands import options
from starfc.commands.apply import applied_text


def undo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run to which marks were applied.")],
    threads: options.Threads = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Take the last step of `starfc apply` back: its marks, and what it changed.

    Call it again for the step before. Instances that were added since stay in the clusters in which they are; the
    command says how many lie in clusters that the step made.
    """
    options.set_messages(quiet)
    from starfc.runs.apply import Marked
    from starfc.runtime.machine import set_threads

    set_threads(threads)
    applied = Marked(folder).undo()
    options.show(
        {**applied.record(), "folder": str(folder)}, applied_text(applied, folder), as_json=as_json, quiet=quiet
    )
