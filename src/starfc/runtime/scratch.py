"""Arrays that are written once and read once, front to back: they lie in a temporary file instead of memory."""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray


class ScratchRows:
    """(n, width) rows in an unnamed temporary file; slices of rows are written and read from any thread.

    Parameters
    ----------
    folder : path, optional
        Where the file lies (the system's folder for temporary files otherwise); it goes with this object.
    """

    def __init__(self, width: int, dtype: DTypeLike, folder: Path | None = None) -> None:
        self._descriptor, name = tempfile.mkstemp(prefix=".scratch-", dir=folder)
        weakref.finalize(self, os.close, self._descriptor)
        Path(name).unlink()  # the file lives as long as it is open
        self._width, self._dtype = width, np.dtype(dtype)

    def __setitem__(self, rows: slice, values: NDArray) -> None:
        data, at = memoryview(np.ascontiguousarray(values, self._dtype)).cast("B"), self._offset(rows.start)
        while data:
            written = os.pwrite(self._descriptor, data, at)
            data, at = data[written:], at + written

    def __getitem__(self, rows: slice) -> NDArray:
        out = np.empty((rows.stop - rows.start, self._width), self._dtype)
        data, at = memoryview(out).cast("B"), self._offset(rows.start)
        while data:
            found = os.preadv(self._descriptor, [data], at)
            if found == 0:
                raise EOFError(f"scratch rows {rows.start} to {rows.stop} were never written")
            data, at = data[found:], at + found
        return out

    def _offset(self, row: int) -> int:
        return row * self._width * self._dtype.itemsize
