"""Give back the memory of memory-mapped arrays."""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray


def release(array: NDArray) -> None:
    """Release the pages of a memory-mapped array. They are read from the file again when needed.

    Pages of a mapped file count as memory of this process once they have been read. An array in memory is not changed.
    """
    base = _file_of(array)
    if base is not None and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def mapped_bytes(*arrays: NDArray) -> int:
    """Return how many bytes reading these arrays adds to this process: the size of the memory-mapped ones."""
    return sum(array.nbytes for array in arrays if _file_of(array) is not None)


def _file_of(array: NDArray) -> mmap.mmap | None:
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None
