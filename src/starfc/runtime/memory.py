"""Memory-mapped arrays: giving back what was read of them."""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray


def release(array: NDArray) -> None:
    """Unmap the pages that were read of a memory-mapped file, which is read again where needed; others are left alone.

    Pages of a mapped file count as this process's memory once they were touched.
    """
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
