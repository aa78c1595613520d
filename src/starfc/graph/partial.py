"""A kNN graph on its way: what a search has found so far, on disk, so that a killed run goes on where it stopped."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.graph.cells import Cells
from starfc.graph.neighbours import KnnGraph, id_dtype
from starfc.runtime.atomic import replacing, write_json


class PartialGraph:
    """Finished chunks of a search, in the order of its cells, in a folder of their own.

    Parameters
    ----------
    folder : path
        Holds ``search.json``, ``cells.npz``, ``ids.part``, ``sims.part`` and ``done.json``.
    key : dict
        What the search is; what the folder holds of another search is deleted.
    """

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        self.folder, self._lock = folder, threading.Lock()
        if not self._holds("search.json", key):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_json(folder / "search.json", key)

    def cells(self, make: Callable[[], Cells]) -> Cells:
        """The stored cells, or new ones, which are then stored."""
        path = self.folder / "cells.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as file:
                return Cells(torch.from_numpy(file["centroids"]), file["order"], file["starts"])
        cells = make()
        with replacing(path) as temporary:
            np.savez(temporary, centroids=cells.centroids.numpy(), order=cells.order, starts=cells.starts)
        return cells

    def start(self, probes: int, n: int, k: int, chunks: list[slice]) -> None:
        """Begin a search with that many probes, or go on with it."""
        self._chunks, self._shape, self._probes = chunks, (n, k), probes
        state = self._read("done.json")
        if state is None or state["probes"] != probes:
            state = {"probes": probes, "done": []}
            for name, width in self._parts():
                with (self.folder / name).open("wb") as file:
                    file.truncate(n * k * width)
            write_json(self.folder / "done.json", state)
        self._done = set(state["done"])

    @property
    def rows_done(self) -> int:
        """Rows whose neighbours are stored."""
        return sum(c.stop - c.start for c in self._chunks if c.start in self._done)

    def missing(self) -> list[slice]:
        """Chunks that are still to be searched."""
        return [c for c in self._chunks if c.start not in self._done]

    def write(self, chunk: slice, ids: NDArray[np.integer], sims: NDArray[np.float32]) -> None:
        """Store a finished chunk, then note that it is there; from any thread."""
        for (name, width), array in zip(self._parts(), (ids, sims), strict=True):
            with (self.folder / name).open("rb+") as file:
                file.seek(chunk.start * self._shape[1] * width)
                file.write(np.ascontiguousarray(array))
                file.flush()
                os.fdatasync(file.fileno())
        with self._lock:
            self._done.add(chunk.start)
            write_json(self.folder / "done.json", {"probes": self._probes, "done": sorted(self._done)})

    def finish(self, order: NDArray[np.integer]) -> KnnGraph:
        """The whole graph, rows back in their own order."""
        found = []
        for (name, width), dtype in zip(self._parts(), (id_dtype(self._shape[0]), np.float32), strict=True):
            array = np.empty(self._shape, dtype)
            with (self.folder / name).open("rb") as file:
                for chunk in self._chunks:
                    file.seek(chunk.start * self._shape[1] * width)
                    count = (chunk.stop - chunk.start) * self._shape[1]
                    array[order[chunk]] = np.fromfile(file, dtype, count).reshape(-1, self._shape[1])
            found.append(array)
        return KnnGraph(*found)

    def _parts(self) -> list[tuple[str, int]]:
        return [("ids.part", np.dtype(id_dtype(self._shape[0])).itemsize), ("sims.part", 4)]

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _holds(self, name: str, content: Any) -> bool:
        return self._read(name) == json.loads(json.dumps(content))
