"""Give memory back to the system: pages of memory-mapped arrays, and what the C library keeps of freed arrays."""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# A line of /proc/self/maps: range of addresses, permissions with "s" for shared, offset, device, inode, and the path of
# a file. Devices and memory that only looks like a file have no pages that could be read again, so they are left out.
_SHARED = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) [r-][w-][x-]s [0-9a-f]+ \S+ [1-9]\d* +/(?!dev/|memfd:|SYSV|dmabuf:|anon_hugepage)"
)


def release_unused() -> None:
    """Give memory back that this process holds but does not need: freed arrays, and pages of memory-mapped files.

    The C library keeps the memory of freed arrays below 32 MiB, one heap for each thread. After a large search these
    are gigabytes. Pages of a mapped file count as memory of this process once they have been read; they are read again
    when needed. Has an effect on Linux only, for the C library with glibc only.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        found = _SHARED.match(line)
        if found:  # nothing is lost: what was written to a shared page is in the file
            start, stop = (int(found[at], 16) for at in (1, 2))
            library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)


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
