"""Read or write features once, from front to back, in blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starfc.data.names import alternatives
from starfc.errors import InputError
from starfc.runtime.memory import release
from starfc.runtime.stages import megabytes
from starfc.runtime.words import advice, word
from starfc.storage.safe import listed

BLOCK_BYTES = 16 << 20

Write = Callable[[NDArray[np.floating]], object]


@dataclass(frozen=True)
class Blocks:
    """Features (rows, dim) as an iterator of blocks, which can be read once. ``name`` is their source, for messages."""

    rows: int
    dim: int
    dtype: np.dtype
    parts: Iterator[NDArray[np.floating]]
    name: str = "features"

    def array(self, room: int | None = None) -> NDArray[np.floating]:
        """Read all rows into one array.

        Parameters
        ----------
        room : int, optional
            Bytes of memory that the array may take.

        Raises
        ------
        InputError
            The array would take more, or a block is damaged.
        """
        needs = self.rows * self.dim * self.dtype.itemsize
        if room is not None and needs > room:
            raise InputError(
                f"{self.name}: features of this format must fit into memory; they need {megabytes(needs)}, but "
                f"{megabytes(room)} of {word('memory_limit')} are left; raise the limit, or convert them to .npy"
                f"{advice(' ({})', 'starfc convert')}, which is memory-mapped"
            )
        out, at = np.empty((self.rows, self.dim), self.dtype), 0
        for part in self.parts:
            out[at : at + len(part)] = part
            at += len(part)
        return out


def rows_of_block(dim: int, itemsize: int = 4) -> int:
    """Return the number of rows per block."""
    return max(1, BLOCK_BYTES // max(1, dim * itemsize))


def blocks_of(array: NDArray[np.floating], name: str = "features") -> Blocks:
    """Return the blocks of an array. The memory of a memory-mapped array is released after each block."""

    def parts() -> Iterator[NDArray[np.floating]]:
        step = rows_of_block(array.shape[1], array.dtype.itemsize)
        for start in range(0, len(array), step):
            yield np.ascontiguousarray(array[start : start + step])
            release(array)

    rows, dim = array.shape
    return Blocks(rows, dim, array.dtype, parts(), name)


def floats(blocks: Blocks) -> Blocks:
    """Return the blocks with integers converted to float32."""
    if blocks.dtype.kind == "f":
        return blocks
    parts = (part.astype(np.float32) for part in blocks.parts)
    return Blocks(blocks.rows, blocks.dim, np.dtype(np.float32), parts, blocks.name)


def chosen_name(
    path: str | Path, what: str, names: list[str], obvious: tuple[str, ...], key: str | None, keyed: bool
) -> str:
    """Return the name of the array or dataset of a file to use: ``key``, or the only one, or the first obvious name.

    Parameters
    ----------
    path : path
        The file.
    what : str
        'array' or 'dataset', for messages.
    names : list of str
        Names of the arrays or datasets in the file.
    obvious : tuple of str
        Names that are used without a key, in order of preference, in upper or lower case.
    key : str, optional
        The name that the user gives.
    keyed : bool
        Whether messages may advise to give ``key``.

    Raises
    ------
    InputError
        There is no array ``key``, or there are several and none has an obvious name.
    """
    there = listed(names) or f"no {what}"
    if key is not None and key not in names:
        raise InputError(f"{path}: has no {what} {key!r} ({word('key')}); found {there}")
    called = {name.lower(): name for name in reversed(names)}
    found = [key] if key is not None else [called[name.lower()] for name in obvious if name.lower() in called]
    found = found or (names if len(names) == 1 else [])
    if not found:
        remedy = advice("; name the one to use with {}", "key") if keyed else ""
        raise InputError(f"{path}: needs one {what}, or one called {alternatives(obvious)}; found {there}{remedy}")
    return found[0]


def require_features(name: str | Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise :class:`InputError` unless a shape and dtype are those of features."""
    if len(shape) != 2 or dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise InputError(
            f"{name}: features must be a two-dimensional array (N, d) of float16, float32 or float64, or of integers; "
            f"found shape {tuple(shape)}, {dtype}"
        )
    if shape[1] == 0:
        raise InputError(f"{name}: features must have at least one dimension; found shape {tuple(shape)}")


def converted(blocks: Blocks, dtype: np.dtype, name: str) -> Iterator[NDArray[np.floating]]:
    """Yield the blocks converted to another dtype.

    Raises
    ------
    InputError
        A finite number is too large for the dtype.
    """
    for part in blocks.parts:
        with np.errstate(over="ignore"):
            out = np.ascontiguousarray(part, dtype)
        if dtype.itemsize < part.dtype.itemsize and (np.isinf(out) & np.isfinite(part)).any():
            raise InputError(
                f"{name}: has numbers above {np.finfo(dtype).max:g}, the largest {dtype.name}; scale the features, or "
                "choose a wider --dtype"
            )
        yield out
