"""Cluster on shards: search and scoring are tasks of an engine; what follows runs in this process.

    features -> cells, shards of features -> lists -> smoothed features -> first round -> second round -> edges

The stages compute what :mod:`starfc.graph` and :mod:`starfc.scoring` compute, row by row and with the same code, so
lists, edges and labels are equal byte for byte. :class:`Shards` takes the place of both in
:func:`starfc.clustering.arrays.cluster_features`: its graph holds no lists but reads them from the store, and its
scoring runs as tasks, again for each round of adaptation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.clustering.adaptation import Adapted
from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.graph.approximate import Plan, probes_for, rows_per_chunk, run_phases
from starfc.graph.cells import Cells, divide, make_cells
from starfc.graph.edges import Edges
from starfc.graph.knn import is_small
from starfc.graph.neighbours import KnnGraph, id_dtype
from starfc.graph.opening import Search
from starfc.graph.order import inverse
from starfc.graph.recall import COLUMNS, Recalls, Sample
from starfc.graph.strangers import Strangers
from starfc.graph.structure import CandidateEdges
from starfc.graph.structure_kernels import in_degrees
from starfc.models.checkpoint import Model
from starfc.models.contextual import Context, ContextualModel, first_context, sampled_nodes, second_context
from starfc.models.judge import context_change
from starfc.models.kinds import ModelKind
from starfc.models.structural import EdgeScorer, StructuralModel
from starfc.runtime import threads
from starfc.runtime.products import product_dtype, slices
from starfc.runtime.stages import Stages
from starfc.runtime.words import word
from starfc.scoring.structural import APPROXIMATE, MASS_UNIT, Halves, Scoring
from starfc.shards.edge_set import ShardEdges
from starfc.shards.edges import View
from starfc.shards.engine import Engine, mend, run_stage
from starfc.shards.run import SHARD_ROWS, Manifest, ShardRun, digest_of, processor
from starfc.shards.scores import NEAR, Around, arrays_of
from starfc.shards.search import load_cells, save_cells
from starfc.shards.store import DamagedError, Store
from starfc.storage.records import PhaseRecord

R = TypeVar("R")

log = logging.getLogger("starfc")

_NODES = 1 << 12  # nodes whose edges this process scores at once


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


def require_structural(kind: ModelKind) -> None:
    """Raise InputError unless models of this kind score edges by their structure; others do not run on shards."""
    if not kind.structural:
        raise InputError(
            f"{word('engine')}: works with models that score edges by their structure, such as the packaged one; "
            f"found a model of type {kind.name!r}"
        )


@dataclass(frozen=True)
class Shards:
    """How a set is clustered on shards.

    Attributes
    ----------
    store : Store
        Where arrays between the stages are kept.
    engine : Engine
        Where tasks run.
    model : Model
        A structural model that was loaded from a folder.
    search : Search
        How the kNN graph is built.
    shard_rows : int
        Rows of each shard.
    """

    store: Store
    engine: Engine
    model: Model
    search: Search
    shard_rows: int = SHARD_ROWS

    def __post_init__(self) -> None:
        require_structural(self.model.kind)
        if self.model.folder is None:
            raise InputError(f"{word('engine')}: needs a model that was loaded from a folder; found one in memory")

    def graph(self, features: Features, k: int, as_asked: bool = True, stages: Stages | None = None) -> KnnGraph:
        """Build the kNN graph of features, or continue to build it; the parameters are those of ``MakeGraph``."""
        n, search = len(features), self.search
        approximate = search.method == "ivf" and not is_small(features, search.params)
        options = {"method": search.method, "params": dict(search.params), "seed": search.seed, "recall": search.recall}
        manifest = Manifest(
            fingerprint=features.check.fingerprint, n=n, dim=features.dim, k=k,
            normalise=features.normalise and features.direct, dtype=features.array.dtype.name,
            shard_rows=self.shard_rows, chunk_rows=min(n, rows_per_chunk(n)),
            model=str(Path(str(self.model.folder)).resolve()), weights=digest_of(self.model), search=options,
            processor=processor(), products=str(product_dtype()).removeprefix("torch."),
        )  # fmt: skip
        run = self._begun(manifest)
        run.mend = lambda error: mend(self.engine, run, error)
        count = search.params.get("nlist", max(1, n // k)) if approximate else max(1, n // k)
        first = self._partition(run, 0, lambda: make_cells(features, count, search.seed))
        self._write_rows(run, features, first.order)
        if not approximate:
            run_stage(self.engine, run, "exact")
            self.store.write_json("lists.json", {"stage": "exact"})
            return ShardGraph(run, first.order, {"backend": "exact", "params": {}, "recall": 1.0, "recall_rows": 0})
        sample = Sample.draw(features, k, np.random.default_rng(search.seed), judged=search.judge is not None)
        plan = Plan.of(search.params, search.recall, probes_for(features, first, sample))
        phases = _Phases(self, run, features, first.order, count)
        info = run_phases(phases, plan, sample, count)
        self.store.write_json("lists.json", {"stage": phases.last})
        return ShardGraph(run, first.order, info)

    def scoring(self, features: Features, graph: KnnGraph) -> Scoring:
        """Score the edges of :meth:`graph` up to the last round (``MakeScoring``)."""
        assert isinstance(graph, ShardGraph)
        return ShardScoring(self.engine, self.model, features, graph)

    def _begun(self, manifest: Manifest) -> ShardRun:
        """Return the run of the store; begin it if there is none."""
        try:
            found = self.store.read_json("manifest.json")
        except FileNotFoundError:
            if not self.store.empty:
                raise InputError(
                    f"{self.store.url}: a new or empty folder needed for the shards; found other files there; name "
                    f"another {word('store')}"
                ) from None
            self.store.write_json("manifest.json", asdict(manifest))
            return ShardRun(self.store, manifest)
        if found.get("products") in ("float32", "bfloat16"):  # as measured then; now another one may be faster
            manifest = replace(manifest, products=found["products"])
        wanted = asdict(manifest)
        other = sorted(name for name in wanted if found.get(name) != wanted[name])
        if other:
            raise InputError(
                f"{self.store.url}: holds a run with other {', '.join(other)} ({found.get(other[0])!r} instead of "
                f"{wanted[other[0]]!r}); name another {word('store')}, or remove it"
            )
        log.info("%s: an earlier run of the same data continues", self.store.url)
        return ShardRun(self.store, manifest)

    def _partition(self, run: ShardRun, number: int, make: Any) -> Cells:
        if not run.store.finished(f"partition-{number}"):
            save_cells(run, number, make())
        return load_cells(run, number)

    def _write_rows(self, run: ShardRun, features: Features, order: NDArray[np.integer]) -> None:
        """Store the features by place, normalised if kernels read them so, with what belongs to each row."""
        done = run.store.finished("rows")
        factors = features.factors if features.direct else np.ones(len(order), np.float32)
        missing = [index for index in range(len(run.shards)) if index not in done]
        if not missing and self._strangers_stored(run):
            return
        median = spread = np.zeros(len(order), np.float32)
        if isinstance(self.model, ContextualModel):
            known = Strangers.of(features)
            run.store.write_json("strangers.json", {"median": known.median, "spread": known.spread})
            run.store.save("cohort", 0, {"cohort": known.cohort})
            median, spread = known.node_median, known.node_spread

        def work(index: int) -> None:
            names = order[run.shards[index]]
            rows = np.asarray(features.array[names]) if features.direct else features.rows(names)
            arrays = {"features": rows, "factors": factors[names], "names": names}
            run.store.save("rows", index, arrays | {"median": median[names], "spread": spread[names]})

        threads.each(work, missing)

    def _strangers_stored(self, run: ShardRun) -> bool:
        """Return whether the similarities of strangers of the whole set are stored and undamaged."""
        if not isinstance(self.model, ContextualModel):
            return True
        try:
            run.store.read_json("strangers.json")
            run.store.load("cohort", 0, "cohort")
        except (FileNotFoundError, ValueError, DamagedError):
            return False
        return True


class _Phases:
    """The phases of an approximate search, as stages."""

    def __init__(
        self, shards: Shards, run: ShardRun, features: Features, order: NDArray[np.integer], count: int
    ) -> None:
        self._shards, self._run, self._features, self._order, self._count = shards, run, features, order, count
        self.finished: list[PhaseRecord] = []
        self.last: str | None = None

    def probe(self, phase: PhaseRecord) -> None:
        run, number = self._run, phase.number
        if number > 0:
            features, order = self._features, self._order

            def vectors(places: slice | NDArray[np.integer]) -> Tensor:
                return torch.from_numpy(features.rows(order[places])).to(product_dtype())

            seed = self._shards.search.seed + number
            self._shards._partition(run, number, lambda: divide(vectors, run.manifest.n, self._count, seed))
        stage = f"cells-{number}"
        run.ask(stage, {"before": self.last, "partition": number, "probes": phase.probes})
        self._done(phase, stage)

    def sweep(self, phase: PhaseRecord) -> None:
        run, number = self._run, len(self.finished)
        run.ask(f"pairs-{number}", {"before": self.last})
        run_stage(self._shards.engine, run, f"pairs-{number}")
        run.ask(f"back-{number}", {"pairs": f"pairs-{number}"})
        run_stage(self._shards.engine, run, f"back-{number}")
        stage = f"sweep-{phase.number}"
        run.ask(stage, {"before": self.last, "back": f"back-{number}"})
        self._done(phase, stage)

    def _done(self, phase: PhaseRecord, stage: str) -> None:
        run_stage(self._shards.engine, self._run, stage)
        self.finished.append(phase)
        self.last = stage

    def measure(self, sample: Sample) -> Recalls:
        """Return the recalls of the lists after the last phase, measured once."""
        name = f"{self.last}/recalls.json"
        try:
            return Recalls(**self._run.store.read_json(name))
        except (FileNotFoundError, ValueError, TypeError):
            pass
        assert self.last is not None
        self._run.store.write_json("lists.json", {"stage": self.last})
        run = ShardRun(self._run.store, self._run.manifest)  # another object: the stage of its lists may still change
        run.mend = self._run.mend
        graph = ShardGraph(run, self._order, {})
        counts = np.zeros((2, run.manifest.n), np.float32)
        for index in range(len(run.chunks)):
            in_degrees(np.ascontiguousarray(run.load(self.last, index, "ids")[:, :COLUMNS]), NEAR, counts)
        recalls = sample.measure(
            self._features,
            lambda rows: KnnGraph(graph.ids[rows], graph.sims[rows]),
            lambda rows: counts[:, graph.places[rows]],
            self._shards.search.judge,
        )
        self._run.store.write_json(name, recalls.as_dict())
        return recalls

    def note(self, recalls: dict[str, Any]) -> None:
        self.finished[-1] = self.finished[-1].model_copy(update={"recalls": recalls})


class ShardScoring(Scoring):
    """A :class:`~starfc.scoring.structural.Scoring` whose blocks of nodes are the tasks of stages."""

    graph: ShardGraph

    def __init__(self, engine: Engine, model: Model, features: Features, graph: ShardGraph) -> None:
        assert isinstance(model, StructuralModel)
        self.graph, self.order, self._engine, self.run = graph, graph.order, engine, graph.run
        self.temperature = np.float32(float(model.temperature))
        self.context: Context | None = None
        self._model = model
        run, store, n = self.run, self.run.store, graph.num_nodes
        run_stage(engine, run, "near")
        widths = [int(run.load("near", index, "width")[0]) for index in range(len(run.shards))]
        store.write_json("width.json", {"width": max(1, *widths)})
        run_stage(engine, run, "smooth")
        self._codes: str | None = None
        if not isinstance(model, ContextualModel):
            if model.second is not None:
                self._first_round_of(model.first)
            self.scorer = model.first if model.second is None else model.second
            return
        strangers = self._strangers()
        sample = self._of_some(sampled_nodes(n))
        first = model.first.neutral
        if len(sample):
            first = first_context(sample, n, features.dim, strangers)
            if graph.info.get("backend") in APPROXIMATE:
                first = first + context_change(model, features, graph, strangers, self._in_lists)
        self._first_round_of(model.first.of(first))
        sample = self._of_some(sampled_nodes(n))
        second = second_context(first, sample) if len(sample) else model.second.neutral
        self.context = Context(strangers, n, first, second)
        self.scorer = model.second.of(second)

    def pairs(self, nodes: NDArray[np.integer]) -> CandidateEdges:
        raise NotImplementedError("a block of nodes has its own numbers here; see edges_of")

    def in_blocks(self, work: Callable[[slice], R], n: int) -> list[R]:
        return threads.results(work, slices(n, _NODES))  # large blocks: what lies around several of them is read again

    def edges_of(
        self, nodes: NDArray[np.integer]
    ) -> tuple[NDArray[np.float32], NDArray[np.integer], NDArray[np.integer]]:
        around = Around.of(self.run, self.graph.places[nodes].astype(np.int64), self._codes)
        structure, names = around.structure, around.rows.names
        if around.before is None:
            pairs = structure.first_round(around.own)
        else:
            pairs = structure.second_round(around.own, around.before)
        ends = structure.graph.ids[pairs.rows, pairs.slots]
        return pairs.features, names[pairs.rows], names[ends]

    def parse(self, tau1: float, halves: Halves | None = None) -> tuple[Edges, int, float]:
        run, stage = self.run, self.run.next_of("second")
        assert halves is None or isinstance(halves, Adapted)
        arrays = arrays_of([self.scorer]) if halves is None else arrays_of(halves.scorers, halves.half)
        run.ask(stage, {"codes": self._codes, "tau1": tau1}, arrays)
        run_stage(self._engine, run, stage)
        sums = np.sum([run.load(stage, index, "sums").astype(object) for index in range(len(run.shards))], axis=0)
        both = run.next_of("edges")
        run.ask(both, {"scored": stage})
        run_stage(self._engine, run, both)
        edges = ShardEdges(run, self._engine, self.order, self.graph.places, View(both))
        return edges, int(sums[0]), int(sums[1]) / MASS_UNIT

    def release(self) -> None:
        """Nothing is held."""

    @property
    def bytes_again(self) -> int:
        """The memory that another round will need in this process, in bytes."""
        return 100 * self.graph.num_nodes

    @property
    def codes(self) -> NDArray[np.int8] | None:
        if self._codes is None:
            return None
        return self.run.rows(self._codes, "codes", self.graph.places.astype(np.int64))

    def _first_round_of(self, scorer: EdgeScorer) -> None:
        """Run the first round, and pass its logits to both ends of each edge."""
        self.run.ask("first", {}, arrays_of([scorer]))
        run_stage(self._engine, self.run, "first")
        self.run.ask("codes", {"first": "first"})
        run_stage(self._engine, self.run, "codes")
        self._codes = "codes"

    def _of_some(self, nodes: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.edges_of(nodes)[0]

    def _strangers(self) -> Strangers:
        run = self.run
        known = run.strangers(self.graph.places.astype(np.int64))
        return Strangers(
            known.median, known.spread, known.node_median, known.node_spread, run.load("cohort", 0, "cohort")
        )

    def _in_lists(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        return self.run.rows("smooth", "in_lists", self.graph.places[rows].astype(np.int64)).T
