"""NumPy's .npy. Features are memory-mapped, or read as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from starfc.data.blocks import Blocks, Write, require_features, rows_of_block
from starfc.data.identities import whole_numbers
from starfc.errors import InputError
from starfc.storage.safe import Header, npy_header, read_npy, take

DTYPES = "fiubcSUVmM"  # kinds of dtype to open, wider than needed, so that a message can name the dtype that was found


def open_features(path: Path, dim: int | None = None, key: str | None = None) -> NDArray[np.generic]:
    """Memory-map features (N, d)."""
    features = read_npy(path, DTYPES)
    require_features(path, features.shape, features.dtype)
    return features


def npy_blocks(file: IO[bytes], name: str, header: Header | None = None) -> Blocks:
    """Return the features of a .npy as blocks that are read from a stream. In Fortran order there is only one block.

    ``header`` is the header, if it has already been read.

    Raises
    ------
    InputError
        The stream is no .npy of features. Also raised while blocks are read, if the stream ends too early.
    """
    shape, fortran, dtype = header or npy_header(file, name)
    require_features(name, shape, dtype)
    return npy_numbers(file, name, shape, fortran, dtype)


def npy_numbers(file: IO[bytes], name: str, shape: tuple[int, ...], fortran: bool, dtype: np.dtype) -> Blocks:
    """Return the numbers after the header of a two-dimensional .npy of any dtype, as blocks."""
    rows, dim = shape

    def parts() -> Iterator[NDArray[np.floating]]:
        step = rows if fortran else rows_of_block(dim, dtype.itemsize)
        for start in range(0, rows, max(step, 1)):
            count = min(step, rows - start)
            data = take(file, count * dim * dtype.itemsize)
            if len(data) < count * dim * dtype.itemsize:
                raise InputError(
                    f"{name}: is cut short: its header says {rows:,} rows, but it ends before row {start + count:,}"
                )
            block = np.frombuffer(data, dtype)
            yield block.reshape(dim, count).T if fortran else block.reshape(count, dim)

    return Blocks(rows, dim, dtype, parts(), name)


@contextmanager
def npy_writer(file: IO[bytes], rows: int, dim: int, dtype: np.dtype) -> Iterator[Write]:
    """Write a .npy to a stream."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(file, header)
    yield lambda part: file.write(np.ascontiguousarray(part).data)


@contextmanager
def write_features(path: Path, rows: int, dim: int, dtype: np.dtype) -> Iterator[Write]:
    with path.open("wb") as file, npy_writer(file, rows, dim, dtype) as write:
        yield write


def read_labels(path: Path, key: str | None = None) -> NDArray[np.int64]:
    """Read labels (N,): integers, or floats that are whole numbers."""
    return whole_numbers(path, read_npy(path, DTYPES))


def write_labels(path: Path, labels: NDArray[np.integer]) -> None:
    """Write labels as int64."""
    np.save(path, labels.astype(np.int64))
