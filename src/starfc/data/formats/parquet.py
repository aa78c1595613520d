"""Parquet. Features are a column of lists of numbers, labels are a column of integers or text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from starfc.data.blocks import Blocks, Write, rows_of_block
from starfc.data.identities import identities, label_column
from starfc.errors import InputError
from starfc.storage.safe import damage, open_regular, require_plausible

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_KIND = "Parquet file"


def open_features(path: Path, dim: int | None = None, key: str | None = None) -> Blocks:
    """Open the column ``features``, or the only column of lists of numbers, as blocks of float32.

    Raises
    ------
    InputError
        The file is not Parquet, or there is no such column. Also raised while blocks are read, if lists have different
        lengths or a number is missing.
    """
    with opened_parquet(path) as file:
        name = features_column(file)
        if name is None:
            raise InputError(
                f"{path}: needs a column 'features' of lists of numbers, or only one column of such lists; "
                f"found {_columns(file.schema_arrow)}"
            )
        _require_once(path, file, name)
        rows, length = file.metadata.num_rows, _list_length(path, file, name)
        require_plausible(path, 4 * rows * length, path.stat().st_size)

    def parts() -> Iterator[NDArray[np.float32]]:
        at = 0
        with opened_parquet(path) as file:
            for batch in file.iter_batches(rows_of_block(length), columns=[name]):
                yield _list_values(path, name, batch.column(0), length, at)
                at += len(batch)
        if at != rows:
            raise InputError(
                f"{path}: not a readable {_KIND} (it has {at:,} rows but claims {rows:,}); was it damaged?"
            )

    return Blocks(rows, length, np.dtype(np.float32), parts(), str(path))


def _list_values(path: Path, name: str, column: pa.Array, dim: int, at: int) -> NDArray[np.float32]:
    """Return the numbers (n, dim) of a column of n lists. Its first list is row ``at`` of the file, for messages."""
    lengths = np.nan_to_num(column.value_lengths().to_numpy(zero_copy_only=False).astype(np.float64), nan=-1)
    wrong = lengths != dim
    if not wrong.any() and column.flatten().null_count:
        missing = column.flatten().is_null().to_numpy(zero_copy_only=False)
        wrong = missing.reshape(-1, dim).any(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        count = int(lengths[row])
        found = "none" if count < 0 else f"one of {count}" if count != dim else "one with a missing number"
        raise InputError(
            f"{path}: column {name!r}: every row needs a list of {dim} numbers; row {at + row} (from 0) has {found}"
        )
    return column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(-1, dim)


def features_column(file: pq.ParquetFile) -> str | None:
    """Return the name of the column that holds features. None if there is none."""
    import pyarrow.types as kinds

    def of_numbers(kind: pa.DataType) -> bool:
        lists = kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)
        return lists and (kinds.is_floating(kind.value_type) or kinds.is_integer(kind.value_type))

    found = [field.name for field in file.schema_arrow if of_numbers(field.type)]
    return "features" if "features" in found else found[0] if len(found) == 1 else None


def _list_length(path: Path, file: pq.ParquetFile, name: str) -> int:
    """Return the length of the lists of a column, according to its type or its first list."""
    kind = file.schema_arrow.field(name).type
    if hasattr(kind, "list_size"):
        length = kind.list_size
    else:
        length, at = 0, 0
        for batch in file.iter_batches(1024, columns=[name]):
            there = batch.column(0).drop_null()
            if len(there):
                length = len(there[0])
                break
            at += len(batch)
        else:
            if at:
                raise InputError(f"{path}: column {name!r}: needs lists of numbers; none of the {at:,} rows has one")
            return 1
    if length < 1:
        raise InputError(f"{path}: column {name!r}: needs lists of at least one number; found empty lists")
    return length


@contextmanager
def opened_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file while the block runs. Every fault of the file becomes one InputError.

    The file is opened here and not by Arrow, because Arrow accepts only UTF-8 file names. It is read in this thread
    only: a thread of Arrow may still hold the Python file for a moment after the read, and if the process ends in that
    moment, Python ends the thread and C++ aborts the process.
    """
    import pyarrow.parquet as pq

    with (
        open_regular(path, _KIND) as raw,
        damage(path, _KIND),
        pq.ParquetFile(raw, pre_buffer=False) as file,  # buffers would hold the whole column
    ):
        require_plausible(path, file.metadata.num_rows, os.fstat(raw.fileno()).st_size)
        file.read = partial(file.read, use_threads=False)
        file.iter_batches = partial(file.iter_batches, use_threads=False)
        yield file


def _require_once(path: Path, file: pq.ParquetFile, name: str) -> None:
    if file.schema_arrow.names.count(name) > 1:
        raise InputError(f"{path}: has the column {name!r} twice; remove one of them")


def read_labels(path: Path, key: str | None = None) -> NDArray[np.int64]:
    """Read the labels from the column ``label`` or ``identity``, or from the only column.

    They are integers, or text, which is numbered by first appearance.
    """
    import pyarrow as pa

    with opened_parquet(path) as file:
        names = file.schema_arrow.names
        name = label_column(path, names)
        _require_once(path, file, name)
        require_plausible(path, 8 * file.metadata.num_rows, path.stat().st_size)
        batches = list(file.iter_batches(1 << 20, columns=[name]))
        table = pa.Table.from_batches(batches, pa.schema([file.schema_arrow.field(name)]))
        return identities(table.column(0).combine_chunks(), f"{path}: column {name!r}")


@contextmanager
def write_features(path: Path, rows: int, dim: int, dtype: np.dtype) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("features", pa.list_(pa.from_numpy_dtype(dtype), dim))])
    # the file is opened here, because Arrow accepts only UTF-8 file names
    with path.open("wb") as file, pq.ParquetWriter(file, schema, use_dictionary=False) as writer:

        def write(part: NDArray[np.floating]) -> None:
            column = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), dim)
            writer.write_table(pa.table([column], schema=schema))

        yield write


def write_labels(path: Path, labels: NDArray[np.integer]) -> None:
    """Write a column ``label`` of int64."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("wb") as file:  # opened here, because Arrow accepts only UTF-8 file names
        pq.write_table(pa.table({"label": np.asarray(labels, np.int64)}), file)


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in list(schema)[:8]) or "no column"
