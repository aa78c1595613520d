"""Write files atomically: a kill at any moment leaves the old file or the new file, never a part of one.

The name of a temporary file identifies its process: ``.starfc-HOST-PID-START-N.tmp.SUFFIX``. If a process was killed,
the next process that writes to the same folder removes its temporary files (:func:`sweep`).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starfc.errors import InputError

_NUMBERS = itertools.count()
_TEMPORARY = re.compile(r"\.?starfc-([0-9a-f]{8})-(\d+)-(\d+)-.*", re.DOTALL)
_SWEPT: set[tuple[int, str]] = set()
_REMEDIES = {
    errno.ENOSPC: "free space there, or name another path",
    errno.EDQUOT: "free space there, or name another path",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or name another path",
    errno.ENAMETOOLONG: "use a shorter name",
}


def unwritable(path: str | Path, error: OSError) -> InputError:
    """Return an InputError for an operating system error in writing ``path``. Its message names the path."""
    text = str(error)
    number, found = error.errno, re.search(r"errno = (\d+)", text)
    if number is None:  # HDF5 puts the error number into the text; numpy only says how much it wrote
        number = int(found[1]) if found else errno.ENOSPC if "requested and" in text else errno.EIO
    reason = error.strerror or (
        os.strerror(number) if found else text.splitlines()[0][:160] if text else "no reason given"
    )
    if "requested and" in text:
        reason = "only a part was written: the disk is full, or a limit of file sizes was reached"
    return InputError(f"{path}: cannot be written ({reason}); {_REMEDIES.get(number, 'name another path')}")


@contextmanager
def writes(path: str | Path, within: str | Path) -> Iterator[None]:
    """Turn operating system errors in the block, which writes ``path``, into an :class:`InputError`.

    An error that names a file outside of the folder ``within`` has another cause and is not changed.
    """
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else within)
        if Path(within) not in (named, *named.parents):
            raise
        raise unwritable(path, error) from error


def prepare_folder(path: str | Path) -> Path:
    """Create a folder for results, before the work that fills it starts.

    Raises
    ------
    InputError
        The folder cannot be created or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: the folder for the results cannot be created ({error.strerror}); name another folder"
        ) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"{path}: the folder for the results cannot be written to; name another folder")
    return path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``. If the block succeeds, rename the temporary file to ``path``.

    The file is written to the disk (fsync) before it is renamed.

    Raises
    ------
    InputError
        The file cannot be written. The earlier file is unchanged.
    """
    path = Path(path)
    with writes(path, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        require_place(path)
        with temporary_file(path) as temporary:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``. Remove the file at the end of the block, if it still exists."""
    _sweep_once(path.parent)
    temporary = path.with_name(f".{mark()}{next(_NUMBERS)}.tmp{path.suffix}")
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def require_place(path: Path) -> None:
    """Raise an error, before the work, if no file can be renamed to ``path``.

    Raises
    ------
    OSError
        ``path`` is a folder, or its name is too long.
    """
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))


def remove_empty(folder: Path) -> None:
    """Remove a folder if there is nothing in it."""
    with contextlib.suppress(OSError):  # it is not empty, or does not exist
        folder.rmdir()


@contextmanager
def no_empty_folder(folder: str | Path) -> Iterator[None]:
    """Remove a folder, and those above it, at the end of the block, if the block made them and they stayed empty."""
    made = [place for place in (Path(folder), *Path(folder).parents) if not place.exists()]
    try:
        yield
    finally:
        for place in made:
            remove_empty(place)


def save_array(path: str | Path, array: NDArray) -> None:
    """Write an array as .npy, atomically."""
    with replacing(path) as temporary:
        np.save(temporary, array)


def save_arrays(path: str | Path, arrays: Mapping[str, NDArray]) -> None:
    """Write arrays as .npz, atomically."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub mistakes the arrays for its option allow_pickle


def write_bytes(path: str | Path, content: bytes | memoryview) -> None:
    """Write bytes, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically."""
    write_bytes(path, (json.dumps(content, indent=1, sort_keys=False) + "\n").encode())


def mark() -> str:
    """Return the prefix of temporary names of this process."""
    return f"starfc-{_host()}-{os.getpid()}-{_started(os.getpid())}-"


def temporary_place() -> Path:
    """Return the operating system's folder for temporary files.

    Raises
    ------
    InputError
        There is no such folder that can be written to.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise InputError(f"temporary files: {error.strerror}; free space there, or set TMPDIR to a folder") from None


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a new folder in the system's temporary folder, and remove it after the block.

    Temporary folders of killed processes are removed too.
    """
    place = temporary_place()
    sweep(place)
    with writes(place, place):
        folder = tempfile.TemporaryDirectory(prefix=mark())
    with folder as name:
        yield Path(name)


def sweep(folder: Path) -> None:
    """Remove the temporary files in a folder that ended processes of this user on this machine left there."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if not match or match[1] != _host() or _alive(int(match[2]), match[3]):
                continue
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if found.st_uid != os.geteuid():
                    continue
                if stat.S_ISDIR(found.st_mode):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    Path(entry.path).unlink()


def _sweep_once(folder: Path) -> None:
    key = os.getpid(), str(folder)
    if key not in _SWEPT:
        _SWEPT.add(key)
        sweep(folder)


@functools.cache
def _host() -> str:
    """Return 8 hexadecimal digits that identify this machine and the PID namespace of its container."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.blake2b(f"{socket.gethostname()} {namespace}".encode(), digest_size=4).hexdigest()


def _started(process: int) -> str:
    """Return the start time of a process in clock ticks since boot. "0" if the system does not report it."""
    try:
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return "0"


def _alive(process: int, started: str) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it exists, but belongs to another user
    return "0" in (started, _started(process)) or _started(process) == started
