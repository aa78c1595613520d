"""A kNN graph whose lists are in a store."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from starfc.graph.neighbours import KnnGraph, id_dtype
from starfc.graph.order import inverse
from starfc.shards.run import ShardRun


class _Table:
    """An array by row name whose rows are read from the store when they are needed."""

    def __init__(self, graph: ShardGraph, part: str) -> None:
        self._graph, self._part = graph, part
        self.shape = graph.run.manifest.n, graph.run.manifest.k
        self.dtype = np.dtype(id_dtype(self.shape[0]) if part == "ids" else np.float32)

    def __getitem__(self, rows: NDArray[np.integer]) -> NDArray:
        graph = self._graph
        found = graph.run.rows(graph.run.lists_stage, self._part, graph.places[rows])
        return np.where(found >= 0, graph.order[found], -1) if self._part == "ids" else found


class ShardGraph(KnnGraph):
    """A kNN graph in a store. ``graph.ids[rows]`` and ``graph.sims[rows]`` read the lists of some rows.

    Attributes
    ----------
    run : ShardRun
    order, places : (N,) integers
        The row at each place, and the place of each row.
    """

    run: ShardRun
    order: NDArray[np.integer]
    places: NDArray[np.integer]

    def __init__(self, run: ShardRun, order: NDArray[np.integer], info: dict[str, Any]) -> None:
        for name, value in (("run", run), ("order", order), ("places", inverse(order)), ("info", info)):
            object.__setattr__(self, name, value)
        for part in ("ids", "sims"):
            object.__setattr__(self, part, _Table(self, part))
