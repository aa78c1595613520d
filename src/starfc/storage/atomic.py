"""Writing files so that a kill at any moment leaves the old file or the new one, never a part.

Temporary names say which process they are of: ``.starfc-HOST-PID-START-N.tmp.SUFFIX``. What a process left that has
ended is removed by the next that writes in the same folder (:func:`sweep`).
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
    errno.ENOSPC: "free space there, or name another place",
    errno.EDQUOT: "free space there, or name another place",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), or name another place",
    errno.ENAMETOOLONG: "name a shorter one",
}


def unwritable(path: str | Path, error: OSError) -> InputError:
    """An error of the system in writing a path, as one message that names it."""
    text = str(error)
    number, found = error.errno, re.search(r"errno = (\d+)", text)
    if number is None:  # HDF5 has it in the text, numpy says how much it wrote
        number = int(found[1]) if found else errno.ENOSPC if "requested and" in text else errno.EIO
    reason = error.strerror or (
        os.strerror(number) if found else text.splitlines()[0][:160] if text else "no reason given"
    )
    if "requested and" in text:
        reason = "not all of it was written: the disk is full, or a limit of file sizes reached"
    return InputError(f"{path}: cannot be written ({reason}); {_REMEDIES.get(number, 'name another place')}")


@contextmanager
def writes(path: str | Path, within: str | Path) -> Iterator[None]:
    """Turn what the system says against writing ``path`` while the block runs into an :class:`InputError`.

    An error that names a file outside of the folder ``within`` is not of this, and goes on.
    """
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else within)
        if Path(within) not in (named, *named.parents):
            raise
        raise unwritable(path, error) from error


def prepare_folder(path: str | Path) -> Path:
    """Make a folder for results, before the work that fills it.

    Raises
    ------
    InputError
        It cannot be made or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: a folder for the results cannot be made there ({error.strerror}); name another"
        ) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"{path}: the folder for the results cannot be written to; name another")
    return path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends well, flush it and rename it over ``path``.

    Raises
    ------
    InputError
        It cannot be written; what was there before is as it was.
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
    """A temporary path beside ``path``; what lies there at the end of the block goes."""
    _sweep_once(path.parent)
    temporary = path.with_name(f".{mark()}{next(_NUMBERS)}.tmp{path.suffix}")
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def require_place(path: Path) -> None:
    """Refuse, before the work, a path that no file can be renamed to: a folder is there, or the name is too long.

    Raises
    ------
    OSError
    """
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            raise IsADirectoryError(errno.EISDIR, "a folder stands there", str(path))


def save_array(path: str | Path, array: NDArray) -> None:
    """Write an array as .npy, atomically."""
    with replacing(path) as temporary:
        np.save(temporary, array)


def save_arrays(path: str | Path, arrays: Mapping[str, NDArray]) -> None:
    """Write arrays as .npz, atomically."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes a name for its own allow_pickle


def write_bytes(path: str | Path, content: bytes | memoryview) -> None:
    """Write bytes, atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically."""
    write_bytes(path, (json.dumps(content, indent=1, sort_keys=False) + "\n").encode())


def mark() -> str:
    """What temporary names of this process begin with."""
    return f"starfc-{_host()}-{os.getpid()}-{_started(os.getpid())}-"


def temporary_place() -> Path:
    """The system's place for temporary files.

    Raises
    ------
    InputError
        There is none that can be written to.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise InputError(f"temporary files: {error.strerror}; free space there, or set TMPDIR to a folder") from None


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in the system's place for temporary files, which goes with the block; those of killed processes go."""
    place = temporary_place()
    sweep(place)
    with writes(place, place):
        folder = tempfile.TemporaryDirectory(prefix=mark())
    with folder as name:
        yield Path(name)


def sweep(folder: Path) -> None:
    """Remove what processes of this user on this machine left in a folder that have ended."""
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
    """This machine and, of a container, its numbering of processes, as 8 hexadecimal digits."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.blake2b(f"{socket.gethostname()} {namespace}".encode(), digest_size=4).hexdigest()


def _started(process: int) -> str:
    """When a process started, in ticks since the machine did; 0 where the system does not say."""
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
        pass  # of another user
    return "0" in (started, _started(process)) or _started(process) == started
