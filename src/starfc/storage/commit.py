"""Change all files of a folder at once: a kill at any moment leaves all old files or all new files.

1. New files are written to ``.next/`` in the folder, and ``.next/remove.json`` lists old files to remove.
2. When they are on the disk, ``.next/commit.json`` is written, which lists the new files. From then on they are valid.
3. They are renamed over the old files, and ``.next/`` is removed.

After a kill before step 2 the old files are valid, and the next command that writes to the folder removes ``.next/``.
After a kill in step 3 that command first completes the renames. A command that only reads takes the new files from
``.next/``.

``files.json`` lists the files of the folder: the command that wrote each, its size and digest, and a new id for every
change. A command replaces only files that an earlier run of it wrote.

Only one process writes at a time. It holds the lock file ``.lock``, which describes the process. The operating system
releases the lock when the process ends.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from starfc.errors import InputError, MissingFileError
from starfc.runtime.words import advice, maker
from starfc.storage.atomic import no_empty_folder, prepare_folder, remove_empty, sweep, write_json, writes
from starfc.storage.owners import Owner, earlier, matching
from starfc.storage.records import FileList, ListedFile, NameList
from starfc.storage.safe import digest, read_json, require_name

log = logging.getLogger("starfc")

_LATER = {  # what later commands did to a run, and what clustering again would lose
    "assign": "instances were added to this run or removed from it; clustering again would lose its cluster ids",
    "apply": "marks or names were given to this run; clustering again would lose them",
}
NEXT, LIST, REMOVE, LOCK, FILES = ".next", "commit.json", "remove.json", ".lock", "files.json"


@dataclass
class Change:
    """A folder while a command changes it. The command writes new files to ``place``; the commit moves them.

    Attributes
    ----------
    folder : path
        The folder.
    kind : Owner
        The command that changes it.
    owned : dict
        Files in the folder that commands wrote, by name.
    inputs : list of path
        Files that the command reads. They are never replaced.
    overwrite : bool
        Whether to replace files that no earlier run of the command wrote.
    appended : list of str
        Names of files that the command appends to in place.
    removed : list of str
        Names of files that the commit removes.
    afterwards : list of callable
        Functions to call after the commit, under the lock.
    """

    folder: Path
    kind: Owner
    owned: dict[str, ListedFile]
    inputs: list[Path]
    overwrite: bool
    appended: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    afterwards: list[Callable[[], object]] = field(default_factory=list)

    @property
    def place(self) -> Path:
        return self.folder / NEXT

    def take(self, path: Path, name: str) -> None:
        """Move a file that is on the same disk to ``place``, so that the commit includes it."""
        (self.place / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, self.place / name)

    def wrote(self, name: str) -> None:
        """Note that this command wrote a file directly into the folder before the commit, so it may be replaced."""
        self.owned[name] = ListedFile(bytes=(self.folder / name).stat().st_size, digest=None, by=self.kind.command)

    def append(self, name: str) -> None:
        """Note that the command appends to a file in place. Until the commit the appended part is not valid."""
        _require_inside(self.folder, name)
        self.appended.append(name)

    def require_free(self, names: Iterable[str]) -> None:
        """Raise an error unless this command may write files with these names.

        Raises
        ------
        InputError
            One of the names is an input of the command, a folder, a file that no earlier run of the command wrote, or a
            file that was changed since.
        """
        for name in names:
            path = self.folder / name
            try:
                found = path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            if stat.S_ISDIR(found.st_mode):
                raise InputError(f"{path}: is a folder, but a file must be written there; name another output folder")
            if self._is_input(path):
                raise InputError(
                    f"{path}: this command reads the file and would also write a file of that name; name another "
                    "folder for the results"
                )
            if not self.overwrite:
                self._require_own(name, found.st_size)

    def _require_own(self, name: str, size: int) -> None:
        path, known = self.folder / name, self.owned.get(name)
        remedy = f"name another folder{advice(', or add {} to replace it', 'overwrite')}"
        if known is None:
            raise InputError(f"{path}: no earlier run of {maker(self.kind.command)} wrote this file; {remedy}")
        if known.by not in self.kind.over and known.by in _LATER:
            raise InputError(f"{self.folder}: {_LATER[known.by]}; {remedy}")
        if known.by not in self.kind.over:
            raise InputError(f"{path}: was written by {maker(known.by)}; {remedy}")
        if known.digest is not None and known.bytes != size and not self.kind.reads:
            raise InputError(
                f"{path}: changed since {maker(known.by)} wrote it ({known.bytes:,} bytes then, {size:,} now); {remedy}"
            )

    def _may_go(self, name: str) -> bool:
        """Return whether an old file may be removed: its size has not changed, and this command does not read it."""
        path, known = self.folder / name, self.owned.get(name)
        edited = (
            known is not None and known.digest is not None and path.is_file() and path.stat().st_size != known.bytes
        )
        return not edited and not self._is_input(path)

    def _is_input(self, path: Path) -> bool:
        return any(source.exists() and path.exists() and source.samefile(path) for source in self.inputs)

    def commit(self) -> None:
        """Write the files in ``place`` to the disk (fsync), and make them the valid files of the folder."""
        paths = sorted(path for path in self.place.rglob("*") if path.is_file())
        names = [path.relative_to(self.place).as_posix() for path in paths]
        if not names:
            return
        self.require_free(names)
        gone = {*self.removed, *(name for name, file in self.owned.items() if file.by in self.kind.drops)}
        gone = {name for name in gone - {*names, *self.appended} if self._may_go(name)}
        later = {name for name, file in self.owned.items() if file.by in _LATER and "/" not in name}
        lost = sorted(later & gone)
        if lost:
            log.warning("%s: removed with the former run: %s", self.folder, ", ".join(lost))
        listed = {name: file for name, file in self.owned.items() if name not in gone}
        for name, path in zip(names, paths, strict=True):
            listed[name] = ListedFile(bytes=path.stat().st_size, digest=digest(path), by=self.kind.command)
        for name in self.appended:
            path = self.place / name if name in names else self.folder / name
            listed[name] = ListedFile(bytes=path.stat().st_size, digest=None, by=self.kind.command)
        files = FileList(format=1, id=uuid.uuid4().hex, command=self.kind.command, files=listed)
        write_json(self.place / FILES, files.model_dump())
        write_json(self.place / REMOVE, sorted(gone))
        for path in paths:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        for folder in {path.parent for path in paths} | {self.place}:
            _sync(folder)
        write_json(self.place / LIST, [*names, FILES])


@contextmanager
def changing(
    folder: str | Path,
    kind: Owner,
    *,
    also: Iterable[str] = (),
    inputs: Iterable[str | Path | None] = (),
    overwrite: bool = False,
    held: bool = False,
) -> Iterator[Change]:
    """Lock a folder while the block runs, and commit the files that the block wrote if it succeeds.

    First the commit of a killed process is completed, and its other files are removed.

    Parameters
    ----------
    folder : path
        The folder. It is created if needed.
    kind : Owner
        The command that changes it.
    also : names, optional
        Further files that this run writes, besides those of ``kind``.
    inputs : paths, optional
        Files that the command reads. They are never replaced.
    overwrite : bool
        Whether to replace files that no earlier run wrote.
    held : bool
        Whether the caller is inside :func:`locked` for this folder.

    Raises
    ------
    InputError
        Another process writes to the folder, the command may not replace one of the files, or the folder cannot be
        created or written to. All old files are unchanged.
    """
    folder = Path(folder)
    with no_empty_folder(folder):
        prepare_folder(folder)
        with nullcontext() if held else locked(folder, kind.command):
            with writes(folder, folder):
                _roll_forward(folder)
                _clear(folder)
                read = [Path(path) for path in inputs if path is not None]
                change = Change(folder, kind, _owned(folder), read, overwrite)
                change.require_free(name for pattern in (*kind.names, *also) for name in matching(folder, pattern))
                change.place.mkdir()
            try:
                yield change
                with writes(folder, folder):
                    change.commit()
            except BaseException:
                if not (change.place / LIST).exists():
                    _clear(folder)
                raise
            with writes(folder, folder):
                _roll_forward(folder)
            for call in change.afterwards:
                call()


def settle(folder: Path, kind: Owner, *, held: bool = False) -> None:
    """Complete the commit of a killed process in a folder, and remove its other files.

    Call it before files of the folder are read without :class:`starfc.storage.opened.OpenedFolder`. ``held`` says that
    the caller is inside :func:`locked` for this folder.

    Raises
    ------
    InputError
        Another process writes to the folder, or it cannot be written to.
    """
    if any(os.path.lexists(folder / name) for name in (NEXT, LOCK)):
        with nullcontext() if held else locked(folder, kind.command), writes(folder, folder):
            _roll_forward(folder)
            _clear(folder)


def read_files(folder: Path) -> FileList | None:
    """Read ``files.json`` of a folder. Return None if there is none."""
    try:
        found = read_json(folder / FILES, FileList)
    except MissingFileError:
        return None
    for name in found.files:
        require_name(name, folder)
    return found


def is_ours(path: Path) -> str | None:
    """Return the command that wrote a file, according to ``files.json`` of its folder. None if no command did."""
    try:
        found = read_files(path.parent)
    except InputError:
        return None
    return found.files[path.name].by if found is not None and path.name in found.files else None


def _owned(folder: Path) -> dict[str, ListedFile]:
    """Return the files in a folder that commands wrote, by name."""
    found = read_files(folder)
    return earlier(folder) if found is None else found.files


def _roll_forward(folder: Path) -> None:
    """Complete a commit: move its files into the folder, and remove the old files that it lists."""
    place = folder / NEXT
    if place.is_symlink() or not (place / LIST).exists():
        return
    names = [require_name(name, folder) for name in read_json(place / LIST, NameList).root]
    gone = []
    if (place / REMOVE).exists():
        gone = [require_name(name, folder) for name in read_json(place / REMOVE, NameList).root]
    for name in [*names, *gone]:
        _require_inside(folder, name)
        _require_inside(place, name)
    for name in names:
        if not (place / name).exists():
            continue  # already renamed before the kill
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(place / name, folder / name)
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    for parent in {(folder / name).parent for name in gone} - {folder}:
        remove_empty(parent)
    for parent in {(folder / name).parent for name in names} | {folder}:
        _sync(parent)
    (place / LIST).unlink()
    shutil.rmtree(place, ignore_errors=True)


def _require_inside(folder: Path, name: str) -> None:
    """Raise InputError unless all parts of the name are folders, and the last one is a regular file or does not exist.

    This package makes no symbolic links, so a link in such a folder could lead to a foreign file.
    """
    path = folder
    parts = Path(name).parts
    for part in parts:
        path = path / part
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return
        if not (stat.S_ISREG(mode) if path == folder / name else stat.S_ISDIR(mode)):
            raise InputError(f"{path}: must be a regular file or folder; found a link or a special file; remove it")


def _clear(folder: Path) -> None:
    """Remove the files of a process that ended before its commit."""
    place = folder / NEXT
    if place.is_symlink():
        place.unlink()
    shutil.rmtree(place, ignore_errors=True)
    sweep(folder)


@contextmanager
def locked(folder: Path, command: str) -> Iterator[None]:
    """Keep other commands from writing to a folder. ``command`` is the name of this one.

    Raises
    ------
    InputError
        Another command writes to it.
    """
    path, flags = folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    while True:
        with writes(folder, folder):
            descriptor = os.open(path, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 4096)
            os.close(descriptor)
            raise InputError(
                f"{folder}: {_said(holder)} is writing to this folder; wait until it has ended, or end it"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                os.close(descriptor)
                raise
            log.warning("%s: the file system has no locks; let only one command at a time write to this folder", folder)
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.lstat()):
            break
        os.close(descriptor)  # the holder ended just now and removed this file; lock a new one
    try:
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        ours = {"pid": os.getpid(), "started": started, "command": maker(command), "host": socket.gethostname()}
        with writes(folder, folder):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(ours).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _said(holder: bytes) -> str:
    """Describe the process that holds a lock, from the content of the lock file."""
    try:
        h = json.loads(holder)
        return f"process {int(h['pid'])} ({h['command']}, since {h['started']}, on {h['host']})"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _sync(folder: Path) -> None:
    """Write the directory entries of a folder to the disk (fsync)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
