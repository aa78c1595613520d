"""Arrays in temporary files instead of memory. Their disk space is allocated before they are used.

If the disk is full, writing to a page of a mapped file kills the process (SIGBUS). For this reason
:func:`scratch_array` allocates the whole file first.
"""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from starfc.errors import InputError
from starfc.storage.atomic import mark, temporary_place, unwritable, writes

_PIECE = 1 << 22
IN_MEMORY = 256 << 20  # arrays up to this many bytes stay in memory


def allocate(descriptor: int, size: int) -> None:
    """Allocate ``size`` bytes of disk space for an open file.

    Raises
    ------
    OSError
        The disk has too little space.
    """
    if size == 0:
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except AttributeError:  # macOS has no posix_fallocate
        _fill(descriptor, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV):
            raise
        _fill(descriptor, size)


def scratch_array(shape: tuple[int, ...], dtype: DTypeLike, folder: str | Path | None) -> NDArray:
    """Create an array of zeros in an unnamed memory-mapped file, which is removed together with the array.

    Parameters
    ----------
    shape : tuple of int
        Shape of the array.
    dtype : dtype
        Type of its elements.
    folder : path, optional
        Folder of the file. Default: the system's temporary folder.

    Raises
    ------
    InputError
        The disk has too little space.
    """
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if size == 0:
        return np.zeros(shape, dtype)
    with _unnamed(folder) as file:
        try:
            allocate(file.fileno(), size)
        except OSError as error:
            raise _no_room(folder, error) from None
        return np.memmap(file, dtype, "r+", shape=shape)


def large_array(shape: tuple[int, ...], dtype: DTypeLike, folder: str | Path | None) -> NDArray:
    """Create an array: in memory up to :data:`IN_MEMORY` bytes, otherwise in a file (:func:`scratch_array`).

    While an array in a file is not in use, :func:`starfc.runtime.memory.release` gives back its memory.
    """
    if int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize <= IN_MEMORY:
        return np.empty(shape, dtype)
    return scratch_array(shape, dtype, folder)


def create_npy(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> None:
    """Write a ``.npy`` of zeros, with its disk space allocated.

    Raises
    ------
    InputError
        The disk has too little space.
    """
    dtype = np.dtype(dtype)
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with writes(path, path.parent), path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        allocate(file.fileno(), file.tell() + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)


class ScratchRows:
    """Rows (n, width) in an unnamed temporary file. Any thread may write and read slices of rows.

    Parameters
    ----------
    width : int
        Number of columns.
    dtype : dtype
        Type of the elements.
    folder : path, optional
        Folder of the file, which is removed together with this object. Default: the system's temporary folder.
    """

    def __init__(self, width: int, dtype: DTypeLike, folder: Path | None = None) -> None:
        with _unnamed(folder) as file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self._folder = folder
        self._width, self._dtype = width, np.dtype(dtype)

    def __setitem__(self, rows: slice, values: NDArray) -> None:
        data, at = np.ascontiguousarray(values, self._dtype).data.cast("B"), self._offset(rows.start)
        while data:
            try:
                written = os.pwrite(self._descriptor, data, at)
            except OSError as error:
                raise _no_room(self._folder, error) from None
            data, at = data[written:], at + written

    def __getitem__(self, rows: slice) -> NDArray:
        out = np.empty((rows.stop - rows.start, self._width), self._dtype)
        data, at = out.data.cast("B"), self._offset(rows.start)
        while data:
            found = os.preadv(self._descriptor, [data], at)
            if found == 0:
                raise EOFError(f"scratch rows {rows.start} to {rows.stop} were never written")
            data, at = data[found:], at + found
        return out

    def _offset(self, row: int) -> int:
        return row * self._width * self._dtype.itemsize


def _unnamed(folder: str | Path | None) -> IO[bytes]:
    folder = temporary_place() if folder is None else folder
    try:
        return tempfile.TemporaryFile(buffering=0, prefix=f".{mark()}", dir=folder)
    except OSError as error:
        raise _no_room(folder, error) from None


def _no_room(folder: str | Path | None, error: OSError) -> InputError:
    return unwritable(f"a scratch file in {temporary_place() if folder is None else folder}", error)


def _fill(descriptor: int, size: int) -> None:
    """Write zeros instead, for a file system that cannot allocate."""
    zeros = memoryview(bytes(_PIECE))
    for at in range(0, size, _PIECE):
        data = zeros[: min(_PIECE, size - at)]
        while data:
            written = os.pwrite(descriptor, data, at)
            data, at = data[written:], at + written
