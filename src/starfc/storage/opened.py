"""A folder that a command left, looked at: nothing in it is changed, and nothing outside of it is reached.

Names below the folder are names: relative, without ``..``, over no symbolic link, of regular files. Where a process was
killed after it had committed (``.next/commit.json``, :mod:`starfc.storage.commit`), the files that still wait in
``.next/`` are the folder's files, and are read from there; those that it was to remove (``remove.json``) are gone.

``files.json`` lists the size and the digest of every file that a command wrote
(:class:`starfc.storage.records.FileList`). A file is compared with the list before it is used, so damage and mixtures
of two runs are found; a digest takes one pass over the file. Folders of earlier versions have no such list, and are
opened without this check.
"""

from __future__ import annotations

import os
import stat
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import BaseModel

from starfc.errors import InputError, MissingFileError
from starfc.runtime.words import anew
from starfc.storage.records import FileList, NameList
from starfc.storage.safe import digest, read_json, read_npy, require_name

FILES, NEXT, COMMIT, REMOVE = "files.json", ".next", "commit.json", "remove.json"
_ADDING = ("tune",)  # commands that add to a folder, whose other files somebody else may have made
_Content = TypeVar("_Content", bound=BaseModel)


class OpenedFolder:
    """A folder that a command left, as it stands.

    Parameters
    ----------
    folder : path
        May be a link itself; what lies below it may not.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._verified: set[str] = set()

    def path(self, name: str) -> Path:
        """Where a file is read from: the folder, or ``.next/`` in it where it still waits for its place.

        Parameters
        ----------
        name : str
            Relative, with ``/`` between its parts. It need not be there.

        Raises
        ------
        InputError
            The name leads out of the folder, or over a symbolic link; the list of what waits is not one of names.
        """
        if name in self.waiting or name in self._gone:
            waiting = self._within(f"{NEXT}/{name}")
            if name in self._gone or waiting.exists():
                return waiting
        return self._within(name)

    def has(self, name: str) -> bool:
        """Whether a file is there, or should be."""
        return self.path(name).exists() or (self._files is not None and name in self._files.files)

    def verified(self, name: str) -> Path:
        """Where a file is read from, after it was compared with ``files.json``, once.

        Raises
        ------
        InputError
            It is not as the command that wrote the folder left it.
        """
        path, files = self.path(name), self._files
        if files is None or name in self._verified:
            return path
        if path.exists():
            self._compare(path, name, files)
            self._verified.add(name)
        elif name in files.files:
            raise MissingFileError(f"{path}: not there, and {FILES} lists it; {self._remedy(files.command)}")
        return path

    def json(self, name: str, content: type[_Content]) -> _Content:
        """A JSON file as ``content`` says it must be (:func:`starfc.storage.safe.read_json`)."""
        return read_json(self.verified(name), content)

    def npy(self, name: str, ndim: int, *types: DTypeLike) -> NDArray:
        """A memory-mapped ``.npy`` of one of the given types, row-major (:func:`starfc.storage.safe.read_npy`)."""
        known = [np.dtype(kind) for kind in types]
        array = read_npy(self.verified(name), "".join({kind.kind for kind in known}), ndim, follow=False)
        if array.dtype not in known or not array.flags.c_contiguous:
            wanted = " or ".join(kind.name for kind in known)
            raise InputError(f"{self.path(name)}: a row-major array of {wanted} needed; found {array.dtype.str}")
        return array

    @cached_property
    def waiting(self) -> frozenset[str]:
        """Files that a process had committed when it was killed."""
        return self._names(COMMIT)

    @cached_property
    def _gone(self) -> frozenset[str]:
        """Files that it would have removed."""
        return self._names(REMOVE) - self.waiting if self.waiting else frozenset()

    def _names(self, listed: str) -> frozenset[str]:
        place = self._within(f"{NEXT}/{listed}")
        if not place.exists():
            return frozenset()
        names = read_json(place, NameList).root
        for name in names:
            self._within(name)
            self._within(f"{NEXT}/{name}")
        return frozenset(names)

    @cached_property
    def _files(self) -> FileList | None:
        path = self.path(FILES)
        return read_json(path, FileList) if path.exists() else None

    def _within(self, name: str) -> Path:
        path = self.folder
        for part in PurePosixPath(require_name(name, self.folder)).parts:
            path = path / part
            try:
                linked = stat.S_ISLNK(os.lstat(path).st_mode)
            except OSError:  # what reads it says so
                linked = False
            if linked:
                raise InputError(
                    f"{path}: a symbolic link, and links within such a folder are not followed; put a copy of what it "
                    "leads to in its place, or do not use this folder"
                )
        return self.folder / name

    def _remedy(self, command: str) -> str:
        return f"{anew(command)}, or where you changed it yourself, delete {self.folder / FILES}"

    def _compare(self, path: Path, name: str, files: FileList) -> None:
        listed, remedy = files.files.get(name), self._remedy(files.command)
        if listed is None and files.command in _ADDING:
            return
        if listed is None:
            raise InputError(
                f"{path}: not among the files that {self.folder / FILES} lists, so of another run; {remedy}"
            )
        size = path.stat().st_size
        if size < listed.bytes or (listed.digest is not None and size != listed.bytes):
            raise InputError(
                f"{path}: {size:,} bytes where {FILES} says {listed.bytes:,}; damaged, or of another run; {remedy}"
            )
        if listed.digest is not None and digest(path) != listed.digest:
            raise InputError(f"{path}: its digest is not that in {FILES}; damaged, or of another run; {remedy}")


def opened(folder: str | Path | OpenedFolder) -> OpenedFolder:
    """A folder, opened; one that is stays as it is."""
    return folder if isinstance(folder, OpenedFolder) else OpenedFolder(folder)


def current(folder: str | Path, name: str) -> Path:
    """Where a file of a folder is read from (:meth:`OpenedFolder.path`)."""
    return OpenedFolder(folder).path(name)
