"""``starfc convert``: features or labels from one format to another."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from starfc.commands import options
from starfc.errors import InputError


class Dtype(str, Enum):
    """Numbers of features."""

    float16 = "float16"
    float32 = "float32"


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="File of features or labels; - is .npy from stdin.")],
    target: Annotated[str, typer.Argument(metavar="OUT", help="File to write, format by suffix; - is .npy to stdout.")],
    labels: Annotated[bool, typer.Option("--labels", help="Take the labels of a file that holds both.")] = False,
    feature_dim: options.FeatureDim = None,
    key: options.KeyOfTable = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the features written. Default: as read, float64 as float32.")
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Convert features or labels.

    A block at a time, so that files may be larger than memory. Features: .npy, .npz, .bin, .parquet, .h5, .hdf5,
    .fvecs. Labels: .meta, .txt, .npy, .csv, .parquet, and from an .npz; text is numbered by first appearance.
    """
    if target == options.STREAM and as_json:
        raise InputError("--json: needs a file to write to; - puts that on stdout instead")
    options.set_messages(quiet)
    from starfc.data.convert import LABELS
    from starfc.data.convert import convert as written

    record = written(source, target, feature_dim, dtype and dtype.value, LABELS if labels else None, key)
    if record["kind"] == LABELS:
        text = f"{record['rows']:,} labels of {record['identities']:,} identities"
    else:
        text = f"{record['rows']:,} x {record['dim']:,} features of {record['dtype']}"
    options.show(
        {**record, "in": source, "out": target},
        f"{target}: {text}",
        as_json=as_json,
        quiet=quiet or target == options.STREAM,
    )
