"""Changing a folder as a whole: a kill at any moment leaves all the old files or all the new ones.

New files are written to ``.next/`` in the folder. When all of them are on the disk, ``.next/commit.json`` is, which
lists them (and ``.next/remove.json``, which lists old ones that go); from then on the new ones count. They are renamed
over the old ones, the list goes, and ``.next/`` with it. A kill before the list leaves the old files, and what lies in
``.next/`` is thrown away by the next command that writes there; one after it leaves renames to be done, and that
command does them first. Commands that only look read the new files where they lie.

``files.json`` comes with the files: which they are, the command that wrote each, their sizes and digests, and an id of
its own for every change. It tells what may be replaced: a file that no earlier run of the command wrote is refused.

One process writes at a time: it holds the lock file ``.lock``, which says who it is, and which the system gives back
when the process ends.
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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from starfc.errors import InputError, MissingFileError
from starfc.runtime.words import advice, maker
from starfc.storage.atomic import prepare_folder, sweep, write_json, writes
from starfc.storage.owners import Owner, earlier, matching
from starfc.storage.records import FileList, ListedFile, NameList
from starfc.storage.safe import digest, read_json, require_name

log = logging.getLogger("starfc")

NEXT, LIST, REMOVE, LOCK, FILES = ".next", "commit.json", "remove.json", ".lock", "files.json"


@dataclass
class Change:
    """A folder while a command changes it: files written to ``place`` take the places of those of their names."""

    folder: Path
    kind: Owner
    owned: dict[str, ListedFile]
    inputs: list[Path]
    overwrite: bool
    appended: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    afterwards: list[Callable[[], object]] = field(default_factory=list)  # once the new files count, under the lock

    @property
    def place(self) -> Path:
        return self.folder / NEXT

    def take(self, path: Path, name: str) -> None:
        """Have a file that lies on the same disk take its place with the others."""
        (self.place / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, self.place / name)

    def wrote(self, name: str) -> None:
        """Note that a file was written ahead, straight into the folder: it is this command's to replace."""
        self.owned[name] = ListedFile(bytes=(self.folder / name).stat().st_size, digest=None, by=self.kind.command)

    def append(self, name: str) -> None:
        """Note that a file is appended to where it stands: what it holds beyond the old files' part does not count."""
        _require_inside(self.folder, name)
        self.appended.append(name)

    def require_free(self, names: Iterable[str]) -> None:
        """Refuse to replace what is not this command's.

        Raises
        ------
        InputError
            Of one of the names there is an input of the command, a folder, a file that no earlier run of the command
            wrote, or one that was changed since.
        """
        for name in names:
            path = self.folder / name
            try:
                found = path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            if stat.S_ISDIR(found.st_mode):
                raise InputError(f"{path}: a folder stands where a file is to be written; name another folder for it")
            if self._is_input(path):
                raise InputError(
                    f"{path}: is read by this command, which would write a file of that name; name another folder for "
                    "the results"
                )
            if not self.overwrite:
                self._require_own(name, found.st_size)

    def _require_own(self, name: str, size: int) -> None:
        path, known = self.folder / name, self.owned.get(name)
        remedy = f"name another folder{advice(', or add {} to replace it', 'overwrite')}"
        if known is None:
            raise InputError(f"{path}: no earlier run of {maker(self.kind.command)} wrote this file; {remedy}")
        if known.by not in self.kind.over and known.by == "assign":
            raise InputError(
                f"{self.folder}: instances were added to this run or removed since, and clustering anew would lose its "
                f"stable ids; {remedy}"
            )
        if known.by not in self.kind.over:
            raise InputError(f"{path}: a file of {maker(known.by)}; {remedy}")
        if known.digest is not None and known.bytes != size and not self.kind.reads:
            raise InputError(
                f"{path}: changed since {maker(known.by)} wrote it ({known.bytes:,} bytes then, {size:,} now); {remedy}"
            )

    def _may_go(self, name: str) -> bool:
        """Whether an old file is still as the command left it, and not read by this one."""
        path, known = self.folder / name, self.owned.get(name)
        edited = (
            known is not None and known.digest is not None and path.is_file() and path.stat().st_size != known.bytes
        )
        return not edited and not self._is_input(path)

    def _is_input(self, path: Path) -> bool:
        return any(source.exists() and path.exists() and source.samefile(path) for source in self.inputs)

    def commit(self) -> None:
        """Have what lies in ``place`` on the disk and count."""
        paths = sorted(path for path in self.place.rglob("*") if path.is_file())
        names = [path.relative_to(self.place).as_posix() for path in paths]
        if not names:
            return
        self.require_free(names)
        gone = {*self.removed, *(name for name, file in self.owned.items() if file.by in self.kind.drops)}
        gone = {name for name in gone - {*names, *self.appended} if self._may_go(name)}
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
) -> Iterator[Change]:
    """Be the one process that changes a folder while the block runs, and commit what it wrote when it ends well.

    What a process that was killed had committed there is finished first, and the rest that it left is removed.

    Parameters
    ----------
    also : names, optional
        Of files that this run writes besides those of its kind.
    inputs : paths, optional
        Files that the command reads: it refuses to write over them.
    overwrite : bool
        Whether files that are not of an earlier run may be replaced; inputs never are.

    Raises
    ------
    InputError
        Another process is at it; something there is not this command's to replace; the folder cannot be made or
        written to. All old files are as they were.
    """
    folder = Path(folder)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    prepare_folder(folder)
    try:
        with _lock(folder, kind.command):
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
    finally:
        for place in made:  # where nothing came of it
            _remove_empty(place)


def settle(folder: Path, kind: Owner) -> None:
    """Finish what a killed process had committed in a folder that is only read from now on, and remove what it left.

    Raises
    ------
    InputError
        Another process is at it; it cannot be written to.
    """
    if any(os.path.lexists(folder / name) for name in (NEXT, LOCK)):
        with _lock(folder, kind.command), writes(folder, folder):
            _roll_forward(folder)
            _clear(folder)


def read_files(folder: Path) -> FileList | None:
    """``files.json`` of a folder, None where there is none."""
    try:
        found = read_json(folder / FILES, FileList)
    except MissingFileError:
        return None
    for name in found.files:
        require_name(name, folder)
    return found


def is_ours(path: Path) -> str | None:
    """The command that wrote a file as one of a folder's, None where none did."""
    try:
        found = read_files(path.parent)
    except InputError:
        return None
    return found.files[path.name].by if found is not None and path.name in found.files else None


def _owned(folder: Path) -> dict[str, ListedFile]:
    """The files of a folder that commands wrote."""
    found = read_files(folder)
    return earlier(folder) if found is None else found.files


def _roll_forward(folder: Path) -> None:
    """Finish what was committed."""
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
            continue  # renamed before
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(place / name, folder / name)
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    for parent in {(folder / name).parent for name in gone} - {folder}:
        _remove_empty(parent)
    for parent in {(folder / name).parent for name in names} | {folder}:
        _sync(parent)
    (place / LIST).unlink()
    shutil.rmtree(place, ignore_errors=True)


def _require_inside(folder: Path, name: str) -> None:
    """Refuse names that a link leads elsewhere, and what is no regular file: such a folder is none of ours."""
    path = folder
    parts = Path(name).parts
    for part in parts:
        path = path / part
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return
        if not (stat.S_ISREG(mode) if path == folder / name else stat.S_ISDIR(mode)):
            raise InputError(f"{path}: a file or folder of its own needed; found a link or the like; remove it")


def _clear(folder: Path) -> None:
    """Remove what a process left that did not come to its end."""
    place = folder / NEXT
    if place.is_symlink():
        place.unlink()
    shutil.rmtree(place, ignore_errors=True)
    sweep(folder)


@contextmanager
def _lock(folder: Path, command: str) -> Iterator[None]:
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
                f"{folder}: {_said(holder)} is writing there; wait until it has ended, or end it"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                os.close(descriptor)
                raise
            log.warning("%s: the file system has no locks; see to it that one command at a time writes there", folder)
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.lstat()):
            break
        os.close(descriptor)  # that of a process that has just ended, and removed it
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
    """Who holds a lock, in words."""
    try:
        h = json.loads(holder)
        return f"process {int(h['pid'])} ({h['command']}, since {h['started']}, on {h['host']})"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        pass  # not empty, or not there


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
