"""Features that are read, or written, once, from front to back, a block of rows at a time."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from starfc.errors import InputError
from starfc.runtime.memory import release

BLOCK_BYTES = 16 << 20

Header = tuple[tuple[int, ...], bool, np.dtype]  # shape, Fortran order, dtype
Write = Callable[[NDArray[np.floating]], object]


@dataclass(frozen=True)
class Blocks:
    """(rows, dim) features of a dtype, to be read once."""

    rows: int
    dim: int
    dtype: np.dtype
    parts: Iterator[NDArray[np.floating]]

    def array(self) -> NDArray[np.floating]:
        """All rows."""
        out, at = np.empty((self.rows, self.dim), self.dtype), 0
        for part in self.parts:
            out[at : at + len(part)] = part
            at += len(part)
        return out


def rows_of_block(dim: int, itemsize: int = 4) -> int:
    """Rows that make a block."""
    return max(1, BLOCK_BYTES // max(1, dim * itemsize))


def blocks_of(array: NDArray[np.floating]) -> Blocks:
    """The blocks of an array; of a memory-mapped one, what was read is given back."""

    def parts() -> Iterator[NDArray[np.floating]]:
        step = rows_of_block(array.shape[1], array.dtype.itemsize)
        for start in range(0, len(array), step):
            yield np.ascontiguousarray(array[start : start + step])
            release(array)

    return Blocks(*array.shape, array.dtype, parts())


def npy_header(file: IO[bytes], name: str) -> Header:
    """Shape, Fortran order and dtype of the .npy that a stream begins with, which is left at its first number."""
    try:
        version = np.lib.format.read_magic(file)
        if version > (2, 0):
            raise ValueError(f"version {version} of the format")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{name}: not a readable NumPy file ({error}); was it cut short?") from None
    if dtype.hasobject:
        raise InputError(f"{name}: not a readable NumPy file (it holds objects)")
    return shape, fortran, dtype


def npy_blocks(file: IO[bytes], name: str, header: Header | None = None) -> Blocks:
    """The features of a .npy that is read as a stream; in Fortran order, it is held as a whole.

    ``header`` is its header, where that has been read.

    Raises
    ------
    InputError
        Not a .npy of features; while blocks are read, one that ends too soon.
    """
    shape, fortran, dtype = header or npy_header(file, name)
    require_features(name, shape, dtype)
    return npy_numbers(file, name, shape, fortran, dtype)


def npy_numbers(file: IO[bytes], name: str, shape: tuple[int, ...], fortran: bool, dtype: np.dtype) -> Blocks:
    """The numbers that follow the header of a .npy of two dimensions, of any dtype."""
    rows, dim = shape

    def parts() -> Iterator[NDArray[np.floating]]:
        step = rows if fortran else rows_of_block(dim, dtype.itemsize)
        for start in range(0, rows, max(step, 1)):
            count = min(step, rows - start)
            data = bytearray(count * dim * dtype.itemsize)
            if _fill(file, data) < len(data):
                raise InputError(
                    f"{name}: cut short: {rows:,} rows by its header, it ends before row {start + count:,}"
                )
            block = np.frombuffer(data, dtype)
            yield block.reshape(dim, count).T if fortran else block.reshape(count, dim)

    return Blocks(rows, dim, dtype, parts())


def _fill(file: IO[bytes], buffer: bytearray) -> int:
    """Read until the buffer is full or the stream ends; how much was read."""
    view, at = memoryview(buffer), 0
    while at < len(buffer):
        data = file.read(len(buffer) - at)
        if not data:
            break
        view[at : at + len(data)] = data
        at += len(data)
    return at


def npz_blocks(path: Path, keys: tuple[str, ...]) -> Blocks:
    """The features of an .npz: its only array, or the first of ``keys`` that it has."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable NumPy file ({error}); was it cut short?") from None
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    named = [key for key in keys if key in names] or (names if len(names) == 1 else [])
    if not named:
        archive.close()
        raise InputError(f"{path}: an .npz with one array, or with the key {' or '.join(keys)}; found {names}")
    member = archive.open(f"{named[0]}.npy")
    blocks = npy_blocks(member, str(path))

    def parts() -> Iterator[NDArray[np.floating]]:
        with archive, member:
            try:
                yield from blocks.parts
            except (zipfile.BadZipFile, EOFError, OSError) as error:
                raise InputError(f"{path}: not a readable NumPy file ({error}); was it cut short?") from None

    return Blocks(blocks.rows, blocks.dim, blocks.dtype, parts())


def require_features(name: str | Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise :class:`InputError` unless a shape and dtype are those of features."""
    if len(shape) != 2 or dtype.kind != "f" or dtype.itemsize > 8:
        raise InputError(
            f"{name}: features are a two-dimensional array (N, d) of float16, float32 or float64; "
            f"found shape {tuple(shape)}, {dtype}"
        )


def converted(blocks: Blocks, dtype: np.dtype, name: str) -> Iterator[NDArray[np.floating]]:
    """The blocks as another dtype.

    Raises
    ------
    InputError
        A finite number that is too large for it.
    """
    for part in blocks.parts:
        with np.errstate(over="ignore"):
            out = np.ascontiguousarray(part, dtype)
        if dtype.itemsize < part.dtype.itemsize and (np.isinf(out) & np.isfinite(part)).any():
            raise InputError(
                f"{name}: numbers above {np.finfo(dtype).max:g}, the largest {dtype.name}; scale the features, or "
                "write a wider --dtype"
            )
        yield out


def write_blocks(path: Path, blocks: Blocks, dtype: np.dtype, name: str) -> None:
    """Write blocks as the features file that the suffix of ``path`` names, as float16 or float32.

    ``name`` is what they are read from, for messages.
    """
    with _WRITERS[path.suffix](path, blocks.rows, blocks.dim, dtype) as write:
        for part in converted(blocks, dtype, name):
            write(part)


@contextmanager
def npy_writer(file: IO[bytes], rows: int, dim: int, dtype: np.dtype) -> Iterator[Write]:
    """Write a .npy to a stream."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(file, header)
    yield lambda part: file.write(np.ascontiguousarray(part).data)


@contextmanager
def _npy(path: Path, rows: int, dim: int, dtype: np.dtype) -> Iterator[Write]:
    with path.open("wb") as file, npy_writer(file, rows, dim, dtype) as write:
        yield write


@contextmanager
def _npz(path: Path, rows: int, dim: int, dtype: np.dtype) -> Iterator[Write]:
    with (
        zipfile.ZipFile(path, "w") as archive,
        archive.open("features.npy", "w", force_zip64=True) as file,
        npy_writer(file, rows, dim, dtype) as write,
    ):
        yield write


@contextmanager
def _bin(path: Path, rows: int, dim: int, dtype: np.dtype) -> Iterator[Write]:
    with path.open("wb") as file:
        yield lambda part: file.write(part.astype("<f4", copy=False).data)


@contextmanager
def _fvecs(path: Path, rows: int, dim: int, dtype: np.dtype) -> Iterator[Write]:
    with path.open("wb") as file:

        def write(part: NDArray[np.floating]) -> None:
            rows = np.empty((len(part), dim + 1), "<f4")
            rows.view("<i4")[:, 0] = dim
            rows[:, 1:] = part
            file.write(rows.data)

        yield write


@contextmanager
def _hdf5(path: Path, rows: int, dim: int, dtype: np.dtype) -> Iterator[Write]:
    import h5py

    with h5py.File(path, "w") as file:
        dataset, at = file.create_dataset("features", (rows, dim), dtype), 0

        def write(part: NDArray[np.floating]) -> None:
            nonlocal at
            dataset[at : at + len(part)] = part
            at += len(part)

        yield write


@contextmanager
def _parquet(path: Path, rows: int, dim: int, dtype: np.dtype) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("features", pa.list_(pa.from_numpy_dtype(dtype), dim))])
    with path.open("wb") as file, pq.ParquetWriter(file, schema, use_dictionary=False) as writer:

        def write(part: NDArray[np.floating]) -> None:
            column = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), dim)
            writer.write_table(pa.table([column], schema=schema))

        yield write


_WRITERS: dict[str, Any] = {
    ".npy": _npy, ".npz": _npz, ".bin": _bin, ".fvecs": _fvecs, ".h5": _hdf5, ".hdf5": _hdf5, ".parquet": _parquet,
}  # fmt: skip
SINGLE_ONLY = (".bin", ".fvecs")  # hold float32 and nothing else
