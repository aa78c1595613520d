"""The door: every file that the product reads enters here, and is checked before anything else sees it.

What a file claims (shapes, lengths, names) is compared with what it can hold before memory is taken for it. Whatever is
wrong with a file ends as an :class:`InputError` of one line that names it.
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
_PIECE = 16 << 20  # bytes that are read of a stream at once
_HEADER = 1 << 16  # bytes of a .npy's header, at most
_RATIO, _LEAST = 4096, 256 << 20  # what is compressed may be so many times the file, or so many bytes
_NPZ = "NumPy file"
_JSON = 64 << 20  # bytes of JSON that are read, at most: what it makes in memory is up to 50 times that
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


def first_line(error: BaseException) -> str:
    """What an error of a parser says, short and on one line."""
    lines = str(error).splitlines()
    return lines[0][:160] if lines else type(error).__name__


@contextmanager
def damage(name: str | Path, kind: str) -> Iterator[None]:
    """Whatever a parser of files raises while the block runs, as one message.

    Parsers raise what they happen to meet in a damaged file (of zlib, of a tokenizer, of an index that is out of
    range), and no list of it is whole.

    Parameters
    ----------
    name : path
        The file, or what stands for it.
    kind : str
        What the file should be, such as 'NumPy file'.

    Raises
    ------
    InputError
        Any exception but one of the same type, which is left as it is.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name}: not a readable {kind} ({first_line(error)}); was it cut short or damaged?") from None


def require_plausible(name: str | Path, num_bytes: int, size: int) -> None:
    """Refuse content of ``num_bytes`` that a file of ``size`` bytes says it has, compressed, where it cannot.

    Raises
    ------
    InputError
        It is negative, or more than 4,096 times the file and above 256 MiB.
    """
    if not 0 <= num_bytes <= max(_RATIO * size, _LEAST):
        raise InputError(
            f"{name}: says that it holds {num_bytes:,} bytes, which a file of {size:,} bytes does not; was it cut "
            "short or damaged?"
        )


def npy_header(file: IO[bytes], name: str | Path, what: str = "NumPy file") -> Header:
    """Shape, Fortran order and dtype of the .npy that a stream begins with, which is left at its first number.

    Raises
    ------
    InputError
        No such header, one of objects, or one of lengths that are negative or beyond all memory.
    """
    with damage(name, what):
        bounded: Any = _Bounded(file)
        version = np.lib.format.read_magic(bounded)  # (3, 0) is for names of fields alone, which no array here has
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise ValueError(f"version {version} of the format")
        shape, fortran, dtype = read_header[version](bounded)
    if dtype.hasobject:
        raise InputError(f"{name}: not a readable {what} (it holds objects); save numbers, not Python objects")
    if any(length < 0 for length in shape) or _bytes_of(tuple(max(n, 1) for n in shape), dtype) > 1 << 62:
        raise InputError(f"{name}: not a readable {what} (its header says a shape of {shape}); was it damaged?")
    return tuple(map(int, shape)), fortran, dtype


class _Bounded:
    """A stream of which no more is taken at once than a header may have."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, count: int) -> bytes:
        if count > _HEADER:
            raise ValueError(f"a header of {count:,} bytes")
        return self._file.read(count)


def _bytes_of(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(map(int, shape)) * dtype.itemsize


def require_array(
    name: str | Path, shape: tuple[int, ...], dtype: np.dtype, kinds: str = "fiub", ndim: int | None = None
) -> None:
    """Refuse an array of another kind of dtype (``numpy.dtype.kind``) or of another number of axes."""
    if dtype.kind not in kinds or (ndim is not None and len(shape) != ndim):
        axes = "" if ndim is None else f" of {ndim} axes"
        raise InputError(f"{name}: an array{axes} of a type among {', '.join(kinds)} needed; found {shape}, {dtype}")


def mapped(
    file: BinaryIO, name: str | Path, shape: tuple[int, ...], dtype: np.dtype, start: int, fortran: bool = False
) -> NDArray:
    """Memory-map a part of an open file, which has to be that long.

    Raises
    ------
    InputError
        The file ends before the array does.
    """
    size = os.fstat(file.fileno()).st_size
    if start < 0 or start + _bytes_of(shape, dtype) > size:
        raise InputError(f"{name}: shape {shape} of {dtype} is more than the file's {size:,} bytes; was it cut short?")
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(file, dtype, "r", start, shape, "F" if fortran else "C")


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

    Raises
    ------
    MissingFileError, InputError
        It is not there, not a .npy, cut short, or an array of another kind.
    """
    with open_regular(path, what, follow=follow) as file:
        shape, fortran, dtype = npy_header(file, path, what)
        require_array(path, shape, dtype, kinds, ndim)
        return mapped(file, path, shape, dtype, file.tell(), fortran)


def read_raw(path: str | Path, dtype: np.dtype, shape: tuple[int, ...], *, follow: bool = True) -> NDArray:
    """Memory-map an array without a header, row-major; the file may be longer, but not shorter."""
    if any(length < 0 for length in shape):
        raise InputError(f"{path}: a shape of {shape} is none")
    with open_regular(path, "file of numbers", follow=follow) as file:
        return mapped(file, path, shape, dtype, 0)


class Npz:
    """The arrays of an ``.npz``, each checked against the archive's directory before it is read; a context manager.

    Parameters
    ----------
    path : path
    follow : bool
        As for :func:`open_regular`.

    Raises
    ------
    MissingFileError, InputError
        It is not there, no such archive, or one with a name twice or a member that is no ``.npy``.
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
                which = f"{other[0]!r} in it is no .npy" if other else "a name is in it twice"
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
        """Names of the arrays, in the order of the archive."""
        return list(self._members)

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[IO[bytes], Header]]:
        """An array as a stream of its numbers, with shape, Fortran order and dtype.

        Raises
        ------
        InputError
            No such array, an encrypted one, one of another compression than deflate, a shape that the member cannot
            hold; while the block runs, whatever is wrong with its bytes.
        """
        if name not in self._members:
            raise InputError(f"{self.path}: no array {name!r} in it; found {self.listed()}")
        member, what = self._members[name], f"{self.path}, array {name!r}"
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(
                f"{what}: encrypted, or compressed by another method than deflate; write it with numpy.savez"
            )
        require_plausible(what, member.file_size, self._size)
        with damage(what, _NPZ), self._archive.open(member) as file:
            shape, fortran, dtype = npy_header(file, what)
            if file.tell() + _bytes_of(shape, dtype) > member.file_size:
                raise InputError(
                    f"{what}: shape {shape} of {dtype} is more than its {member.file_size:,} bytes; was it damaged?"
                )
            yield file, (shape, fortran, dtype)

    def array(self, name: str, kinds: str = "fiub", ndim: int | None = None) -> NDArray:
        """An array, read as a whole; parameters as for :func:`read_npy`."""
        with self.open(name) as (file, (shape, fortran, dtype)):
            require_array(f"{self.path}, array {name!r}", shape, dtype, kinds, ndim)
            data = take(file, _bytes_of(shape, dtype))
            if len(data) < _bytes_of(shape, dtype):
                raise EOFError("it ends too soon")
            file.read(1)  # at the end of the member its checksum is compared
            found = np.frombuffer(data, dtype)
            return found.reshape(shape[::-1]).T if fortran else found.reshape(shape)

    def listed(self) -> str:
        """Names, for messages."""
        return listed(self.names) or "no array"


def listed(names: list[str]) -> str:
    """Some names, for messages."""
    return ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")


def take(file: IO[bytes], count: int) -> bytearray:
    """The next ``count`` bytes of a stream, fewer where it ends; memory grows with what is really there."""
    data = bytearray()
    while len(data) < count and (block := file.read(min(_PIECE, count - len(data)))):
        data += block
    return data


def read_text(path: str | Path, what: str = "text file", *, follow: bool = True) -> str:
    """A file's text: UTF-8, with or without a byte order mark, without zero bytes.

    Raises
    ------
    MissingFileError, InputError
        It is not there, or not such text.
    """
    with open_regular(path, what, follow=follow) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: a {what} is UTF-8 text; {error}; save it as UTF-8") from None
    if "\0" in text:
        raise InputError(f"{path}: a {what} is UTF-8 text; found zero bytes; save it as UTF-8")
    return text


def read_lines(path: str | Path, what: str = "text file", *, follow: bool = True) -> list[str]:
    """Lines of a text, those of paths with names that are not UTF-8 too; the ends of lines are those of any system.

    Raises
    ------
    MissingFileError, InputError
        It is not there, or no text.
    """
    with open_regular(path, what, follow=follow) as file:
        data = file.read().removeprefix(codecs.BOM_UTF8)
    if b"\0" in data:
        raise InputError(f"{path}: a {what} is text, one a line; found zero bytes")
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return [line.decode("utf-8", "surrogateescape") for line in (lines[:-1] if not lines[-1] else lines)]


def read_json(path: str | Path, content: type[_Content], *, follow: bool = False) -> _Content:
    """Read JSON as data, validated: a model of pydantic says which keys and types there must be.

    Raises
    ------
    MissingFileError, InputError
        It is not there, larger than 64 MiB, no JSON, or not of that model.
    """
    path = Path(path)
    with open_regular(path, "JSON file", follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _JSON:
            raise InputError(
                f"{path}: a JSON file of at most {_JSON:,} bytes is read; found {size:,}; it is damaged, or not of "
                "this package"
            )
        text = file.read(size)
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


def read_own_npz(path: str | Path) -> dict[str, NDArray]:
    """All arrays of an ``.npz`` that this product wrote, over no symbolic link.

    Raises
    ------
    MissingFileError, InputError
        No such file; not such an archive; a member that is damaged or of objects.
    """
    with Npz(path, follow=False) as file:
        return {name: file.array(name) for name in file.names}
