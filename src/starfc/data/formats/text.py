"""Labels as text: one per line (.meta, .txt), or a column of a table (.csv)."""

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
_SAMPLE = 200  # number of lines from which the separator and the columns of a table are determined


def read_labels(path: Path, key: str | None = None) -> NDArray[np.int64]:
    """Read labels that are integers (:func:`text_labels`)."""
    return text_labels(path, names=False)


def read_named_labels(path: Path, key: str | None = None) -> NDArray[np.int64]:
    """Read labels that are integers or text (:func:`text_labels`)."""
    return text_labels(path, names=True)


def text_labels(path: Path, *, names: bool) -> NDArray[np.int64]:
    """Read labels from a text file: one per line, or a column of a table with the separator ``,``, ``;`` or tab.

    The text is UTF-8, with or without a byte order mark, with line ends of any system, and with or without quotes.
    Blank lines are skipped. Of several columns the one with the header ``label`` or ``identity`` is read. Without such
    a header it is the only column of integers. Numbers such as ``3.0`` are integers.

    Parameters
    ----------
    path : path
        The file.
    names : bool
        Whether labels may be text, which is numbered by first appearance. The text -1 stays -1.

    Raises
    ------
    InputError
        The file is not UTF-8, a row has no label, there are no labels, or there are several ways to read the table.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow

    text = read_text(path, "labels file")
    if _UNUSED in text:
        raise InputError(f"{path}: labels must be text; found the control character U+001F; write the file again")
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
        column = column[1:]  # the first line is a header with another name
    found = identities(column, str(path)) if names or integers(column) is not None else None
    if found is None:
        wrong = next(row for row in range(len(column)) if integers(column[row : row + 1]) is None)
        raise InputError(
            f"{path}: labels must be text with one integer per line; found {column[wrong].as_py()!r} in row "
            f"{wrong} (from 0)"
        )
    return found


_UNUSED = "\x1f"  # separator for lines that are read as one cell


def _table(path: Path, lines: list[str]) -> tuple[str | None, list[list[str]]]:
    """Return the separator of a table (None: it has one column), and the cells of the lines."""
    one = [next(csv.reader([line], delimiter=_UNUSED), []) for line in lines]
    ways = {}
    for separator in SEPARATORS:
        cells = [next(csv.reader([line], delimiter=separator), []) for line in lines]
        if all(len(row) > 1 for row in cells):
            ways[separator] = cells
    if not ways:
        if all("|" in line for line in lines):
            raise InputError(f"{path}: columns are separated by '|'; separate them with ',', ';' or tabs")
        return None, one
    whole = {separator: cells for separator, cells in ways.items() if len({len(row) for row in cells}) == 1}
    if not whole:
        raise InputError(
            f"{path}: every line has {next(iter(ways))!r}, but lines have different numbers of cells; is it a table?"
        )
    named = {s: cells for s, cells in whole.items() if any(c.strip().lower() in LABEL_COLUMNS for c in cells[0])}
    chosen = named or whole
    if len(chosen) > 1:
        raise InputError(f"{path}: columns may be separated by {' or '.join(map(repr, chosen))}; put cells in quotes")
    return next(iter(chosen.items()))


def _column_at(path: Path, sample: list[list[str]], header: bool) -> int:
    """Return the position of the column of labels."""
    first = [cell.strip() for cell in sample[0]]
    if len(first) == 1:
        return 0
    if header:
        return first.index(label_column(path, first))
    integers = [at for at in range(len(first)) if all(_is_integer(row[at]) for row in sample)]
    if len(integers) != 1:
        label_column(path, first)  # raises the error
    return integers[0]


def _is_integer(cell: str) -> bool:
    try:
        return float(cell).is_integer()
    except ValueError:
        return False


def write_lines(path: Path, labels: NDArray[np.integer]) -> None:
    """Write labels as text, one per line."""
    from pyarrow import csv as arrow
    from pyarrow import table

    with path.open("wb") as file:
        arrow.write_csv(table({"label": labels}), file, arrow.WriteOptions(include_header=False))


def write_table(path: Path, labels: NDArray[np.integer]) -> None:
    """Write labels as a .csv with the header ``label``."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    with path.open("wb") as file:  # opened here, because Arrow accepts only UTF-8 file names
        table = pa.table({"label": np.asarray(labels, np.int64)})
        arrow.write_csv(table, file, arrow.WriteOptions(quoting_style="none"))
