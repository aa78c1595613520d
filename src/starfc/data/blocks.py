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

from starfc.data.names import FEATURE_NAMES, alternatives
from starfc.errors import InputError
from starfc.runtime.extras import require
from starfc.runtime.memory import release
from starfc.runtime.stages import megabytes
from starfc.runtime.words import advice, word
from starfc.storage.safe import Header, Npz, listed, npy_header, take

BLOCK_BYTES = 16 << 20

Write = Callable[[NDArray[np.floating]], object]


@dataclass(frozen=True)
class Blocks:
    """(rows, dim) features of a dtype, to be read once; ``name`` is what they are read from, for messages."""

    rows: int
    dim: int
    dtype: np.dtype
    parts: Iterator[NDArray[np.floating]]
    name: str = "features"

    def array(self, room: int | None = None) -> NDArray[np.floating]:
        """All rows.

        Parameters
        ----------
        room : int, optional
            Bytes that they may take.

        Raises
        ------
        InputError
            They would take more, or are fewer than was said.
        """
        needs = self.rows * self.dim * self.dtype.itemsize
        if room is not None and needs > room:
            raise InputError(
                f"{self.name}: its features have to be held, {megabytes(needs)} where {megabytes(room)} of "
                f"{word('memory_limit')} are left; raise it, or write them as .npy"
                f"{advice(' ({})', 'starfc convert')}, which is read as needed"
            )
        out, at = np.empty((self.rows, self.dim), self.dtype), 0
        for part in self.parts:
            out[at : at + len(part)] = part
            at += len(part)
        return out


def rows_of_block(dim: int, itemsize: int = 4) -> int:
    """Rows that make a block."""
    return max(1, BLOCK_BYTES // max(1, dim * itemsize))


def blocks_of(array: NDArray[np.floating], name: str = "features") -> Blocks:
    """The blocks of an array; of a memory-mapped one, what was read is given back."""

    def parts() -> Iterator[NDArray[np.floating]]:
        step = rows_of_block(array.shape[1], array.dtype.itemsize)
        for start in range(0, len(array), step):
            yield np.ascontiguousarray(array[start : start + step])
            release(array)

    rows, dim = array.shape
    return Blocks(rows, dim, array.dtype, parts(), name)


def floats(blocks: Blocks) -> Blocks:
    """The blocks, integers as float32."""
    if blocks.dtype.kind == "f":
        return blocks
    parts = (part.astype(np.float32) for part in blocks.parts)
    return Blocks(blocks.rows, blocks.dim, np.dtype(np.float32), parts, blocks.name)


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
            data = take(file, count * dim * dtype.itemsize)
            if len(data) < count * dim * dtype.itemsize:
                raise InputError(
                    f"{name}: cut short: {rows:,} rows by its header, it ends before row {start + count:,}"
                )
            block = np.frombuffer(data, dtype)
            yield block.reshape(dim, count).T if fortran else block.reshape(count, dim)

    return Blocks(rows, dim, dtype, parts(), name)


def npz_blocks(path: Path, key: str | None = None) -> Blocks:
    """The features of an .npz: the array ``key``, or the only one, or the first of
    :data:`~starfc.data.names.FEATURE_NAMES` that it has."""
    with Npz(path) as archive:
        chosen = npz_key(archive, FEATURE_NAMES, key, keyed=True)
        with archive.open(chosen) as (_, (shape, _, dtype)):
            require_features(f"{path}, array {chosen!r}", shape, dtype)

    def parts() -> Iterator[NDArray[np.floating]]:
        with Npz(path) as archive, archive.open(chosen) as (file, header):
            yield from npy_blocks(file, str(path), header).parts
            file.read(1)  # at the end of the member its checksum is compared

    rows, dim = shape
    return Blocks(rows, dim, dtype, parts(), str(path))


def npz_key(archive: Npz, obvious: tuple[str, ...], key: str | None = None, keyed: bool = False) -> str:
    """The name of an array of an .npz (:func:`chosen_name`)."""
    return chosen_name(archive.path, "array", archive.names, obvious, key, keyed)


def chosen_name(
    path: str | Path, what: str, names: list[str], obvious: tuple[str, ...], key: str | None, keyed: bool
) -> str:
    """Which of the arrays or datasets of a file is taken: ``key``, or the only one, or the first that is obvious.

    Parameters
    ----------
    what : str
        'array' or 'dataset', for messages.
    keyed : bool
        Whether messages may advise to give ``key``.

    Raises
    ------
    InputError
        None of the name ``key``, or several, of which none has an obvious name.
    """
    there = listed(names) or f"no {what}"
    if key is not None and key not in names:
        raise InputError(f"{path}: no {what} {key!r} in it ({word('key')}); found {there}")
    called = {name.lower(): name for name in reversed(names)}
    found = [key] if key is not None else [called[name.lower()] for name in obvious if name.lower() in called]
    found = found or (names if len(names) == 1 else [])
    if not found:
        remedy = advice("; name the one to take with {}", "key") if keyed else ""
        raise InputError(f"{path}: one {what}, or one called {alternatives(obvious)}, needed; found {there}{remedy}")
    return found[0]


def require_features(name: str | Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise :class:`InputError` unless a shape and dtype are those of features."""
    if len(shape) != 2 or dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise InputError(
            f"{name}: features are a two-dimensional array (N, d) of float16, float32 or float64, or of integers; "
            f"found shape {tuple(shape)}, {dtype}"
        )
    if shape[1] == 0:
        raise InputError(f"{name}: features of at least one dimension needed; found shape {tuple(shape)}")


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
    require("h5py", "writing HDF5")
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
    # opened here, as Arrow takes no name that is not UTF-8
    with path.open("wb") as file, pq.ParquetWriter(file, schema, use_dictionary=False) as writer:

        def write(part: NDArray[np.floating]) -> None:
            column = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), dim)
            writer.write_table(pa.table([column], schema=schema))

        yield write


_WRITERS: dict[str, Any] = {
    ".npy": _npy, ".npz": _npz, ".bin": _bin, ".fvecs": _fvecs, ".h5": _hdf5, ".hdf5": _hdf5, ".parquet": _parquet,
}  # fmt: skip
SINGLE_ONLY = (".bin", ".fvecs")  # hold float32 and nothing else
