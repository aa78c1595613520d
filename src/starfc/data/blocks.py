"""Features that are read, or written, once, from front to back, a block of rows at a time."""

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
