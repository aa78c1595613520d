"""Cluster on shards: search and scoring are tasks of an engine; what follows runs in this process.

    features -> cells, shards of features -> lists -> smoothed features -> first round -> second round -> edges
                                             lists -> projections -> edges, with a published model

The stages compute what :mod:`starfc.graph` and :mod:`starfc.scoring` compute, row by row and with the same code, so
lists, edges and labels are equal byte for byte. :class:`Shards` takes the place of both in
:func:`starfc.clustering.arrays.cluster_features`: its graph holds no lists but reads them from the store, and its
scoring runs as tasks, again for each round of adaptation.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.clustering.parsing import CandidateSet, Parser
from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.graph.approximate import Plan, probes_for, rows_per_chunk, run_phases
from starfc.graph.cells import Cells, divide, make_cells
from starfc.graph.knn import is_small
from starfc.graph.neighbours import KnnGraph
from starfc.graph.opening import Search
from starfc.graph.recall import COLUMNS, Recalls, Sample
from starfc.graph.strangers import Strangers
from starfc.graph.structure_kernels import in_degrees
from starfc.models.checkpoint import Model, weights_digest
from starfc.models.contextual import ContextualModel
from starfc.models.kinds import KINDS, ModelKind
from starfc.runtime import threads
from starfc.runtime.products import product_dtype
from starfc.runtime.stages import Stages
from starfc.runtime.words import word
from starfc.shards.engine import Engine, mend, run_stage
from starfc.shards.graph import ShardGraph
from starfc.shards.run import SHARD_ROWS, Manifest, ShardRun, processor
from starfc.shards.scores import NEAR
from starfc.shards.scoring import ShardProjections, ShardScoring
from starfc.shards.search import load_cells, save_cells
from starfc.shards.store import DamagedError, Store
from starfc.storage.records import PhaseRecord

log = logging.getLogger("starfc")


def require_kind(kind: ModelKind) -> None:
    """Raise InputError unless models of this kind run on shards."""
    if not kind.on_shards:
        known = ", ".join(sorted(other.name for other in KINDS.values() if other.on_shards))
        raise InputError(
            f"{word('engine')}: works with models of type {known}; found a model of type {kind.name!r}, whose choice "
            f"of scales needs all rows in one process; leave {word('engine')} out"
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
        A model that was loaded from a folder.
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
        require_kind(self.model.kind)
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
            model=str(Path(str(self.model.folder)).resolve()), weights=weights_digest(self.model), search=options,
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

    def parser(self, features: Features, graph: KnnGraph, candidates: CandidateSet, th_sim: float) -> Parser:
        """Return what scores the edges of :meth:`graph` (``MakeParser``)."""
        assert isinstance(graph, ShardGraph)
        if self.model.kind.structural:
            return ShardScoring(self.engine, self.model, features, graph)
        return ShardProjections(self.engine, graph, candidates, th_sim)

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
