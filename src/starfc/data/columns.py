"""Columns of tables: features and labels in Parquet, labels in CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from starfc.data.blocks import Blocks, rows_of_block
from starfc.data.names import LABEL_COLUMNS
from starfc.errors import InputError
from starfc.storage.safe import damage, open_regular, read_text, require_plausible

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SEPARATORS = (",", ";", "\t")
_SAMPLE = 200  # lines that say how a table is written
_KIND = "Parquet file"


def parquet_features(path: Path) -> Blocks:
    """The column ``features``, or the only column of lists, as float32.

    Raises
    ------
    InputError
        Not Parquet, no such column, one of something else than numbers; while blocks are read, lists of different
        lengths or missing numbers.
    """
    with opened_parquet(path) as file:
        name = features_column(file)
        if name is None:
            raise InputError(
                f"{path}: features are a column 'features' of lists of numbers, or the only column of lists; "
                f"found {_columns(file.schema_arrow)}"
            )
        _require_once(path, file, name)
        rows, dim = file.metadata.num_rows, _list_length(path, file, name)
        require_plausible(path, 4 * rows * dim, path.stat().st_size)

    def parts() -> Iterator[NDArray[np.float32]]:
        at = 0
        with opened_parquet(path) as file:
            for batch in file.iter_batches(rows_of_block(dim), columns=[name]):
                yield _list_values(path, name, batch.column(0), dim, at)
                at += len(batch)
        if at != rows:
            raise InputError(f"{path}: not a readable {_KIND} ({at:,} rows where it says {rows:,}); was it damaged?")

    return Blocks(rows, dim, np.dtype(np.float32), parts(), str(path))


def _list_values(path: Path, name: str, column: pa.Array, dim: int, at: int) -> NDArray[np.float32]:
    """(n, dim) numbers of lists, the first of which is row ``at``."""
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
            f"{path}: column {name!r}: a list of {dim} numbers needed in every row; row {at + row} (from 0) has {found}"
        )
    return column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(-1, dim)


def features_column(file: pq.ParquetFile) -> str | None:
    """The name of the column that holds features, None where none does."""
    import pyarrow.types as kinds

    def of_numbers(kind: pa.DataType) -> bool:
        lists = kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)
        return lists and (kinds.is_floating(kind.value_type) or kinds.is_integer(kind.value_type))

    found = [field.name for field in file.schema_arrow if of_numbers(field.type)]
    return "features" if "features" in found else found[0] if len(found) == 1 else None


def _list_length(path: Path, file: pq.ParquetFile, name: str) -> int:
    """The length that a column's type, or its first list, has."""
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
                raise InputError(f"{path}: column {name!r}: lists of numbers needed; none of {at:,} rows has one")
            return 1
    if length < 1:
        raise InputError(f"{path}: column {name!r}: lists of at least one number needed; found empty ones")
    return length


@contextmanager
def opened_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file while the block runs; whatever is found wrong with it is one message.

    It is opened here, as Arrow takes no name that is not UTF-8.
    """
    import pyarrow.parquet as pq

    with (
        open_regular(path, _KIND) as raw,
        damage(path, _KIND),
        pq.ParquetFile(raw, pre_buffer=False) as file,  # buffers would hold the whole column
    ):
        require_plausible(path, file.metadata.num_rows, os.fstat(raw.fileno()).st_size)
        yield file


def _require_once(path: Path, file: pq.ParquetFile, name: str) -> None:
    if file.schema_arrow.names.count(name) > 1:
        raise InputError(f"{path}: the column {name!r} is in it twice; leave one out")


def parquet_labels(path: Path) -> NDArray[np.int64]:
    """The column ``label`` or ``identity``, or the only one: integers, or text (numbered by first appearance)."""
    import pyarrow as pa

    with opened_parquet(path) as file:
        names = file.schema_arrow.names
        name = _label_column(path, names)
        _require_once(path, file, name)
        require_plausible(path, 8 * file.metadata.num_rows, path.stat().st_size)
        batches = list(file.iter_batches(1 << 20, columns=[name]))
        table = pa.Table.from_batches(batches, pa.schema([file.schema_arrow.field(name)]))
        return identities(table.column(0).combine_chunks(), f"{path}: column {name!r}")


def text_labels(path: Path, *, names: bool) -> NDArray[np.int64]:
    """Labels of a text: one a line, or a column of a table whose cells ``,``, ``;`` or tabs separate.

    UTF-8, with or without a byte order mark, lines ended in any way, cells in quotes or not, blank lines left out. Of
    several columns it is the one whose header is ``label`` or ``identity``, or without a header the only one of
    integers. Numbers such as ``3.0`` are integers.

    Parameters
    ----------
    names : bool
        Whether labels may be text, which is numbered by first appearance; -1 among it stays -1.

    Raises
    ------
    InputError
        Not UTF-8, no label in a row, something else than labels, or a table that can be read in several ways.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow

    text = read_text(path, "labels file")
    if _UNUSED in text:
        raise InputError(f"{path}: labels are text; found the control character U+001F in it; write the file again")
    lines = [line for line in text[: 1 << 20].splitlines()[:_SAMPLE] if line.strip()]
    if not lines:
        return np.empty(0, np.int64)
    separator, sample = _table(path, lines)
    first = [cell.strip() for cell in sample[0]]
    header = any(cell.lower() in LABEL_COLUMNS for cell in first)
    at = _column_at(path, sample, header)
    with damage(path, "table of labels"):
        table = arrow.read_csv(
            pa.BufferReader(text.encode()),
            arrow.ReadOptions(column_names=[str(number) for number in range(len(first))], skip_rows=int(header)),
            arrow.ParseOptions(delimiter=separator or ",", ignore_empty_lines=True),
            arrow.ConvertOptions(
                include_columns=[str(at)], column_types={str(at): pa.string()}, strings_can_be_null=False
            ),
        )
        column = table.column(0).combine_chunks()
    alone = names and not header and len(first) == 1 and len(column) > 1
    if alone and _integers(column[:1]) is None and _integers(column[1:]) is not None:
        column = column[1:]  # below a header of any other name
    found = identities(column, str(path)) if names or _integers(column) is not None else None
    if found is None:
        wrong = next(row for row in range(len(column)) if _integers(column[row : row + 1]) is None)
        raise InputError(
            f"{path}: labels are text with one integer identity per line; found {column[wrong].as_py()!r} in row "
            f"{wrong} (from 0)"
        )
    return found


_UNUSED = "\x1f"  # of one column nothing separates the cells


def _table(path: Path, lines: list[str]) -> tuple[str | None, list[list[str]]]:
    """What separates cells, None for one column, and the cells of the lines."""
    one = [next(csv.reader([line], delimiter=_UNUSED), []) for line in lines]
    ways = {}
    for separator in SEPARATORS:
        cells = [next(csv.reader([line], delimiter=separator), []) for line in lines]
        if all(len(row) > 1 for row in cells):
            ways[separator] = cells
    if not ways:
        if all("|" in line for line in lines):
            raise InputError(f"{path}: columns that '|' separates; write them with ',', ';' or tabs")
        return None, one
    whole = {separator: cells for separator, cells in ways.items() if len({len(row) for row in cells}) == 1}
    if not whole:
        raise InputError(
            f"{path}: every line has {next(iter(ways))!r}, but not the same number of times; is it a table?"
        )
    named = {s: cells for s, cells in whole.items() if any(c.strip().lower() in LABEL_COLUMNS for c in cells[0])}
    chosen = named or whole
    if len(chosen) > 1:
        raise InputError(f"{path}: columns may be separated by {' or '.join(map(repr, chosen))}; put cells in quotes")
    return next(iter(chosen.items()))


def _column_at(path: Path, sample: list[list[str]], header: bool) -> int:
    """The place of the column of labels."""
    first = [cell.strip() for cell in sample[0]]
    if len(first) == 1:
        return 0
    if header:
        return first.index(_label_column(path, first))
    integers = [at for at in range(len(first)) if all(_is_integer(row[at]) for row in sample)]
    if len(integers) != 1:
        _label_column(path, first)  # says so
    return integers[0]


def _is_integer(cell: str) -> bool:
    try:
        return float(cell).is_integer()
    except ValueError:
        return False


def _label_column(path: Path, names: list[str]) -> str:
    named = [name for name in names if name.lower() in LABEL_COLUMNS]
    if (not named and len(names) != 1) or len(named) > 1:
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
    if not text and not kinds.is_integer(column.type) and not kinds.is_floating(column.type):
        raise InputError(f"{name}: labels are integers or text; found {column.type}")
    missing = pc.is_null(column, nan_is_null=not text)
    if text:
        missing = pc.or_(missing, pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True))
    missing = missing.to_numpy(zero_copy_only=False)
    if missing.any():
        raise InputError(
            f"{name}: row {int(missing.argmax())} (from 0) has no label; every row needs one, -1 where it is unknown"
        )
    values = _integers(column)
    if values is not None:
        return values.to_numpy(zero_copy_only=False).astype(np.int64)
    if not text:
        raise InputError(f"{name}: labels are integers or text; found {column.type} that no integer of 64 bits holds")
    codes = column.dictionary_encode()
    numbers = codes.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    outside = [at for at, value in enumerate(codes.dictionary.to_pylist()) if value.strip() in ("-1", "-1.0")]
    if not outside:
        return numbers
    numbering = np.cumsum(~np.isin(np.arange(len(codes.dictionary)), outside)) - 1
    numbering[outside] = -1
    return numbering[numbers]


def _integers(column: pa.Array) -> pa.Array | None:
    """The column as int64, None where it is not one of integers; whole numbers such as 3.0 are."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as kinds

    if kinds.is_string(column.type) or kinds.is_large_string(column.type):
        column = pc.utf8_trim_whitespace(column)
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        pass
    try:
        reals = column.cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    values = reals.to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore"):
        whole = bool(((np.abs(values) < 2.0**53) & (values == np.floor(values))).all())
    return pa.array(values.astype(np.int64)) if whole else None


def write_label_lines(path: Path, labels: NDArray[np.integer]) -> None:
    """Write labels as text, one a line."""
    from pyarrow import csv as arrow
    from pyarrow import table

    with path.open("wb") as file:
        arrow.write_csv(table({"label": labels}), file, arrow.WriteOptions(include_header=False))


def write_label_column(path: Path, labels: NDArray[np.integer]) -> None:
    """Labels as a Parquet column or a CSV with the header ``label``."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import csv as arrow

    table = pa.table({"label": np.asarray(labels, np.int64)})
    with path.open("wb") as file:  # Arrow takes no name that is not UTF-8
        if path.suffix == ".parquet":
            pq.write_table(table, file)
        else:
            arrow.write_csv(table, file, arrow.WriteOptions(quoting_style="none"))


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in list(schema)[:8]) or "no column"
