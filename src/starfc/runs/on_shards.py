"""Cluster files on shards: open the store and the engine, and keep the kNN graph with the results."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.graph.neighbours import KnnGraph
from starfc.graph.opening import Place, Search
from starfc.graph.store import find_graph, write_graph
from starfc.models.checkpoint import Model
from starfc.runtime.stages import Stages
from starfc.runtime.words import word
from starfc.shards.driver import Shards
from starfc.shards.engine import engine_of
from starfc.shards.run import SHARD_ROWS
from starfc.shards.store import Store
from starfc.storage.atomic import no_empty_folder, writes
from starfc.storage.commit import locked
from starfc.storage.remote import is_url, is_within
from starfc.storage.scratch import large_array

log = logging.getLogger("starfc")

_UNIT = 128  # shards have a multiple of this number of rows


@dataclass(frozen=True)
class ShardOptions:
    """How a command runs on shards.

    Attributes
    ----------
    out : str
        Folder or URL of the results.
    engine : {'local', 'ray', 'wait'}
        Processes of this machine; a Ray cluster; or tasks that others start by ``starfc task``.
    workers : int, optional
        Tasks at the same time. Default: the number of threads, or all processors of the Ray cluster.
    address : str, optional
        Address of the Ray cluster. Default: this machine.
    store : str, optional
        Folder or URL for the arrays between the stages. Default: ``out`` with ``.shards`` added, which is removed at
        the end.
    shard_rows : int
        Rows of each shard.
    """

    out: str = "outputs"
    engine: str = "local"
    workers: int | None = None
    address: str | None = None
    store: str | None = None
    shard_rows: int = SHARD_ROWS

    @property
    def url(self) -> str:
        """The folder or URL of the store."""
        named = self.store or f"{self.out.rstrip('/')}.shards"
        return named if is_url(named) else str(Path(named).absolute())

    def clear(self) -> None:
        """Remove a store that was not named, at the end of a run."""
        if self.store is None:
            Store(self.url).remove()

    def __post_init__(self) -> None:
        if self.shard_rows < _UNIT or self.shard_rows % _UNIT:
            raise InputError(f"{word('shard_rows')}: a multiple of {_UNIT} needed; found {self.shard_rows:,}")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"{word('workers')}: at least 1 needed; found {self.workers}")
        if self.address is not None and self.engine != "ray":
            raise InputError(f"{word('address')}: needs {word('engine')} ray; found {self.engine}")
        if self.store is None and is_url(self.out) and "/" not in self.out.rstrip("/").partition("://")[2]:
            raise InputError(f"{word('store')}: name a URL; the results at {self.out} leave no place beside them")
        if self.store is None and not is_url(self.out) and (self.address is not None or self.engine == "wait"):
            raise InputError(f"{word('store')}: name a folder or URL that all machines see")


@contextmanager
def on_shards(
    options: ShardOptions, model: Model, search: Search, out: Path, threads: int, *, keep_graph: bool
) -> Iterator[dict[str, Any]]:
    """Yield the arguments of :func:`starfc.clustering.arrays.cluster_features` that make it run on shards.

    ``keep_graph`` stores the graph in the folder ``out``, for `starfc assign`.
    """
    store = Store(options.url)
    log.info("shards: %s, engine %s", store.url, options.engine)
    with ExitStack() as stack:
        store.require_usable()
        if is_within(options.out, store.url):
            raise InputError(f"{store.url}: {word('store')} must not be, or contain, the folder of the results")
        if store.folder is not None:
            stack.enter_context(no_empty_folder(store.folder))  # no task has begun if the run is refused
            with writes(store.folder, store.folder):
                store.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(store.folder, "cluster"))
        engine = stack.enter_context(engine_of(options.engine, options.workers or threads, options.address))
        shards = Shards(store, engine, model, search, options.shard_rows)

        def make_graph(features: Features, k: int, as_asked: bool, stages: Stages) -> KnnGraph:
            graph = shards.graph(features, k)
            place = Place.within(out, features, k, search)
            if keep_graph and find_graph(place.path) is None:
                write_graph(place.path, whole(graph, out), features)
            return graph

        yield {"make_graph": make_graph, "make_parser": shards.parser}


def whole(graph: KnnGraph, folder: Path) -> KnnGraph:
    """Return a graph whose lists are in a store as one of lists in memory, or in scratch files if it is large."""
    shape = graph.num_nodes, graph.k
    ids, sims = (large_array(shape, dtype, folder) for dtype in (graph.ids.dtype, np.float32))
    step = 1 << 16
    for start in range(0, graph.num_nodes, step):
        rows = np.arange(start, min(start + step, graph.num_nodes))
        ids[rows], sims[rows] = graph.ids[rows], graph.sims[rows]
    return KnnGraph(ids, sims, graph.info)
