"""A run on shards: what it clusters, and how a task reads the rows that it needs.

The N rows have *places* 0..N-1: rows of one cell have neighbouring places, so the neighbours of a row are near it. A
shard is a range of places, 65,536 by default. Tables between stages are by place; each task writes the rows of its own
shard. A row's *name* is its number in the features. Ties are broken by name, and the owner of an edge is the end of the
lower name, so a task numbers the rows that it works with in the order of their names
(:class:`~starfc.shards.places.Some`). Then its results are those of the same code on all rows.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.graph.edges import positions
from starfc.graph.neighbours import KnnGraph
from starfc.graph.strangers import Strangers
from starfc.models.checkpoint import Model, load_model, weights_digest
from starfc.models.contextual import ContextualModel
from starfc.models.gcn import StarFCModel
from starfc.models.structural import StructuralModel
from starfc.runtime.products import product_dtype, slices, use_product_dtype
from starfc.shards.places import Places, Some
from starfc.shards.store import DamagedError, Store, digest_of_content
from starfc.version import __version__

SHARD_ROWS = 1 << 16


@dataclass(frozen=True)
class Manifest:
    """What a run clusters, and how.

    Attributes
    ----------
    fingerprint : str
        Digest of the features.
    n, dim, k : int
        Number of rows, feature dimension, and entries of a neighbour list, the row itself included.
    normalise : bool
        Whether features are normalised when they are read.
    dtype : str
        Type of the features.
    shard_rows, chunk_rows : int
        Places of each shard, and of each chunk of an approximate search.
    model, weights : str
        Folder of the weights, the same path on all machines, and a digest of them.
    search : dict
        Method, parameters, recall and seed of the neighbour search.
    products : str
        Number type of the products of a search. All processes use that of the first one.
    version, processor : str
        Version of this package, and kind of processor: the last bits of products differ between kinds.
    """

    fingerprint: str
    n: int
    dim: int
    k: int
    normalise: bool
    dtype: str
    shard_rows: int
    chunk_rows: int
    model: str
    weights: str
    search: dict[str, Any]
    products: str
    version: str = __version__
    processor: str = ""


def processor() -> str:
    """Return the kind of this processor."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


class ShardRun:
    """A run on shards, as a task or the driver sees it.

    Parameters
    ----------
    store : Store
    manifest : Manifest
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store, self.manifest = store, manifest
        use_product_dtype(getattr(torch, manifest.products))
        self._known: dict[str, dict[int, str | None]] = {}  # by stage and task: what a finished task was asked
        self._numbers: Counter[str] = Counter()
        self.mend: Callable[[DamagedError], None] | None = None  # makes a damaged array anew, in the driver only

    @classmethod
    def open(cls, store: Store) -> ShardRun:
        """Open the run of a store.

        Raises
        ------
        InputError
            There is none, or it belongs to another version or kind of processor.
        """
        store.require_usable()
        try:
            found = store.read_json("manifest.json")
        except FileNotFoundError:
            raise InputError(f"{store.url}: no run on shards found (manifest.json is missing)") from None
        try:
            manifest = Manifest(**found)
            if manifest.products not in ("float32", "bfloat16"):
                raise ValueError(f"products: {manifest.products!r}")
        except (ValueError, TypeError) as error:
            raise InputError(f"{store.url}/manifest.json: damaged ({error}); remove the folder") from None
        if manifest.version != __version__:
            raise InputError(
                f"{store.url}: a run of starfc {manifest.version}; this is {__version__}; use that version, or another "
                "store"
            )
        if manifest.processor != processor():
            raise InputError(
                f"{store.url}: a run on processors of kind {manifest.processor!r}; this one is {processor()!r}, whose "
                "results differ in the last bits; use machines of one kind"
            )
        return cls(store, manifest)

    @cached_property
    def model(self) -> Model:
        model = load_model(Path(self.manifest.model))
        if weights_digest(model) != self.manifest.weights:
            raise InputError(
                f"{self.manifest.model}: the weights are not those that this run began with; restore them, or name "
                "another store"
            )
        return model

    @cached_property
    def structural(self) -> StructuralModel:
        """The model, in the stages of structural models."""
        assert isinstance(self.model, StructuralModel)
        return self.model

    @cached_property
    def embedding(self) -> StarFCModel:
        """The model, in the stages of models that score an edge by the embeddings of its ends."""
        assert isinstance(self.model, StarFCModel)
        return self.model

    @property
    def contextual(self) -> ContextualModel | None:
        return self.model if isinstance(self.model, ContextualModel) else None

    @cached_property
    def shards(self) -> list[slice]:
        return slices(self.manifest.n, self.manifest.shard_rows)

    @cached_property
    def chunks(self) -> list[slice]:
        return slices(self.manifest.n, self.manifest.chunk_rows)

    def of(self, stage: str) -> list[slice]:
        """Return the places of each task of a stage."""
        return self.chunks if stage.startswith(("cells", "sweep", "pairs", "back")) else self.shards

    def count(self, stage: str) -> int:
        """Return the number of tasks of a stage."""
        return self.asked(stage)["tasks"] if stage.startswith(("modules", "joined")) else len(self.of(stage))

    def next_of(self, kind: str) -> str:
        """Return the name of the next stage of a kind. The driver asks in the same order when it starts again."""
        self._numbers[kind] += 1
        return f"{kind}-{self._numbers[kind] - 1}"

    @cached_property
    def averaged_columns(self) -> int:
        """Columns of the lists whose rows the model averages (:func:`starfc.graph.structure.smoothing_affinity`)."""
        smoothing = self.model.smoothing if isinstance(self.model, StructuralModel) else self.manifest.k
        return smoothing if smoothing + 1 < self.manifest.k else self.manifest.k

    def load(self, stage: str, index: int, part: str = "array") -> NDArray:
        """Return an array of a finished task (:meth:`starfc.shards.store.Store.load`)."""
        try:
            return self.store.load(stage, index, part)
        except DamagedError as error:
            if self.mend is None:
                raise
            self.mend(error)
        return self.store.load(stage, index, part)

    def ask(self, stage: str, wanted: dict[str, Any], *arrays: dict[str, NDArray]) -> None:
        """Store what the tasks of a stage need to know. If it was something else before, the stage starts again.

        ``wanted`` are numbers and names, ``arrays`` are read by :meth:`asked_array`: one set for all tasks, or as many
        as there are tasks.
        """
        saved = [self.store.save(f"{stage}-given", index, some) for index, some in enumerate(arrays)]
        digests = [{part: record["digest"] for part, record in parts.items()} for parts in saved]
        wanted = wanted | {"tasks": len(arrays), "arrays": digests}
        try:
            before = self.store.read_json(f"{stage}/input.json")
        except (FileNotFoundError, ValueError):
            before = None
        if before != wanted:
            self.store.remove_stage(stage)
            self.store.write_json(f"{stage}/input.json", wanted)

    def finished(self, stage: str) -> set[int]:
        """Return the numbers of the finished tasks of a stage; not those of a process that was asked something else."""
        wanted, known = self.digest_of_input(stage), self._known.setdefault(stage, {})
        found = self.store.finished(stage)
        for index in found:
            if known.get(index) != wanted:
                try:
                    known[index] = self.store.record(stage, index).get("input")
                except (FileNotFoundError, ValueError):
                    known[index] = None
        return {index for index in found if known[index] == wanted}

    def peak_of(self, stage: str, index: int) -> int:
        """Return the peak resident memory of the process of a finished task, in bytes."""
        return int(self.store.record(stage, index).get("peak_rss_mb", 0) * 2**20)

    def digest_of_input(self, stage: str) -> str:
        """Return a digest of what a stage was asked, empty if nothing was."""
        try:
            return digest_of_content(self.store.read_json(f"{stage}/input.json"))
        except FileNotFoundError:
            return ""

    def asked(self, stage: str) -> dict[str, Any]:
        """Return the numbers and names that a stage was asked for. Raise InputError if it has not begun."""
        try:
            return self.store.read_json(f"{stage}/input.json")
        except FileNotFoundError:
            raise InputError(f"{self.store.url}: the stage {stage!r} has not begun") from None

    def asked_array(self, stage: str, part: str, index: int = 0) -> NDArray:
        """Return an array that a stage was asked with."""
        return self.load(f"{stage}-given", index, part)

    def put(self, values: dict[str, NDArray]) -> str:
        """Store arrays (N, ...) by place, which tasks read by :meth:`rows`; return the name of this table."""
        state = xxhash.xxh3_64()
        for part, array in values.items():
            state.update(f"{part}{array.dtype}".encode())
            state.update(np.ascontiguousarray(array).view(np.uint8).data)
        table = f"table-{state.hexdigest()}"
        done = self.store.finished(table)
        for index, shard in enumerate(self.shards):
            if index not in done:
                self.store.save(table, index, {part: array[shard] for part, array in values.items()})
        return table

    def rows(self, stage: str, part: str, places: NDArray[np.integer]) -> NDArray:
        """Return the rows of a stage's array at some places (m, ...), from the shards that hold them."""
        size = self.of(stage)[0].stop
        of = places // size
        order = np.argsort(of, kind="stable")
        bounds = np.flatnonzero(np.diff(of[order], prepend=-1, append=-1))
        out: NDArray | None = None
        for first, stop in pairwise(bounds):
            mine = order[first:stop]
            shard = int(of[mine[0]])
            found = self.load(stage, shard, part)
            if out is None:
                out = np.empty((len(places), *found.shape[1:]), found.dtype)
            out[mine] = found[places[mine] - shard * size]
        if out is None:
            found = self.load(stage, 0, part)
            out = np.empty((0, *found.shape[1:]), found.dtype)
        return out

    def entries(self, stage: str, parts: Sequence[str], places: NDArray[np.integer]) -> list[NDArray]:
        """Return the entries that a stage has at some places, which are increasing: their numbers, and their arrays.

        A task of the stage stores row pointers ``indptr`` of its rows, and the ``parts``.
        """
        size = self.manifest.shard_rows
        found: list[list[NDArray]] = [[] for _ in ("counts", *parts)]
        bounds = np.flatnonzero(np.diff(places // size, prepend=-1, append=-1)).tolist()
        for first, stop in list(pairwise(bounds)) or [(0, 0)]:  # without places, the first shard has the types
            shard = int(places[first]) // size if stop else 0
            indptr = self.load(stage, shard, "indptr")
            rows = places[first:stop] - shard * size
            counts = np.diff(indptr)[rows]
            at = positions(indptr[rows], counts)
            values = [self.load(stage, shard, part)[at] for part in parts]
            for arrays, array in zip(found, (counts, *values), strict=True):
                arrays.append(array)
        return [np.concatenate(arrays) for arrays in found]

    def features(self, places: NDArray[np.integer]) -> Features:
        """Return the features at some places."""
        array, scale = (self.rows("rows", part, places) for part in ("features", "factors"))
        return Features(array, "features", self.manifest.normalise, scale)

    def vectors(self, places: NDArray[np.integer]) -> torch.Tensor:
        """Return the features at some places in the number type of products, as the search reads them."""
        return torch.from_numpy(self.features(places).rows(slice(None))).to(product_dtype())

    def lists(self, places: NDArray[np.integer], columns: int | None = None) -> tuple[NDArray, NDArray[np.float32]]:
        """Return the neighbours (m, k) of some places, as places, and their similarities."""
        stage = self.lists_stage
        ids, sims = (self.rows(stage, part, places) for part in ("ids", "sims"))
        return ids[:, :columns], sims[:, :columns]

    def untied(self, places: NDArray[np.integer]) -> tuple[NDArray, NDArray[np.float32]]:
        """Return :meth:`lists` as the model sees them (:meth:`starfc.graph.strangers.Strangers.without_ties`)."""
        ids, sims = self.lists(places)
        if self.contextual is not None:
            whole = self.strangers(places[:0])
            found = whole.without_ties(KnnGraph(ids, sims))
            ids, sims = found.ids, found.sims
        return ids, sims

    @cached_property
    def lists_stage(self) -> str:
        """The stage that made the lists."""
        return str(self.store.read_json("lists.json")["stage"])

    @cached_property
    def _pairs(self) -> dict[str, Any]:
        return self.store.read_json("strangers.json")

    def strangers(self, places: NDArray[np.integer]) -> Strangers:
        """Return the similarities of strangers, of some places."""
        median, spread = (self.rows("rows", part, places) for part in ("median", "spread"))
        return Strangers(self._pairs["median"], self._pairs["spread"], median, spread, np.empty(0, np.int64))

    def some(self, *places: NDArray[np.integer]) -> Some:
        """Return the rows of all these places, -1 left out, numbered in the order of their names."""
        known = Places.of(self.manifest.n, *places)
        return Some.of(known, lambda some: self.rows("rows", "names", some))
