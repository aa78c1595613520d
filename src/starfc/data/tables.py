"""Write tables of results as CSV, Parquet or JSON."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from starfc.errors import InputError
from starfc.runtime.words import advice
from starfc.storage.atomic import replacing

TABLE_FORMATS = ("csv", "parquet", "json")
_ROWS = 1 << 16  # rows in Python objects at a time


def write_table(path: str | Path, table: pa.Table, kind: str, overwrite: bool = False) -> None:
    """Write a table, atomically.

    Parameters
    ----------
    path : path
        The file.
    table : pa.Table
        Columns of integers, floats and text. CSV and JSON hold floats with four decimals.
    kind : {'csv', 'parquet', 'json'}
        Format. CSV is UTF-8 with a header, and empty cells in place of nulls; JSON is a list with one object per row.
    overwrite : bool
        Whether to replace an existing file.

    Raises
    ------
    InputError
        There is such a file already, or it cannot be written.
    """
    require_new(path, overwrite)
    with replacing(path) as temporary:
        if kind == "parquet":
            with temporary.open("wb") as file:  # opened here, because Arrow accepts only UTF-8 file names
                pq.write_table(table, file)
        elif kind == "csv":
            with temporary.open("w", encoding="utf-8", newline="") as text:
                writer = csv.writer(text, lineterminator="\n")
                writer.writerow(table.column_names)
                writer.writerows(list(row.values()) for row in rows_of(table))
        else:
            write_json_rows(temporary, rows_of(table))


def require_new(path: str | Path, overwrite: bool) -> None:
    """Raise InputError if there is something at the path, unless it may be replaced."""
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{path}: exists; name another file{advice(', or add {} to replace it', 'overwrite')}")


def write_json_rows(path: Path, rows: Iterable[dict[str, Any]], before: str = "", after: str = "") -> None:
    """Write objects as a JSON list, one per line, between two parts of a larger JSON text."""
    with path.open("w", encoding="utf-8") as file:
        file.write(f"{before}[")
        for number, row in enumerate(rows):
            file.write((",\n" if number else "\n") + json.dumps(row, ensure_ascii=False, allow_nan=False))
        file.write(f"\n]{after}\n")


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the rows as dictionaries. Floats have four decimals; numbers that are not finite become None."""
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    for batch in table.to_batches(_ROWS):
        for row in batch.to_pylist():
            for name in floats:
                value = row[name]
                row[name] = round(value, 4) if value is not None and math.isfinite(value) else None
            yield row
