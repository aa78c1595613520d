"""Store the progress of a kNN search on disk, so that a search that was killed can continue."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from pydantic import BaseModel

from starfc.errors import InputError, MissingFileError
from starfc.graph.cells import Cells
from starfc.graph.checks import require_ids, require_lists, require_numbers
from starfc.graph.neighbours import KnnGraph, id_dtype
from starfc.storage.atomic import replacing, sweep, write_json
from starfc.storage.opened import OpenedFolder
from starfc.storage.records import Anything, SearchProgress
from starfc.storage.safe import read_own_npz, read_raw

log = logging.getLogger("starfc")

_Content = TypeVar("_Content", bound=BaseModel)


_FILES = ("search.json", "cells.npz", "ids.part", "sims.part", "done.json")


def remove_search(folder: Path) -> None:
    """Remove the files of a search from a folder, and the folder if it is then empty."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for name in _FILES:
        if not (folder / name).is_dir():
            (folder / name).unlink(missing_ok=True)
    sweep(folder)
    try:
        folder.rmdir()
    except OSError:
        pass  # the folder has other files


class PartialGraph:
    """The finished chunks of a search, stored in a folder, in the order of the search's cells.

    Parameters
    ----------
    folder : path
        Folder with the files ``search.json``, ``cells.npz``, ``ids.part``, ``sims.part`` and ``done.json``.
    key : dict
        Identifies the search: features, k and parameters. Files of a search with another key are deleted.

    Raises
    ------
    InputError
        If the folder has other files.
    """

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        self.folder, self._lock, self._at = folder, threading.Lock(), OpenedFolder(folder)
        if self._read("search.json", Anything) != Anything(json.loads(json.dumps(key))):
            remove_search(folder)
            folder.mkdir(parents=True, exist_ok=True)
            others = sorted(path.name for path in folder.iterdir())
            if others:
                raise InputError(
                    f"{folder}: a folder with files of a search only needed; found {others[0]!r}; move it, or name "
                    "another place for the graph"
                )
            write_json(folder / "search.json", key)

    def cells(self, make: Callable[[], Cells], n: int) -> Cells:
        """Return the stored cells of n rows; if there are none, call ``make`` and store its cells."""
        path = self.folder / "cells.npz"
        try:
            return _whole_cells(read_own_npz(self._at.path(path.name)), n)
        except MissingFileError:
            pass
        except (ValueError, KeyError) as error:
            log.info("%s: damaged (%s); the search starts again", path, error)
            (self.folder / "done.json").unlink(missing_ok=True)  # stored chunks are in the order of the lost cells
        cells = make()
        with replacing(path) as temporary:
            np.savez(temporary, centroids=cells.centroids.numpy(), order=cells.order, starts=cells.starts)
        return cells

    def start(self, probes: int, n: int, k: int, chunks: list[slice]) -> None:
        """Start a search with this number of probes, or continue it from the stored chunks that are undamaged."""
        self._chunks, self._shape, self._probes = chunks, (n, k), probes
        state = self._read("done.json", SearchProgress)
        if state is not None and state.probes == probes and self._parts_there():
            self._done = {c.start: state.done[str(c.start)] for c in chunks if self._whole(c, state.done)}
        else:
            self._done = {}
            for name, dtype in self._parts():
                with self._at.path(name).open("wb") as file:
                    file.truncate(n * k * dtype.itemsize)
        write_json(self.folder / "done.json", {"probes": probes, "done": self._done})

    @property
    def rows_done(self) -> int:
        """Number of rows whose neighbours are stored."""
        return sum(c.stop - c.start for c in self._chunks if c.start in self._done)

    def missing(self) -> list[slice]:
        """Return the chunks that are not searched yet."""
        return [c for c in self._chunks if c.start not in self._done]

    def write(self, chunk: slice, ids: NDArray[np.integer], sims: NDArray[np.float32]) -> None:
        """Store a finished chunk, then record it in ``done.json``. Can be called from any thread."""
        for (name, dtype), array in zip(self._parts(), (ids, sims), strict=True):
            with self._at.path(name).open("rb+") as file:
                file.seek(chunk.start * self._shape[1] * dtype.itemsize)
                file.write(np.ascontiguousarray(array).data)
                file.flush()
                os.fdatasync(file.fileno())
        with self._lock:
            self._done[chunk.start] = _digest(ids, sims)
            write_json(self.folder / "done.json", {"probes": self._probes, "done": self._done})

    def finish(self, order: NDArray[np.integer]) -> KnnGraph:
        """Return the whole graph, with the rows in their original order."""
        ids, sims = found = [np.empty(self._shape, dtype) for _, dtype in self._parts()]
        for chunk in self._chunks:
            for array, part in zip(found, self._stored(chunk), strict=True):
                array[order[chunk]] = part
        return KnnGraph(ids, sims)

    def _parts(self) -> list[tuple[str, np.dtype]]:
        """Return names and dtypes of the raw files of ids and similarities."""
        return [("ids.part", np.dtype(id_dtype(self._shape[0]))), ("sims.part", np.dtype(np.float32))]

    def _parts_there(self) -> bool:
        paths = [(self._at.path(name), dtype.itemsize) for name, dtype in self._parts()]
        return all(p.is_file() and p.stat().st_size == math.prod(self._shape) * width for p, width in paths)

    def _stored(self, chunk: slice) -> list[NDArray]:
        return [read_raw(self._at.path(name), dtype, self._shape, follow=False)[chunk] for name, dtype in self._parts()]

    def _whole(self, chunk: slice, done: dict[str, str]) -> bool:
        """Return whether a chunk is recorded in ``done`` and its stored arrays are undamaged."""
        if str(chunk.start) not in done:
            return False
        ids, sims = self._stored(chunk)
        try:
            require_lists(ids, sims, np.full(len(ids), -1), self._shape[0])
        except ValueError as error:
            log.info("%s: rows from %d on are damaged (%s); they are searched again", self.folder, chunk.start, error)
            return False
        return _digest(ids, sims) == done[str(chunk.start)]

    def _read(self, name: str, content: type[_Content]) -> _Content | None:
        try:
            return self._at.json(name, content)
        except MissingFileError:
            return None
        except InputError as error:
            log.info("kNN graph: %s; the search starts again", error)
            return None


def _digest(ids: NDArray[np.integer], sims: NDArray[np.float32]) -> str:
    state = xxhash.xxh3_64(np.ascontiguousarray(ids).view(np.uint8).data)
    state.update(np.ascontiguousarray(sims).view(np.uint8).data)
    return state.hexdigest()


def _whole_cells(stored: dict[str, NDArray], n: int) -> Cells:
    """Return the cells of n rows from stored arrays. Raise ValueError or KeyError if the arrays are not valid."""
    centroids, order, starts = (stored[name] for name in ("centroids", "order", "starts"))
    if centroids.ndim != 2 or centroids.dtype != np.float32 or order.dtype.kind != "i" or starts.dtype != np.int64:
        raise ValueError("arrays of wrong types")
    if order.shape != (n,) or starts.shape != (len(centroids) + 1,) or starts[0] != 0 or starts[-1] != n:
        raise ValueError(f"cells of {n:,} rows needed")
    require_ids("order", order, 0, n)
    require_numbers("centroids", centroids)
    if (np.diff(starts) < 0).any() or (np.bincount(order, minlength=n) != 1).any():
        raise ValueError("a row is in no cell, or in two cells")
    return Cells(torch.from_numpy(centroids.copy()), order, starts)
