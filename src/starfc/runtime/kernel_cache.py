"""Keep the cache of compiled kernels whole when several processes fill it at the same time.

numba stores the compiled forms of a kernel (one for each combination of argument types) in numbered files, with an
index. It reads the index, takes the next free number, and writes both. Two processes that compile two forms of one
kernel at the same time can take the same number. The index then names one form, and the file holds the other: a later
process would run the wrong code.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba.core.caching import IndexDataCacheFile

_load, _save = IndexDataCacheFile.load, IndexDataCacheFile.save


def lock_kernel_cache() -> None:
    """Let this process read and write cached kernels one process at a time."""
    for name, method in (("load", _locked_load), ("save", _locked_save)):
        setattr(IndexDataCacheFile, name, method)


def _locked_load(self: Any, key: Any) -> Any:
    with _lock(self._cache_path):
        return _load(self, key)


def _locked_save(self: Any, key: Any, data: Any) -> None:
    with _lock(self._cache_path):
        _save(self, key, data)


@contextmanager
def _lock(folder: str) -> Iterator[None]:
    """Hold the lock of a cache folder; without one, where the folder cannot be written to."""
    try:
        descriptor = os.open(Path(folder) / "starfc.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
