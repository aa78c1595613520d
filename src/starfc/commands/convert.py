"""``starfc convert``: convert features or labels to another file format."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from starfc.commands import options
from starfc.errors import InputError


class Dtype(str, Enum):
    """Number types that features can be written in."""

    float16 = "float16"
    float32 = "float32"


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="File of features or labels; - reads .npy from stdin.")],
    target: Annotated[
        str, typer.Argument(metavar="OUT", help="File to write; its suffix sets the format; - writes .npy to stdout.")
    ],
    labels: Annotated[
        bool, typer.Option("--labels", help="Convert the labels if the file holds features and labels.")
    ] = False,
    feature_dim: options.FeatureDim = None,
    key: options.KeyOfTable = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Number type to write. Default: the type that was read; float32 for float64.")
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Convert features or labels to another file format.

    Data are read and written in blocks, so files may be larger than memory. Formats of features: .npy, .npz, .bin,
    .parquet, .h5, .hdf5, .fvecs. Formats of labels: .meta, .txt, .npy, .csv, .parquet; they can also be read from an
    .npz. Text labels become integers in the order of first appearance.
    """
    if target == options.STREAM and as_json:
        raise InputError("--json: needs a file as OUT; with - stdout is used for the converted data")
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
