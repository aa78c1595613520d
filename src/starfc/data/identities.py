"""Convert the labels in files to identities: whole numbers are kept, text is numbered by first appearance."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from starfc.data.names import LABEL_COLUMNS
from starfc.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa


def whole_numbers(path: str | Path, labels: NDArray) -> NDArray[np.int64]:
    """Return the labels of an array as int64. Floats must be whole numbers."""
    if labels.ndim == 2 and 1 in labels.shape:
        labels = labels.reshape(-1)
    if labels.ndim != 1 or labels.dtype.kind not in "iuf":
        raise InputError(
            f"{path}: labels must be a one-dimensional integer array; found {labels.shape}, {labels.dtype}"
        )
    if labels.dtype.kind == "f":
        labels = np.asarray(labels, np.float64)
        with np.errstate(invalid="ignore"):
            wrong = ~((np.abs(labels) < 2.0**53) & (labels == np.floor(labels)))
    else:
        wrong = labels > np.iinfo(np.int64).max if labels.dtype == np.uint64 else np.zeros(0, np.bool_)
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"{path}: row {row} (from 0) has label {labels[row]}, which is no 64-bit integer; number the identities"
        )
    return labels.astype(np.int64)


def label_column(path: Path, names: list[str]) -> str:
    """Return the name of the column that holds labels."""
    named = [name for name in names if name.lower() in LABEL_COLUMNS]
    if (not named and len(names) != 1) or len(named) > 1:
        raise InputError(f"{path}: needs one column 'label' or 'identity', or only one column; found {names[:8]}")
    return named[0] if named else names[0]


def identities(column: pa.Array, name: str) -> NDArray[np.int64]:
    """Return a column as identities (N,) int64. Text that is not all integers is numbered by first appearance.

    Raises
    ------
    InputError
        A value is missing, or the column holds neither integers nor text.
    """
    import pyarrow.compute as pc
    import pyarrow.types as kinds

    if kinds.is_dictionary(column.type):
        column = column.dictionary_decode()
    text = kinds.is_string(column.type) or kinds.is_large_string(column.type)
    if not text and not kinds.is_integer(column.type) and not kinds.is_floating(column.type):
        raise InputError(f"{name}: labels must be integers or text; found {column.type}")
    missing = pc.is_null(column, nan_is_null=not text)
    if text:
        missing = pc.or_(missing, pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True))
    missing = missing.to_numpy(zero_copy_only=False)
    if missing.any():
        raise InputError(
            f"{name}: row {int(missing.argmax())} (from 0) has no label; every row needs one; use -1 if it is unknown"
        )
    values = integers(column)
    if values is not None:
        return values.to_numpy(zero_copy_only=False).astype(np.int64)
    if not text:
        raise InputError(f"{name}: labels must be 64-bit integers or text; found {column.type} values that are neither")
    codes = column.dictionary_encode()
    numbers = codes.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    outside = [at for at, value in enumerate(codes.dictionary.to_pylist()) if value.strip() in ("-1", "-1.0")]
    if not outside:
        return numbers
    numbering = np.cumsum(~np.isin(np.arange(len(codes.dictionary)), outside)) - 1
    numbering[outside] = -1
    return numbering[numbers]


def integers(column: pa.Array) -> pa.Array | None:
    """Return a column as int64. Return None if it holds other values than whole numbers; 3.0 is a whole number."""
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
