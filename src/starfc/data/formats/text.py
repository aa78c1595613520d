"""Labels as text: one a line (.meta, .txt), or a column of a table (.csv)."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starfc.data.identities import identities, integers, label_column
from starfc.data.names import LABEL_COLUMNS
from starfc.errors import InputError
from starfc.storage.safe import damage, read_text

SEPARATORS = (",", ";", "\t")
_SAMPLE = 200  # lines that say how a table is written


def read_labels(path: Path, key: str | None = None) -> NDArray[np.int64]:
    """Labels that are integers (:func:`text_labels`)."""
    return text_labels(path, names=False)


def read_named_labels(path: Path, key: str | None = None) -> NDArray[np.int64]:
    """Labels that are integers or text (:func:`text_labels`)."""
    return text_labels(path, names=True)


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
    if alone and integers(column[:1]) is None and integers(column[1:]) is not None:
        column = column[1:]  # below a header of any other name
    found = identities(column, str(path)) if names or integers(column) is not None else None
    if found is None:
        wrong = next(row for row in range(len(column)) if integers(column[row : row + 1]) is None)
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
        return first.index(label_column(path, first))
    integers = [at for at in range(len(first)) if all(_is_integer(row[at]) for row in sample)]
    if len(integers) != 1:
        label_column(path, first)  # says so
    return integers[0]


def _is_integer(cell: str) -> bool:
    try:
        return float(cell).is_integer()
    except ValueError:
        return False


def write_lines(path: Path, labels: NDArray[np.integer]) -> None:
    """Write labels as text, one a line."""
    from pyarrow import csv as arrow
    from pyarrow import table

    with path.open("wb") as file:
        arrow.write_csv(table({"label": labels}), file, arrow.WriteOptions(include_header=False))


def write_table(path: Path, labels: NDArray[np.integer]) -> None:
    """Write labels as a .csv with the header ``label``."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    with path.open("wb") as file:  # Arrow takes no name that is not UTF-8
        table = pa.table({"label": np.asarray(labels, np.int64)})
        arrow.write_csv(table, file, arrow.WriteOptions(quoting_style="none"))
