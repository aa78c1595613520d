"""Read a folder that a command wrote. No file in it is changed, and no file outside of it is read.

File names must be relative, without ``..``, and must not pass through a symbolic link; the files must be regular. If a
process was killed after its commit (``.next/commit.json``, :mod:`starfc.storage.commit`), the files that are still in
``.next/`` are valid, and are read from there. Files in its ``remove.json`` are treated as removed.

``files.json`` lists the size and the digest of every file that a command wrote
(:class:`starfc.storage.records.FileList`). A file is compared with this list before it is used. This finds damage, and
files of two runs in one folder. The digest takes one pass over the file. Folders of earlier versions have no such list
and are opened without this check.
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
_ADDING = ("tune",)  # commands that add files to a folder that other programs may have filled
_Content = TypeVar("_Content", bound=BaseModel)


class OpenedFolder:
    """A folder that a command wrote, opened for reading.

    Parameters
    ----------
    folder : path
        The folder. It may be a symbolic link itself, but must not contain any.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._verified: set[str] = set()

    def path(self, name: str) -> Path:
        """Return the path of a file: in the folder, or in ``.next/`` if a committed file was not yet moved.

        Parameters
        ----------
        name : str
            Name relative to the folder, with ``/`` between its parts. The file need not exist.

        Raises
        ------
        InputError
            The name leads out of the folder or through a symbolic link, or a list in ``.next/`` is damaged.
        """
        if name in self.waiting or name in self._gone:
            waiting = self._within(f"{NEXT}/{name}")
            if name in self._gone or waiting.exists():
                return waiting
        return self._within(name)

    def has(self, name: str) -> bool:
        """Return whether a file exists or ``files.json`` lists it."""
        return self.path(name).exists() or (self._files is not None and name in self._files.files)

    def verified(self, name: str) -> Path:
        """Return the path of a file, after a comparison with ``files.json``. Each file is compared only once.

        Raises
        ------
        InputError
            The file differs from ``files.json``.
        """
        path, files = self.path(name), self._files
        if files is None or name in self._verified:
            return path
        if path.exists():
            self._compare(path, name, files)
            self._verified.add(name)
        elif name in files.files:
            raise MissingFileError(f"{path}: is missing, but {FILES} lists it; {self._remedy(files.command)}")
        return path

    def json(self, name: str, content: type[_Content]) -> _Content:
        """Read a JSON file and validate it with the model ``content`` (:func:`starfc.storage.safe.read_json`)."""
        return read_json(self.verified(name), content)

    def npy(self, name: str, ndim: int, *types: DTypeLike) -> NDArray:
        """Memory-map a row-major ``.npy`` with ``ndim`` axes and one of the dtypes ``types``."""
        known = [np.dtype(kind) for kind in types]
        array = read_npy(self.verified(name), "".join({kind.kind for kind in known}), ndim, follow=False)
        if array.dtype not in known or not array.flags.c_contiguous:
            wanted = " or ".join(kind.name for kind in known)
            raise InputError(f"{self.path(name)}: must be a row-major array of {wanted}; found {array.dtype.str}")
        return array

    @property
    def digests(self) -> dict[str, str | None]:
        """Return the digest of each file in ``files.json``, by name; empty without such a list."""
        return {} if self._files is None else {name: file.digest for name, file in self._files.files.items()}

    @cached_property
    def waiting(self) -> frozenset[str]:
        """Return the names of the files that a killed process had committed."""
        return self._names(COMMIT)

    @cached_property
    def _gone(self) -> frozenset[str]:
        """Return the names of the files that the commit of a killed process removes."""
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
            except OSError:  # reading the file will raise the error
                linked = False
            if linked:
                raise InputError(
                    f"{path}: is a symbolic link, and links in such a folder are not followed; replace it with a copy "
                    "of its target, or do not use this folder"
                )
        return self.folder / name

    def _remedy(self, command: str) -> str:
        return f"{anew(command)}, or if you changed it yourself, delete {self.folder / FILES}"

    def _compare(self, path: Path, name: str, files: FileList) -> None:
        listed, remedy = files.files.get(name), self._remedy(files.command)
        if listed is None and files.command in _ADDING:
            return
        if listed is None:
            raise InputError(f"{path}: is not in {self.folder / FILES}, so it belongs to another run; {remedy}")
        size = path.stat().st_size
        if size < listed.bytes or (listed.digest is not None and size != listed.bytes):
            raise InputError(
                f"{path}: has {size:,} bytes, but {FILES} says {listed.bytes:,}; it is damaged or belongs to another "
                f"run; {remedy}"
            )
        if listed.digest is not None and digest(path) != listed.digest:
            raise InputError(
                f"{path}: its digest differs from that in {FILES}; it is damaged or belongs to another run; {remedy}"
            )


def opened(folder: str | Path | OpenedFolder) -> OpenedFolder:
    """Open a folder. Return it unchanged if it is already open."""
    return folder if isinstance(folder, OpenedFolder) else OpenedFolder(folder)


def current(folder: str | Path, name: str) -> Path:
    """Return the path that a file of a folder is read from (:meth:`OpenedFolder.path`)."""
    return OpenedFolder(folder).path(name)
