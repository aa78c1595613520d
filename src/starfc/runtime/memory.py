"""Memory-mapped arrays: giving back what was read of them."""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray


def release(array: NDArray) -> None:
    """Unmap the pages that were read of a memory-mapped file, which is read again where needed; others are left alone.

    Pages of a mapped file count as this process's memory once they were touched.
    """
    base = _file_of(array)
    if base is not None and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def mapped_bytes(*arrays: NDArray) -> int:
    """What touching all of these adds to this process's memory: the bytes of those that are memory-mapped."""
    return sum(array.nbytes for array in arrays if _file_of(array) is not None)


def _file_of(array: NDArray) -> mmap.mmap | None:
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None
