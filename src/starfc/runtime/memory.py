"""Give memory back to the system: pages of memory-mapped arrays, and what the C library keeps of freed arrays."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np
from numpy.typing import NDArray


def release_freed() -> None:
    """Give freed memory back to the system.

    The C library keeps the memory of freed arrays below 32 MiB, one heap for each thread. After a large search these
    are gigabytes, which count as memory of this process. Has an effect with glibc only.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


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
