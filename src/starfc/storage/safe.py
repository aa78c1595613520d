"""Open and check files. All files that the package reads pass through this module before other code sees them.

The shapes, lengths and names that a file claims are compared with its size before memory is allocated for them. Every
fault of a file becomes an :class:`InputError` with one line that names the file.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from starfc.errors import InputError, MissingFileError

Header = tuple[tuple[int, ...], bool, np.dtype]  # shape, Fortran order, dtype

_BLOCK = 1 << 20
_PIECE = 16 << 20  # bytes that are read from a stream at once
_HEADER = 1 << 16  # maximum bytes of a .npy header
_RATIO, _LEAST = 4096, 256 << 20  # decompressed data may be _RATIO times the file's size, or _LEAST bytes
_NPZ = "NumPy file"
_JSON = 64 << 20  # maximum bytes of a JSON file: the parsed objects can take 50 times as much memory
_Content = TypeVar("_Content", bound=BaseModel)


def open_regular(path: str | Path, what: str = "file", *, follow: bool = True) -> BinaryIO:
    """Open a regular file for reading. Never block, and never open a device.

    Parameters
    ----------
    path : path
        The file.
    what : str
        What the file should be, for the message.
    follow : bool
        Whether the path may be a symbolic link. It is False for files in the folder of a run.

    Raises
    ------
    MissingFileError, InputError
        The file does not exist, is not a regular file, or cannot be read.
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
        raise InputError(f"{path}: must be a regular file ({what}); found a folder, a pipe or a device")
    return os.fdopen(descriptor, "rb")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 160 characters."""
    lines = str(error).splitlines()
    return lines[0][:160] if lines else type(error).__name__


@contextmanager
def damage(name: str | Path, kind: str) -> Iterator[None]:
    """Turn every exception of a file parser in the block into one InputError.

    For a damaged file a parser may raise any exception: from zlib, from a tokenizer, for an index out of range. No list
    of them would be complete.

    Parameters
    ----------
    name : path
        The file, or a description of the data such as 'stdin'.
    kind : str
        What the file should be, such as 'NumPy file'.

    Raises
    ------
    InputError
        In place of any other exception. An InputError of the block is not changed.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name}: not a readable {kind} ({first_line(error)}); was it cut short or damaged?") from None


def require_plausible(name: str | Path, num_bytes: int, size: int) -> None:
    """Raise an error if a file of ``size`` bytes cannot hold the compressed content of ``num_bytes`` that it claims.

    Raises
    ------
    InputError
        ``num_bytes`` is negative, or above both 256 MiB and 4,096 times ``size``.
    """
    if not 0 <= num_bytes <= max(_RATIO * size, _LEAST):
        raise InputError(
            f"{name}: claims to hold {num_bytes:,} bytes, which is not possible in a file of {size:,} bytes; was it "
            "cut short or damaged?"
        )


def npy_header(file: IO[bytes], name: str | Path, what: str = "NumPy file") -> Header:
    """Read the header of a .npy from a stream: shape, Fortran order, dtype. The stream is left at the first number.

    Raises
    ------
    InputError
        There is no such header, its dtype is object, or a length is negative or larger than any memory.
    """
    with damage(name, what):
        bounded: Any = _Bounded(file)
        version = np.lib.format.read_magic(bounded)  # version (3, 0) is only for field names, which no array here has
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise ValueError(f"unknown version {version} of the format")
        shape, fortran, dtype = read_header[version](bounded)
    if dtype.hasobject:
        raise InputError(f"{name}: not a readable {what} (it holds objects); save numbers, not Python objects")
    if any(length < 0 for length in shape) or _bytes_of(tuple(max(n, 1) for n in shape), dtype) > 1 << 62:
        raise InputError(f"{name}: not a readable {what} (the shape in its header is {shape}); was it damaged?")
    return tuple(map(int, shape)), fortran, dtype


class _Bounded:
    """A stream that refuses to read more bytes at once than a header may have."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, count: int) -> bytes:
        if count > _HEADER:
            raise ValueError(f"its header claims {count:,} bytes")
        return self._file.read(count)


def _bytes_of(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(map(int, shape)) * dtype.itemsize


def require_array(
    name: str | Path, shape: tuple[int, ...], dtype: np.dtype, kinds: str = "fiub", ndim: int | None = None
) -> None:
    """Raise InputError unless the dtype is one of ``kinds`` (``numpy.dtype.kind``) and there are ``ndim`` axes."""
    if dtype.kind not in kinds or (ndim is not None and len(shape) != ndim):
        axes = "" if ndim is None else f" of {ndim} axes"
        raise InputError(f"{name}: needs an array{axes} with dtype kind {', '.join(kinds)}; found {shape}, {dtype}")


def mapped(
    file: BinaryIO, name: str | Path, shape: tuple[int, ...], dtype: np.dtype, start: int, fortran: bool = False
) -> NDArray:
    """Memory-map an array in an open file, from byte ``start``.

    Raises
    ------
    InputError
        The file ends before the array does.
    """
    size = os.fstat(file.fileno()).st_size
    if start < 0 or start + _bytes_of(shape, dtype) > size:
        raise InputError(
            f"{name}: shape {shape} of {dtype} needs more than the file's {size:,} bytes; was it cut short?"
        )
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(file, dtype, "r", start, shape, "F" if fortran else "C")


def read_npy(
    path: str | Path, kinds: str = "fiub", ndim: int | None = None, *, what: str = "NumPy file", follow: bool = True
) -> NDArray:
    """Memory-map a ``.npy``, after its header was compared with the size of the file.

    Parameters
    ----------
    path : path
        The file.
    kinds : str
        Allowed kinds of dtype (``numpy.dtype.kind``).
    ndim : int, optional
        Required number of axes.
    what, follow
        As for :func:`open_regular`.

    Raises
    ------
    MissingFileError, InputError
        The file does not exist, is not a .npy, is cut short, or holds another kind of array.
    """
    with open_regular(path, what, follow=follow) as file:
        shape, fortran, dtype = npy_header(file, path, what)
        require_array(path, shape, dtype, kinds, ndim)
        return mapped(file, path, shape, dtype, file.tell(), fortran)


def read_raw(path: str | Path, dtype: np.dtype, shape: tuple[int, ...], *, follow: bool = True) -> NDArray:
    """Memory-map a row-major array without a header. The file may be longer than the array, but not shorter."""
    if any(length < 0 for length in shape):
        raise InputError(f"{path}: lengths must not be negative; found shape {shape}")
    with open_regular(path, "file of numbers", follow=follow) as file:
        return mapped(file, path, shape, dtype, 0)


class Npz:
    """The arrays of an ``.npz``, as a context manager. Each is compared with the archive's directory before it is read.

    Parameters
    ----------
    path : path
        The file.
    follow : bool
        As for :func:`open_regular`.

    Raises
    ------
    MissingFileError, InputError
        The file does not exist or is no such archive, a name occurs twice, or a member is no ``.npy``.
    """

    def __init__(self, path: str | Path, *, follow: bool = True) -> None:
        self.path = path
        self._file = open_regular(path, _NPZ, follow=follow)
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            with damage(path, _NPZ):
                self._archive = zipfile.ZipFile(self._file)
                members = self._archive.infolist()
            self._members = {member.filename.removesuffix(".npy"): member for member in members}
            other = [member.filename for member in members if not member.filename.endswith(".npy")]
            if other or len(self._members) < len(members):
                which = f"{other[0]!r} in it is no .npy" if other else "it has two arrays of one name"
                raise InputError(f"{path}: not a readable {_NPZ} ({which}); write it with numpy.savez")
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Npz:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def names(self) -> list[str]:
        """Return the names of the arrays, in the order of the archive."""
        return list(self._members)

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[IO[bytes], Header]]:
        """Yield an array as a stream of its numbers, with its shape, Fortran order and dtype.

        Raises
        ------
        InputError
            There is no such array, it is encrypted or not compressed with deflate, or the member is too small for its
            shape. Also raised in the block if the bytes are damaged.
        """
        if name not in self._members:
            raise InputError(f"{self.path}: has no array {name!r}; found {self.listed()}")
        member, what = self._members[name], f"{self.path}, array {name!r}"
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{what}: is encrypted, or not compressed with deflate; write it with numpy.savez")
        require_plausible(what, member.file_size, self._size)
        with damage(what, _NPZ), self._archive.open(member) as file:
            shape, fortran, dtype = npy_header(file, what)
            if file.tell() + _bytes_of(shape, dtype) > member.file_size:
                raise InputError(
                    f"{what}: shape {shape} of {dtype} needs more than its {member.file_size:,} bytes; was it damaged?"
                )
            yield file, (shape, fortran, dtype)

    def array(self, name: str, kinds: str = "fiub", ndim: int | None = None) -> NDArray:
        """Read a whole array. The parameters are those of :func:`read_npy`."""
        with self.open(name) as (file, (shape, fortran, dtype)):
            require_array(f"{self.path}, array {name!r}", shape, dtype, kinds, ndim)
            data = take(file, _bytes_of(shape, dtype))
            if len(data) < _bytes_of(shape, dtype):
                raise EOFError("it ends too soon")
            file.read(1)  # makes zipfile compare the checksum, which it does at the end of the member
            found = np.frombuffer(data, dtype)
            return found.reshape(shape[::-1]).T if fortran else found.reshape(shape)

    def listed(self) -> str:
        """Return the names of the arrays as text for messages."""
        return listed(self.names) or "no array"


def listed(names: list[str]) -> str:
    """Return the first 12 names as text for messages."""
    return ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")


def take(file: IO[bytes], count: int) -> bytearray:
    """Read the next ``count`` bytes of a stream, or fewer at its end. Memory is allocated only for bytes that exist."""
    data = bytearray()
    while len(data) < count and (block := file.read(min(_PIECE, count - len(data)))):
        data += block
    return data


def read_text(path: str | Path, what: str = "text file", *, follow: bool = True) -> str:
    """Read a text file: UTF-8, with or without a byte order mark, without zero bytes.

    Raises
    ------
    MissingFileError, InputError
        The file does not exist, or is not such text.
    """
    with open_regular(path, what, follow=follow) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: a {what} must be UTF-8 text; {error}; save it as UTF-8") from None
    if "\0" in text:
        raise InputError(f"{path}: a {what} must be UTF-8 text; found zero bytes; save it as UTF-8")
    return text


def read_lines(path: str | Path, what: str = "text file", *, follow: bool = True) -> list[str]:
    """Read the lines of a text file with line ends of any system. Bytes that are not UTF-8, as in paths, are kept.

    Raises
    ------
    MissingFileError, InputError
        The file does not exist, or is not text.
    """
    with open_regular(path, what, follow=follow) as file:
        data = file.read().removeprefix(codecs.BOM_UTF8)
    if b"\0" in data:
        raise InputError(f"{path}: a {what} must be text with one entry per line; found zero bytes")
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return [line.decode("utf-8", "surrogateescape") for line in (lines[:-1] if not lines[-1] else lines)]


def json_bytes(path: str | Path, *, follow: bool = False) -> bytes:
    """Return the content of a JSON file that is not too large to be parsed.

    Raises
    ------
    MissingFileError, InputError
        The file does not exist, or is larger than 64 MiB.
    """
    with open_regular(path, "JSON file", follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _JSON:
            raise InputError(
                f"{path}: a JSON file may have at most {_JSON:,} bytes; found {size:,}; it is damaged, or this package "
                "did not write it"
            )
        return file.read(size)


def read_json(path: str | Path, content: type[_Content], *, follow: bool = False) -> _Content:
    """Read a JSON file, and validate its keys and types with the pydantic model ``content``.

    Raises
    ------
    MissingFileError, InputError
        The file does not exist, is larger than 64 MiB, is not JSON, or does not fit the model.
    """
    text = json_bytes(path, follow=follow)
    try:
        return content.model_validate(json.loads(text))
    except (ValueError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = f"not JSON: {first_line(error)}"
        if first is not None:
            where = ".".join(map(str, first["loc"]))[:160] or "content"
            reason = f"{where if where.isprintable() else ascii(where)}: {first['msg']}"
        raise InputError(
            f"{path}: has wrong content ({reason}); it is damaged, or this package did not write it"
        ) from None


def require_name(name: Any, folder: Path) -> str:
    """Return the name of a file. Raise InputError unless it is relative, not empty, and without ``..``."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not parts or "\0" in name or parts[0] == "/" or any(part in ("..", ".") for part in parts):
        raise InputError(f"{folder}: lists a file that is not inside the folder ({name!r}); do not use this folder")
    return name


def digest(path: str | Path, *, follow: bool = False) -> str:
    """Return the digest of a file's bytes: XXH3 with 64 bits, in hexadecimal digits."""
    state = xxhash.xxh3_64()
    with open_regular(path, follow=follow) as file:
        while block := file.read(_BLOCK):
            state.update(block)
    return f"xxh3:{state.hexdigest()}"


def read_own_npz(path: str | Path) -> dict[str, NDArray]:
    """Read all arrays of an ``.npz`` that this package wrote. A symbolic link is not followed.

    Raises
    ------
    MissingFileError, InputError
        The file does not exist or is no such archive, or a member is damaged or holds objects.
    """
    with Npz(path, follow=False) as file:
        return {name: file.array(name) for name in file.names}
