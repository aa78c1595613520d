"""Keep the arrays of a run on shards in a store: a folder on a local or shared disk, or on any file system of fsspec.

    STORE/manifest.json                  what is clustered, and how
    STORE/STAGE/00000.PART.npy           an array of the first task of a stage; a stage can have several parts
    STORE/STAGE/00000.json               digests of these arrays, seconds, bytes read; written last

A task is finished if its ``.json`` is there. Everything is written whole: on a disk to a temporary name that is then
renamed, elsewhere by one upload. So a kill at any moment leaves the task finished or not begun. Arrays are compared
with their digests when a process opens them first; a damaged one raises :class:`DamagedError`, and its task is redone.
Arrays from other file systems are kept in a local folder of bounded size.
"""

from __future__ import annotations

import io
import json
import resource
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from starfc.errors import InputError, MissingFileError
from starfc.storage.atomic import replacing
from starfc.storage.commit import LOCK
from starfc.storage.remote import file_system, require_bucket
from starfc.storage.safe import first_line
from starfc.storage.scratch import allocate

_RECORDS = ("manifest.json", "strangers.json", "lists.json", "width.json", "waiting.json")
_TRIES, _PAUSE = 5, 0.2  # attempts to read or write a file of another file system; seconds before the second one
_SMALL = 1 << 20  # bytes; smaller arrays are read, larger ones are memory-mapped
_MAPPED, _HELD = 1024, 1 << 28  # maximum number of mapped arrays, and bytes of the others, that a process keeps
CACHE_BYTES = 64 << 30  # maximum size of the local folder


class DamagedError(Exception):
    """An array of a finished task is missing or differs from its digest."""

    def __init__(self, stage: str, index: int, why: str) -> None:
        super().__init__(stage, index, why)
        self.stage, self.index, self.why = stage, index, why

    def __str__(self) -> str:
        return f"{self.stage}/{self.index:05d}: {self.why}"


class Store:
    """A store of arrays.

    Parameters
    ----------
    url : str
        A folder, or a URL that fsspec knows, such as ``s3://bucket/run``.
    cache : path, optional
        Local folder for arrays of other file systems. Default: a folder of the system's temporary folder, named by the
        URL.
    cache_bytes : int
        Maximum size of that folder.

    Attributes
    ----------
    bytes_read, bytes_written : int
        Bytes of arrays that this object has read from the store and written to it.
    """

    def __init__(self, url: str, cache: Path | None = None, cache_bytes: int = CACHE_BYTES) -> None:
        self.url = url
        self._fs, self._root = file_system(url, "a store")
        self._local = isinstance(self._fs, LocalFileSystem)
        name = f"starfc-{xxhash.xxh3_64_hexdigest(url.encode())}"
        self._cache = Path(tempfile.gettempdir()) / name if cache is None else cache
        self._cache_bytes = cache_bytes
        self._open: OrderedDict[tuple[str, int, str], NDArray] = OrderedDict()
        self._verified: dict[tuple[str, int, str], str] = {}  # digests that were compared
        self._lock = threading.Lock()
        self.bytes_read = self.bytes_written = 0

    def save(self, stage: str, index: int, arrays: dict[str, NDArray], **record: Any) -> dict[str, dict[str, Any]]:
        """Write the arrays of a finished task, and return their digests; ``record`` holds more numbers about it."""
        parts = {}
        for part, array in arrays.items():
            data = _npy(array)
            self._write(f"{stage}/{index:05d}.{part}.npy", data)
            parts[part] = {"digest": xxhash.xxh3_64_hexdigest(data), "bytes": len(data)}
            self.bytes_written += len(data)
        self._close(stage, index)
        self.write_json(f"{stage}/{index:05d}.json", {"parts": parts, **record})
        return parts

    def load(self, stage: str, index: int, part: str = "array") -> NDArray:
        """Return an array of a finished task, memory-mapped if it is large. Do not write to it.

        Raises
        ------
        DamagedError
            The array is missing, or differs from its digest.
        OSError
            The store cannot be read.
        """
        key = stage, index, part
        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)
                return self._open[key]
        array = self._read_array(stage, index, part)
        with self._lock:
            self._open[key] = array
            self._close_old()
        return array

    def is_whole(self, stage: str, index: int) -> bool:
        """Return whether a task is finished and all its arrays are undamaged."""
        self._close(stage, index)
        try:
            for part in self.record(stage, index)["parts"]:
                self.load(stage, index, part)
        except (DamagedError, FileNotFoundError, ValueError, KeyError, TypeError):
            return False
        return True

    def finished(self, stage: str) -> set[int]:
        """Return the numbers of the finished tasks of a stage."""
        names = self._names(stage)
        return {int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()}

    def stages(self) -> list[str]:
        """Return the names of the stages that have begun, sorted."""
        return [name for name in self._names("") if "." not in name]

    def record(self, stage: str, index: int) -> dict[str, Any]:
        """Return what :meth:`save` recorded."""
        return self.read_json(f"{stage}/{index:05d}.json")

    def forget(self, stage: str, index: int) -> None:
        """Mark a task as not finished."""
        self._close(stage, index)
        self._remove(f"{stage}/{index:05d}.json")

    def remove_stage(self, stage: str) -> None:
        """Remove all files of a stage."""
        self._close(stage)
        path = f"{self._root}/{stage}"
        if self._fs.exists(path):
            self._fs.rm(path, recursive=True)

    def remove(self) -> None:
        """Remove the files of the store, the folder if nothing else is in it, and the local copies of arrays."""
        for stage in self.stages():
            if self.finished(stage) or "input.json" in self._names(stage):
                self.remove_stage(stage)
        for name in _RECORDS:
            self._remove(name)
        if self._local and Path(self._root).is_dir() and self.empty:
            Path(self._root).rmdir()
        shutil.rmtree(self._cache, ignore_errors=True)

    def write_json(self, name: str, record: dict[str, Any]) -> None:
        """Write a JSON file with its digest."""
        content = json.loads(json.dumps(record))
        self._write(name, json.dumps({"digest": digest_of_content(content), "content": content}, indent=1).encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Return a JSON file. Raise MissingFileError or InputError if it is missing or damaged."""
        try:
            found = json.loads(self._read(name))
            if not isinstance(found, dict) or digest_of_content(found.get("content")) != found.get("digest"):
                raise ValueError("it differs from its digest")
        except FileNotFoundError:
            raise MissingFileError(
                f"{self.url}/{name}: is missing; start the run again, or remove the folder"
            ) from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.url}/{name}: damaged ({first_line(error)}); remove the folder") from None
        return found["content"]

    def remove_json(self, name: str) -> None:
        """Remove a JSON file, if it is there."""
        self._remove(name)

    @property
    def empty(self) -> bool:
        """Whether nothing is there, except a lock."""
        return not set(self._names("")) - {LOCK}

    def require_usable(self) -> None:
        """Raise InputError if this is a file, or cannot be listed (access, network, no such bucket)."""
        if self._local and Path(self._root).exists() and not Path(self._root).is_dir():
            raise InputError(f"{self.url}: a folder needed for the shards; found a file")
        try:
            self._names("")  # first: an error of the network would look like a missing bucket
            require_bucket(self._fs, self._root)
        except Exception as error:  # each file system has errors of its own
            raise InputError(f"{self.url}: cannot be read ({first_line(error)})") from None

    @property
    def folder(self) -> Path | None:
        """The folder of a store on a disk."""
        return Path(self._root) if self._local else None

    def _close(self, stage: str, index: int | None = None) -> None:
        """Forget the open arrays of a task, or of a stage."""
        with self._lock:
            for known in (self._open, self._verified):
                for key in [key for key in known if key[0] == stage and index in (None, key[1])]:
                    del known[key]

    def _close_old(self) -> None:
        """Forget the arrays that were used least recently, if there are too many."""
        mapped = [key for key, array in self._open.items() if isinstance(array, np.memmap)]
        most = min(_MAPPED, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        for key in mapped[: max(0, len(mapped) - most)]:
            del self._open[key]
        held = {key: array.nbytes for key, array in self._open.items() if not isinstance(array, np.memmap)}
        total = sum(held.values())
        for key, size in held.items():
            if total <= _HELD:
                break
            del self._open[key]
            total -= size

    def _read_array(self, stage: str, index: int, part: str) -> NDArray:
        """Return an array that agrees with its digest. It is compared once per process."""
        name, key = f"{stage}/{index:05d}.{part}.npy", (stage, index, part)
        try:
            digest = self._verified.get(key) or self.record(stage, index)["parts"][part]["digest"]
            path = Path(f"{self._root}/{name}") if self._local else self._fetched(name, digest)
            if key not in self._verified:
                found = _digest(path)
                if found != digest and not self._local:  # the local copy may be the damaged one
                    path.unlink(missing_ok=True)
                    path = self._fetched(name, digest)
                    found = _digest(path)
                if found != digest:
                    raise DamagedError(stage, index, f"{self.url}/{name} differs from its digest")
                self.bytes_read += path.stat().st_size if self._local else 0
            array = np.load(path, mmap_mode="r" if path.stat().st_size >= _SMALL else None, allow_pickle=False)
        except FileNotFoundError as error:
            raise DamagedError(stage, index, f"{self.url}/{name} is missing") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(stage, index, f"{self.url}/{name}: {error}") from error
        self._verified[key] = digest
        return array

    def _fetched(self, name: str, digest: str) -> Path:
        """Return the local copy of an array, fetched if it is not there."""
        path = self._cache / digest[:2] / f"{digest}.npy"
        if path.is_file():
            return path
        data = self._read(name)
        self.bytes_read += len(data)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._make_room(len(data))
        with replacing(path) as temporary:
            temporary.write_bytes(data)
        return path

    def _make_room(self, needed: int) -> None:
        """Remove the local copies that were fetched first, until another of this size fits."""
        copies = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in self._cache.glob("*/*.npy"))
        total = sum(size for _, size, _ in copies)
        for _, size, path in copies:
            if total + needed <= self._cache_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size

    def _names(self, folder: str) -> list[str]:
        path = f"{self._root}/{folder}".rstrip("/")
        try:
            return sorted(item.rstrip("/").rpartition("/")[2] for item in self._fs.ls(path, detail=False))
        except FileNotFoundError:
            return []

    def _write(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        if self._local:
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as temporary, temporary.open("wb") as file:
                allocate(file.fileno(), len(data))
                file.write(data)
            return
        _with_tries(lambda: self._fs.pipe_file(path, data))

    def _read(self, name: str) -> bytes:
        path = f"{self._root}/{name}"
        return Path(path).read_bytes() if self._local else _with_tries(lambda: self._fs.cat_file(path))

    def _remove(self, name: str) -> None:
        path = f"{self._root}/{name}"
        if self._local:
            Path(path).unlink(missing_ok=True)
        elif self._fs.exists(path):
            _with_tries(lambda: self._fs.rm_file(path))


def _with_tries(action: Any) -> Any:
    """Return the result of an action on another file system; try again after errors that may pass."""
    for attempt in range(_TRIES):
        try:
            return action()
        except FileNotFoundError:
            raise
        except OSError:
            if attempt == _TRIES - 1:
                raise
            time.sleep(_PAUSE * 2**attempt)
    raise AssertionError


def _npy(array: NDArray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def digest_of_content(content: Any) -> str:
    """Return a digest of what a JSON file holds."""
    return xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True).encode())


def _digest(path: Path) -> str:
    state = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            state.update(block)
    return state.hexdigest()
