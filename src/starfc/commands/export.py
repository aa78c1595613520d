"""``starfc export``: write clusters for other programs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from starfc.commands import options
from starfc.runtime.words import counted


class ExportFormat(str, Enum):
    """Formats of an export."""

    csv = "csv"
    parquet = "parquet"
    json = "json"
    folders = "folders"
    fiftyone = "fiftyone"


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run of `starfc cluster`.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="File to write; with folders and fiftyone, folder.")
    ],
    to: Annotated[
        ExportFormat | None,
        typer.Option(
            help="A table; a folder of files for each cluster; or a folder that FiftyOne imports. Default: the table "
            "that the suffix of OUT names."
        ),
    ] = None,
    files: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Files of the instances: a list (one path per line), a folder of pictures, or a table with paths. "
            "Default: those that the run knows; in a folder these are found by their paths or names.",
        ),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="With folders: copy the files instead of linking to them. Needs --files.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file. With folders nothing is ever replaced.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write clusters for other programs: row, file, cluster, name and confidence of every instance.

    The confidence is the probability that an instance belongs to its cluster: the mean p of its edges in it. With
    folders, each cluster becomes a folder of links to its files, and instances that are alone share one; a killed
    export continues. docs/export.md has recipes for FiftyOne, immich, digiKam and spreadsheets.
    """
    options.set_messages(quiet)
    from starfc.runs.export import export as written

    record = written(folder, None if to is None else to.value, out, files=files, copy=copy, overwrite=overwrite)
    text = (
        f"{out}: {counted(record['rows'], 'instance')} in {counted(record['clusters'], 'cluster')}, "
        f"{record['named']:,} of them named"
    )
    if record["to"] == "folders":
        done = "copied" if copy else "linked"
        text += f"\n{counted(record['written'], 'file')} {done}, {record['kept']:,} were there"
        if record["missing"]:
            text += f"; {counted(record['missing'], 'does', 'do')} not exist"
    if record["without_file"]:
        text += f"\n{counted(record['without_file'], 'instance')} without a known file"
    options.show({**record, "out": str(out)}, text, as_json=as_json, quiet=quiet)
