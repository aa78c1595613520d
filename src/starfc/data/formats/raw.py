"""Raw rows of float32: .bin has only the rows, .fvecs has the dimension d before every row."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starfc.data.blocks import Write
from starfc.errors import InputError
from starfc.runtime.words import advice, word
from starfc.storage.safe import mapped, open_regular

FEATURE_DIM = "model.kwargs.feature_dim"
_CHECKED_ROWS = 1024


def open_bin(path: Path, dim: int | None, key: str | None = None) -> NDArray[np.float32]:
    """Memory-map rows of d little-endian float32 without a header."""
    if dim is None:
        raise InputError(f"{path}: a raw .bin file does not store its dimension{advice('; give {}', FEATURE_DIM)}")
    with open_regular(path, "features file") as file:
        size, row = os.fstat(file.fileno()).st_size, 4 * dim
        if size % row:
            raise InputError(
                f"{path}: its {size:,} bytes are not a whole number of {dim}-d float32 rows ({row:,} bytes each); "
                f"check {word(FEATURE_DIM)}, or whether the file was cut short"
            )
        return mapped(file, path, (size // row, dim), np.dtype("<f4"), 0)


def open_fvecs(path: Path, dim: int | None = None, key: str | None = None) -> NDArray[np.float32]:
    """Memory-map rows of d (int32) and d float32, and return a view without the first column."""
    with open_regular(path, "features file") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise InputError(f"{path}: is empty, so it does not store its dimension")
        dim = int.from_bytes(os.pread(file.fileno(), 4, 0), "little", signed=True)
        if dim < 1 or size % (4 + 4 * dim):
            raise InputError(
                f"{path}: its {size:,} bytes are not a whole number of .fvecs rows of d = {dim} (4 + 4 d bytes each); "
                "is it another format, or was it cut short?"
            )
        count = size // (4 + 4 * dim)
        # pread instead of the memory map, which would read whole pages around each number
        for row in np.unique(np.linspace(0, count - 1, _CHECKED_ROWS).astype(np.int64)).tolist():
            found = int.from_bytes(os.pread(file.fileno(), 4, row * (4 + 4 * dim)), "little", signed=True)
            if found != dim:
                raise InputError(
                    f"{path}: row {row} (from 0) has d = {found}, but the first row has d = {dim}; all must be equal"
                )
        return mapped(file, path, (count, dim + 1), np.dtype("<f4"), 0)[:, 1:]


@contextmanager
def write_bin(path: Path, rows: int, dim: int, dtype: np.dtype) -> Iterator[Write]:
    with path.open("wb") as file:
        yield lambda part: file.write(part.astype("<f4", copy=False).data)


@contextmanager
def write_fvecs(path: Path, rows: int, dim: int, dtype: np.dtype) -> Iterator[Write]:
    with path.open("wb") as file:

        def write(part: NDArray[np.floating]) -> None:
            rows = np.empty((len(part), dim + 1), "<f4")
            rows.view("<i4")[:, 0] = dim
            rows[:, 1:] = part
            file.write(rows.data)

        yield write
