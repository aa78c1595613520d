"""Store the progress of a kNN search on disk, so that a search that was killed can continue."""

from __future__ import annotations

import json
import logging
import math
import os
import re
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
from starfc.graph.cells import Cells, Centroids
from starfc.graph.checks import require_ids, require_lists, require_numbers
from starfc.graph.neighbours import KnnGraph, id_dtype
from starfc.runtime import threads
from starfc.storage.atomic import remove_empty, replacing, sweep, write_json
from starfc.storage.opened import OpenedFolder
from starfc.storage.records import Anything, PhaseRecord, SearchProgress
from starfc.storage.safe import read_own_npz, read_raw

log = logging.getLogger("starfc")

_Content = TypeVar("_Content", bound=BaseModel)


_FILES = re.compile(r"(search|done)\.json|cells-\d+\.npz|lists-\d+\.(ids|sims)")


def remove_search(folder: Path) -> None:
    """Remove the files of a search from a folder, and the folder if it is then empty."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in folder.iterdir():
        if _FILES.fullmatch(path.name) and (path.is_symlink() or not path.is_dir()):
            path.unlink(missing_ok=True)
    sweep(folder)
    remove_empty(folder)


class PartialGraph:
    """The lists that a search in several phases has found so far, stored in a folder.

    Each phase improves the lists of all N rows, chunk by chunk. The folder holds the lists of the last finished phase,
    and the finished chunks of the present one. Rows are stored in the order in which the search places them, and ids
    are places too.

    Parameters
    ----------
    folder : path
        Folder with the files ``search.json``, ``done.json``, and for each number P ``cells-P.npz``, ``lists-P.ids`` and
        ``lists-P.sims``.
    key : dict
        Identifies the search: features, k and parameters. Files of a search with another key are deleted.
    n, k : int
        Number of rows, and length of the lists.
    chunks : list of slices
        The chunks of rows.

    Attributes
    ----------
    finished : list of PhaseRecord
        The phases that have ended, with what was measured after them.

    Raises
    ------
    InputError
        If the folder has other files.
    """

    def __init__(self, folder: Path, key: dict[str, Any], n: int, k: int, chunks: list[slice]) -> None:
        self.folder, self._lock, self._at = folder, threading.Lock(), OpenedFolder(folder)
        self.finished: list[PhaseRecord] = []
        self._present: PhaseRecord | None = None
        self._before: dict[int, str] = {}
        self._done: dict[int, str] = {}
        self._shape, self.chunks = (n, k), chunks
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
        self._resume()

    def cells(self, number: int, make: Callable[[], Cells]) -> Cells:
        """Return the stored cells of a partition; if there are none, call ``make`` and store its cells."""
        path = self.folder / f"cells-{number}.npz"
        try:
            return _whole_cells(read_own_npz(self._at.path(path.name)), self._shape[0])
        except MissingFileError:
            pass
        except (ValueError, KeyError) as error:
            if number == 0:
                log.info("%s: damaged (%s); the search starts again", path, error)
                self._forget()  # stored lists and other cells are in the order of the lost cells
                for other in self.folder.glob("cells-*.npz"):
                    other.unlink()
            else:
                log.info("%s: damaged (%s); the cells are made again", path, error)
        cells = make()
        with replacing(path) as temporary:
            known = cells.centroids
            np.savez(
                temporary, order=cells.order, starts=cells.starts, centroids=known.vectors.numpy(),
                coarse=known.coarse.numpy(), groups=known.starts, near=known.near,
            )  # fmt: skip
        return cells

    def start(self, phase: PhaseRecord) -> None:
        """Start the next phase, or continue it from the stored chunks that are undamaged."""
        number = len(self.finished)
        if self._present != phase or not self._parts_there(number):
            self._present, self._done = phase, {}
            for path, dtype in self._parts(number):
                with path.open("wb") as file:
                    file.truncate(math.prod(self._shape) * dtype.itemsize)
        self._done = {c.start: self._done[c.start] for c in self.chunks if self._whole(number, c, self._done)}
        self._record()

    @property
    def rows_done(self) -> int:
        """Number of rows that the present phase has finished."""
        return sum(c.stop - c.start for c in self.chunks if c.start in self._done)

    def missing(self) -> list[slice]:
        """Return the chunks that the present phase has not finished."""
        return [c for c in self.chunks if c.start not in self._done]

    def before(self, chunk: slice) -> KnnGraph | None:
        """Return the lists of a chunk after the last finished phase; None before the first phase has ended."""
        if not self.finished:
            return None
        ids, sims = self._stored(len(self.finished) - 1, chunk)
        return KnnGraph(ids, sims)

    def write(self, chunk: slice, ids: NDArray[np.integer], sims: NDArray[np.float32]) -> None:
        """Store a finished chunk, then record it in ``done.json``. Can be called from any thread."""
        for (path, dtype), array in zip(self._parts(len(self.finished)), (ids, sims), strict=True):
            with path.open("rb+") as file:
                file.seek(chunk.start * self._shape[1] * dtype.itemsize)
                file.write(np.ascontiguousarray(array).data)
                file.flush()
                os.fdatasync(file.fileno())
        with self._lock:
            self._done[chunk.start] = _digest(ids, sims)
            self._record()

    def end(self) -> None:
        """End the present phase, and remove the lists of the one before."""
        assert self._present is not None
        self.finished.append(self._present)
        self._before, self._present, self._done = self._done, None, {}
        self._record()
        for path, _ in self._parts(len(self.finished) - 2):
            path.unlink(missing_ok=True)

    def note(self, recalls: dict[str, Any]) -> None:
        """Store what was measured after the last finished phase."""
        self.finished[-1] = self.finished[-1].model_copy(update={"recalls": recalls})
        self._record()

    def lists(self) -> KnnGraph:
        """Return the lists of all rows after the last finished phase, memory-mapped; rows and ids are places."""
        ids, sims = self._arrays(len(self.finished) - 1)
        return KnnGraph(ids, sims)

    def finish(self, order: NDArray[np.integer]) -> KnnGraph:
        """Return the last finished phase as a graph in the original order; ``order`` (N,) is the row of each place."""
        ids, sims = (np.empty(self._shape, dtype) for _, dtype in self._parts(0))

        def work(chunk: slice) -> None:
            found, found_sims = self._stored(len(self.finished) - 1, chunk)
            ids[order[chunk]], sims[order[chunk]] = np.where(found >= 0, order[found], -1), found_sims

        threads.each(work, self.chunks)
        return KnnGraph(ids, sims)

    def _resume(self) -> None:
        """Read which phases have ended, and the stored chunks; start again if the lists are damaged."""
        state = self._read("done.json", SearchProgress)
        if state is None:
            return
        self.finished, self._present = list(state.finished), state.present
        self._before, self._done = ({int(at): digest for at, digest in d.items()} for d in (state.before, state.done))
        last = len(self.finished) - 1
        whole = last < 0 or self._parts_there(last)
        if not whole or not all(self._whole(last, chunk, self._before) for chunk in self.chunks if last >= 0):
            log.info("%s: the lists of the last phase are damaged; the search starts again", self.folder)
            self._forget()

    def _forget(self) -> None:
        self.finished.clear()
        self._present, self._before, self._done = None, {}, {}
        (self.folder / "done.json").unlink(missing_ok=True)

    def _record(self) -> None:
        state = SearchProgress(
            finished=self.finished,
            present=self._present,
            before={str(at): digest for at, digest in self._before.items()},
            done={str(at): digest for at, digest in self._done.items()},
        )
        write_json(self.folder / "done.json", state.model_dump())

    def _parts(self, number: int) -> list[tuple[Path, np.dtype]]:
        """Return paths and dtypes of the raw files of ids and similarities of a phase."""
        kinds = ("ids", np.dtype(id_dtype(self._shape[0]))), ("sims", np.dtype(np.float32))
        return [(self._at.path(f"lists-{number}.{kind}"), dtype) for kind, dtype in kinds]

    def _parts_there(self, number: int) -> bool:
        parts = self._parts(number)
        return all(p.is_file() and p.stat().st_size == math.prod(self._shape) * dtype.itemsize for p, dtype in parts)

    def _arrays(self, number: int) -> list[NDArray]:
        return [read_raw(path, dtype, self._shape, follow=False) for path, dtype in self._parts(number)]

    def _stored(self, number: int, chunk: slice) -> list[NDArray]:
        return [array[chunk] for array in self._arrays(number)]

    def _whole(self, number: int, chunk: slice, digests: dict[int, str]) -> bool:
        """Return whether the digest of a chunk is known and its stored arrays are undamaged."""
        if chunk.start not in digests:
            return False
        ids, sims = self._stored(number, chunk)
        try:
            require_lists(ids, sims, np.full(len(ids), -1), self._shape[0])
        except ValueError as error:
            log.info("%s: rows from %d on are damaged (%s); they are searched again", self.folder, chunk.start, error)
            return False
        return _digest(ids, sims) == digests[chunk.start]

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
    order, starts, groups, near = (stored[name] for name in ("order", "starts", "groups", "near"))
    vectors, coarse = stored["centroids"], stored["coarse"]
    for array in (vectors, coarse):
        if array.ndim != 2 or array.dtype != np.float32:
            raise ValueError("arrays of wrong types")
        require_numbers("centroids", array)
    if order.dtype.kind != "i" or near.dtype.kind != "i" or {starts.dtype, groups.dtype} != {np.dtype(np.int64)}:
        raise ValueError("arrays of wrong types")
    if order.shape != (n,) or near.ndim != 2 or len(near) != len(coarse) or not near.shape[1]:
        raise ValueError(f"cells of {n:,} rows needed")
    for first, count, end in ((starts, len(vectors), n), (groups, len(coarse), len(vectors))):
        if first.shape != (count + 1,) or first[0] != 0 or first[-1] != end or (np.diff(first) < 0).any():
            raise ValueError(f"cells of {n:,} rows needed")
    require_ids("near", near, 0, len(coarse))
    require_ids("order", order, 0, n)
    if (np.bincount(order, minlength=n) != 1).any():
        raise ValueError("a row is in no cell, or in two cells")
    known = Centroids(torch.from_numpy(vectors.copy()), torch.from_numpy(coarse.copy()), groups, near)
    return Cells(known, order, starts)
