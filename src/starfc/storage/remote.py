"""Files at URLs of other file systems (fsspec): open a URL, and upload a folder of results."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from starfc.errors import InputError
from starfc.runtime.words import advice
from starfc.storage.commit import FILES, LOCK
from starfc.storage.owners import APPLY, ASSIGN, CLUSTER, GRAPHS, KNN
from starfc.storage.records import FileList
from starfc.storage.safe import first_line, require_name


def is_url(name: str) -> bool:
    """Return whether a name is a URL, such as ``s3://bucket/run``, and not a path."""
    return "://" in name


def file_system(url: str, what: str) -> tuple[Any, str]:
    """Return the file system of a URL or path, and the path within it; ``what`` says for messages what it is opened as.

    Other processes write to the same folders, so listings are not cached.

    Raises
    ------
    InputError
        There is no such file system, its package is not installed, or it cannot be reached.
    """
    try:
        found, path = fsspec.core.url_to_fs(url, skip_instance_cache=True)
    except Exception as error:  # each file system has errors of its own
        raise InputError(f"{url}: cannot be opened as {what} ({first_line(error)})") from None
    if hasattr(found, "dircache"):  # not an argument of url_to_fs: some file systems pass on what they do not know
        found.dircache.use_listings_cache = False
    return found, path


def require_bucket(system: Any, path: str) -> None:
    """Raise FileNotFoundError if the path begins with the name of a bucket that does not exist."""
    bucket = path.partition("/")[0]
    if bucket and not system.exists(bucket):
        raise FileNotFoundError(f"{bucket} does not exist")


def reason(error: Exception, path: str) -> str:
    """Return why a path of a file system cannot be read. Some errors name nothing but the path."""
    missing = isinstance(error, FileNotFoundError) and str(error).strip("/") in ("", path.strip("/"))
    return "no such file or folder" if missing else first_line(error)


def is_within(name: str, folder: str) -> bool:
    """Return whether a URL or path is ``folder``, another URL or path, or lies in it."""
    (system, place), (other, root) = _resolved(name), _resolved(folder)
    return system == other and f"{place}/".startswith(f"{root}/")


def is_same(one: str, other: str) -> bool:
    """Return whether two URLs or paths are one place."""
    return _resolved(one) == _resolved(other)


def _resolved(name: str) -> tuple[Any, str]:
    system, place = file_system(name, "a file or folder")
    return system, (os.path.realpath(place) if isinstance(system, LocalFileSystem) else place).rstrip("/")


class Upload:
    """A URL that will hold the results of a run.

    A run writes its results to a folder of this machine first. They are uploaded when they are complete; the list of
    all files with their digests (``files.json``) comes last. So results whose list is there are whole, and a file that
    differs from the list belongs to another run. An upload that was cut short has no list.

    Parameters
    ----------
    url : str
        The folder.
    overwrite : bool
        Whether to replace what is there.
    inputs : iterable of str
        URLs and paths of what the command reads.

    Raises
    ------
    InputError
        Something is there already, an input lies there, or the URL cannot be read or written to.
    """

    def __init__(self, url: str, overwrite: bool, inputs: Iterable[str] = ()) -> None:
        self.url = url
        self._fs, self._root = file_system(url, "a folder for the results")
        for name in inputs:
            if is_within(name, url):
                raise InputError(
                    f"{name}: this command reads it, and the results in {url} could replace it; name another URL for "
                    "the results"
                )
        try:
            found = self._names("")
        except Exception as error:  # each file system has errors of its own
            raise InputError(f"{url}: cannot be read ({first_line(error)})") from None
        if found and not overwrite:
            raise InputError(
                f"{url}: a new or empty folder needed for the results; found files; name another"
                f"{advice(', or add {} to replace them', 'overwrite')}"
            )
        self._require_writable()

    def _require_writable(self) -> None:
        """Write a small file and remove it. A bucket is not created: its name may be a mistake."""
        path = f"{self._root}/.starfc-{uuid.uuid4().hex}"
        try:
            require_bucket(self._fs, self._root)
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(path, b"The results of a run can be written here.")
            self._fs.rm_file(path)
        except Exception as error:  # each file system has errors of its own
            raise InputError(
                f"{self.url}: cannot be written to ({first_line(error)}); name another URL for the results"
            ) from None

    def send(self, folder: Path) -> None:
        """Remove the files of an earlier run that the new one does not have, and upload the files of a folder.

        Raises
        ------
        InputError
            The URL cannot be written to.
        """
        names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
        names = [name for name in names if name not in (FILES, LOCK)]
        try:
            before = self._earlier()
            for name in (FILES, *sorted(before - {*names, FILES})):
                self._remove(name)
            for name in (*names, FILES):
                self._fs.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)
                self._fs.put_file(str(folder / name), f"{self._root}/{name}")
        except Exception as error:  # each file system has errors of its own
            raise InputError(f"{self.url}: the results cannot be written there ({first_line(error)})") from error

    def _earlier(self) -> set[str]:
        """Return the names of an earlier run's files: those of its list, and those that only a run's files have.

        An upload that was cut short has no list. Other folders below the URL, such as those of other runs, are not
        looked at.
        """
        graphs = [f"knn/{graph}" for graph in self._names("knn") if fnmatchcase(graph, GRAPHS)]
        known = {*CLUSTER.names, *ASSIGN.names, *APPLY.names}
        known |= {f"{graph}/{name}" for graph in graphs for name in (*KNN.names, FILES)}
        folders = {pattern.rpartition("/")[0] for pattern in known}
        there = {f"{folder}/{name}".lstrip("/") for folder in folders for name in self._names(folder)}
        return self._listed() | {name for name in there if any(fnmatchcase(name, pattern) for pattern in known)}

    def _listed(self) -> set[str]:
        """Return the names in the list of the earlier run; none if there is no list or it is damaged."""
        try:
            files = FileList.model_validate(json.loads(self._fs.cat_file(f"{self._root}/{FILES}"))).files
            return {require_name(name, Path(self._root)) for name in files}
        except (FileNotFoundError, ValueError, RecursionError):
            return set()

    def _names(self, folder: str) -> list[str]:
        """Return the names in a folder below the URL."""
        try:
            paths = self._fs.ls(f"{self._root}/{folder}".rstrip("/"), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [path.rstrip("/").rpartition("/")[2] for path in paths]

    def _remove(self, name: str) -> None:
        if self._fs.isfile(f"{self._root}/{name}"):
            self._fs.rm_file(f"{self._root}/{name}")
