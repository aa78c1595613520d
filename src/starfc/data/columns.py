"""Columns of tables: features and labels in Parquet, labels in CSV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from starfc.data.blocks import Blocks, rows_of_block
from starfc.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

LABEL_COLUMNS = ("label", "identity")


def parquet_features(path: Path) -> Blocks:
    """The column ``features``, or the only column of lists, as float32.

    Raises
    ------
    InputError
        Not Parquet, no such column, one of something else than numbers; while blocks are read, lists of different
        lengths or missing numbers.
    """
    file = open_parquet(path)
    name = features_column(file)
    if name is None:
        file.close()
        raise InputError(
            f"{path}: features are a column 'features' of lists of floats, or the only column of lists; "
            f"found {_columns(file.schema_arrow)}"
        )
    rows, dim = file.metadata.num_rows, _list_length(path, file, name)

    def parts() -> Iterator[NDArray[np.float32]]:
        at = 0
        with file:
            for batch in _read(path, file.iter_batches(rows_of_block(dim), columns=[name])):
                column = batch.column(0)
                values = column.flatten()
                lengths = column.value_lengths()
                if values.null_count or not (lengths.null_count == 0 and np.all(lengths.to_numpy() == dim)):
                    raise InputError(
                        f"{path}: column {name!r}: a list of {dim} numbers needed in every row; found something else "
                        f"among rows {at} to {at + len(column) - 1} (from 0)"
                    )
                yield values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(-1, dim)
                at += len(column)

    return Blocks(rows, dim, np.dtype(np.float32), parts())


def features_column(file: pq.ParquetFile) -> str | None:
    """The name of the column that holds features, None where none does."""
    import pyarrow.types as kinds

    def of_floats(kind: pa.DataType) -> bool:
        lists = kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)
        return lists and kinds.is_floating(kind.value_type)

    found = [field.name for field in file.schema_arrow if of_floats(field.type)]
    return "features" if "features" in found else found[0] if len(found) == 1 else None


def _list_length(path: Path, file: pq.ParquetFile, name: str) -> int:
    """The length that a column's type, or its first list, has."""
    kind = file.schema_arrow.field(name).type
    if hasattr(kind, "list_size"):
        return kind.list_size
    for batch in _read(path, file.iter_batches(1, columns=[name])):
        return len(batch.column(0)[0]) if batch.column(0).null_count == 0 else 0
    return 0


def open_parquet(path: Path) -> pq.ParquetFile:
    """A Parquet file, its end read and found whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, pre_buffer=False)  # buffers would hold the whole column
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({_first_line(error)}); was it cut short?") from None


def _read(path: Path, batches: Iterator[Any]) -> Iterator[Any]:
    import pyarrow as pa

    try:
        yield from batches
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({_first_line(error)}); was it damaged?") from None


def parquet_labels(path: Path) -> NDArray[np.int64]:
    """The column ``label`` or ``identity``, or the only one: integers, or text (numbered by first appearance)."""
    import pyarrow as pa

    with open_parquet(path) as file:
        names = file.schema_arrow.names
        name = _label_column(path, names)
        batches = list(_read(path, file.iter_batches(1 << 20, columns=[name])))
        table = pa.Table.from_batches(batches, pa.schema([file.schema_arrow.field(name)]))
    return identities(table.column(0).combine_chunks(), f"{path}: column {name!r}")


def csv_labels(path: Path) -> NDArray[np.int64]:
    """The only column, or that called ``label`` or ``identity``: integers, or text (numbered by first appearance).

    A first line is a header where it has such a name, or where it alone is no integer.
    """
    import pyarrow as pa
    from pyarrow import csv

    try:
        with path.open(encoding="utf-8-sig") as file:
            names = _cells(file.readline())
        if not names:
            return np.empty(0, np.int64)
        several = len(names) > 1
        header = several or names[0].lower() in LABEL_COLUMNS
        name = _label_column(path, names)
        table = csv.read_csv(
            path,
            csv.ReadOptions(column_names=names if several else [name], skip_rows=int(header)),
            convert_options=csv.ConvertOptions(
                include_columns=[name], column_types={name: pa.string()}, strings_can_be_null=False
            ),
        )
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: labels are UTF-8 text; {error}") from None
    except pa.ArrowException as error:
        if "Empty CSV" in str(error):
            return np.empty(0, np.int64)
        raise InputError(f"{path}: not a readable CSV ({_first_line(error)})") from None
    column = table.column(0).combine_chunks()
    if not header and len(column) > 1 and _integers(column[:1]) is None and _integers(column[1:]) is not None:
        column = column[1:]
    return identities(column, str(path))


def _cells(line: str) -> list[str]:
    import csv

    return next(csv.reader([line]), [])


def _label_column(path: Path, names: list[str]) -> str:
    named = [name for name in names if name.lower() in LABEL_COLUMNS]
    if not named and len(names) != 1:
        raise InputError(f"{path}: labels are a column 'label' or 'identity', or the only column; found {names[:8]}")
    return named[0] if named else names[0]


def identities(column: pa.Array, name: str) -> NDArray[np.int64]:
    """Integers as they are; text that is not all integers is numbered by first appearance.

    Raises
    ------
    InputError
        A missing value, or a column of something else.
    """
    import pyarrow.compute as pc
    import pyarrow.types as kinds

    if kinds.is_dictionary(column.type):
        column = column.dictionary_decode()
    text = kinds.is_string(column.type) or kinds.is_large_string(column.type)
    if not text and not kinds.is_integer(column.type):
        raise InputError(f"{name}: labels are integers or text; found {column.type}")
    missing = pc.is_null(column)
    if text:
        missing = pc.or_(missing, pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True))
    missing = missing.to_numpy(zero_copy_only=False)
    if missing.any():
        raise InputError(f"{name}: row {int(missing.argmax())} (from 0) has no label; every row needs one")
    values = _integers(column)
    if values is None:
        values = column.dictionary_encode().indices
    return values.to_numpy(zero_copy_only=False).astype(np.int64)


def _integers(column: pa.Array) -> pa.Array | None:
    """The column as int64, None where it is not one of integers."""
    import pyarrow as pa

    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        return None


def write_label_lines(path: Path, labels: NDArray[np.integer]) -> None:
    """Write labels as text, one a line."""
    from pyarrow import csv, table

    with path.open("wb") as file:  # pyarrow takes no names that are not UTF-8
        csv.write_csv(table({"label": labels}), file, csv.WriteOptions(include_header=False))


def write_label_column(path: Path, labels: NDArray[np.integer]) -> None:
    """Labels as a Parquet column or a CSV with the header ``label``."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import csv

    table = pa.table({"label": np.asarray(labels, np.int64)})
    with path.open("wb") as file:
        if path.suffix == ".parquet":
            pq.write_table(table, file)
        else:
            csv.write_csv(table, file, csv.WriteOptions(quoting_style="none"))


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in list(schema)[:8]) or "no column"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
