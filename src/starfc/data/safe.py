"""The door: every file that the product reads enters here, and is checked before anything else sees it.

What a file claims (shapes, lengths, names) is compared with what it can hold before memory is taken for it. Whatever is
wrong with a file ends as an :class:`InputError` of one line that names it.
"""

from __future__ import annotations

import io
import json
import os
import stat
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from starfc.errors import InputError, MissingFileError

_BLOCK = 1 << 20
_Content = TypeVar("_Content", bound=BaseModel)


def open_regular(path: str | Path, what: str = "file", *, follow: bool = True) -> BinaryIO:
    """Open a regular file for reading; never one that blocks or is a device.

    Parameters
    ----------
    what : str
        What the file should be, for the message.
    follow : bool
        Whether a symbolic link may lead to it. Not within a run's folder.

    Raises
    ------
    MissingFileError, InputError
        It is not there; it is a folder, a link, a FIFO or the like; it cannot be read.
    """
    path = Path(path)
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"{path}: no such {what}") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: this {what} cannot be opened ({getattr(error, 'strerror', None) or error})"
        ) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path}: a {what} that is a regular file is needed; found a folder, a pipe or a device")
    return os.fdopen(descriptor, "rb")


def read_npy(
    path: str | Path, kinds: str = "fiub", ndim: int | None = None, *, what: str = "NumPy file", follow: bool = True
) -> NDArray:
    """Memory-map a ``.npy``, its header checked against the file's size.

    Parameters
    ----------
    kinds : str
        Kinds of dtypes that are taken (``numpy.dtype.kind``).
    ndim : int, optional
        Number of axes.
    """
    path = Path(path)
    with open_regular(path, what, follow=follow) as file:
        shape, fortran, dtype = _npy_header(file, path, what)
        start, size = file.tell(), os.fstat(file.fileno()).st_size
    return _mapped(path, what, shape, fortran, dtype, start, size, kinds, ndim)


def read_raw(path: str | Path, dtype: np.dtype, shape: tuple[int, ...], *, follow: bool = True) -> NDArray:
    """Memory-map an array without a header, row-major; the file may be longer, but not shorter."""
    path = Path(path)
    with open_regular(path, "file of numbers", follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
    return _mapped(path, "file of numbers", shape, False, dtype, 0, size, dtype.kind, len(shape))


def _npy_header(file: IO[bytes], path: Path, what: str) -> tuple[Any, bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(file)  # (3, 0) is for names of fields alone, which no array here has
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        return read_header[version](file)
    except Exception as error:  # the header is a literal of Python: any error of its parsers
        raise InputError(f"{path}: not a readable {what} ({first_line(error)})") from None


def first_line(error: BaseException) -> str:
    """What an error of a parser says, short and on one line."""
    return (str(error).splitlines() or [""])[0][:160] or type(error).__name__


def _mapped(
    path: Path, what: str, shape: Any, fortran: bool, dtype: np.dtype, start: int, size: int, kinds: str,
    ndim: int | None,
) -> NDArray:  # fmt: skip
    if dtype.hasobject or dtype.kind not in kinds or (ndim is not None and len(shape) != ndim):
        axes = "" if ndim is None else f" of {ndim} axes"
        raise InputError(f"{path}: a {what}{axes} of a type among {', '.join(kinds)} needed; found {shape}, {dtype}")
    count = 1
    for length in shape:
        count *= int(length)
    if any(length < 0 for length in shape) or start + count * dtype.itemsize > size:
        raise InputError(f"{path}: shape {shape} of {dtype} is more than the file's {size:,} bytes; was it cut short?")
    if count == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")


def read_json(path: str | Path, content: type[_Content], *, follow: bool = False) -> _Content:
    """Read JSON as data, validated: a model of pydantic says which keys and types there must be."""
    path = Path(path)
    with open_regular(path, "JSON file", follow=follow) as file:
        text = file.read()
    try:
        return content.model_validate(json.loads(text))
    except (ValueError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = f"JSON needed; {first_line(error)}"
        if first is not None:
            where = ".".join(map(str, first["loc"]))[:160] or "content"
            reason = f"{where if where.isprintable() else ascii(where)}: {first['msg']}"
        raise InputError(
            f"{path}: not what such a file holds ({reason}); it is damaged, or not of this package"
        ) from None


def require_name(name: Any, folder: Path) -> str:
    """A relative name within a folder: no absolute path, no ``..``, nothing empty."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not parts or "\0" in name or parts[0] == "/" or any(part in ("..", ".") for part in parts):
        raise InputError(f"{folder}: names a file outside of itself or none ({name!r}); do not use this folder")
    return name


def digest(path: str | Path, *, follow: bool = False) -> str:
    """What a file's bytes are recognised by: xxh3, 64 bits, in hexadecimal digits."""
    state = xxhash.xxh3_64()
    with open_regular(path, follow=follow) as file:
        while block := file.read(_BLOCK):
            state.update(block)
    return f"xxh3:{state.hexdigest()}"


def read_own_npz(path: str | Path, *, follow: bool = False) -> dict[str, NDArray]:
    """The arrays of a ``.npz`` as this product writes them: not compressed, each as large as its header says.

    Raises
    ------
    MissingFileError, InputError
        No such file; not such an archive; a member that is damaged or of objects.
    """
    path, arrays = Path(path), {}
    with open_regular(path, "archive of arrays", follow=follow) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
                        raise InputError(f"{path}: compressed, which this product does not write; make it anew")
                    content = io.BytesIO(archive.read(member))
                    shape, fortran, dtype = _npy_header(content, path, "array")
                    arrays[member.filename.removesuffix(".npy")] = _within(content, shape, fortran, dtype)
        except InputError:
            raise
        except Exception as error:  # whatever the parsers of archives raise
            raise InputError(f"{path}: damaged ({first_line(error)}); make it anew") from None
    return arrays


def _within(content: io.BytesIO, shape: tuple[int, ...], fortran: bool, dtype: np.dtype) -> NDArray:
    count = 1
    for length in shape:
        count *= int(length)
    data = content.getbuffer()[content.tell() :]
    if dtype.hasobject or any(length < 0 for length in shape) or count * dtype.itemsize != data.nbytes:
        raise ValueError(f"shape {shape} of {dtype} for {data.nbytes:,} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C") if count else np.empty(shape, dtype)
