"""The scores of all edges of a set, computed by tasks: what the process of a command does for each kind of model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from starfc.clustering.adaptation import Adapted
from starfc.clustering.parsing import CandidateSet
from starfc.data.dataset import Features
from starfc.graph.edges import EdgeList, Edges, undirected
from starfc.graph.strangers import Strangers
from starfc.graph.structure import CandidateEdges
from starfc.models.checkpoint import Model
from starfc.models.contextual import Context, ContextualModel, first_context, sampled_nodes, second_context
from starfc.models.judge import context_change
from starfc.models.structural import EdgeScorer, StructuralModel
from starfc.runtime import threads
from starfc.runtime.products import slices
from starfc.scoring.structural import APPROXIMATE, MASS_UNIT, Halves, Scoring
from starfc.shards.edge_set import ShardEdges
from starfc.shards.edges import View
from starfc.shards.engine import Engine, run_stage
from starfc.shards.graph import ShardGraph
from starfc.shards.scores import Around, arrays_of

R = TypeVar("R")

_NODES = 1 << 12  # nodes whose edges this process scores at once


class ShardProjections:
    """Scores the edges of a model that compares embeddings; the edges are returned as a list in this process.

    Parameters
    ----------
    engine : Engine
    graph : ShardGraph
    candidates : CandidateSet
    th_sim : float
        Entries of the kNN graph below this similarity are left out of the affinity graph.
    """

    def __init__(self, engine: Engine, graph: ShardGraph, candidates: CandidateSet, th_sim: float) -> None:
        self.order, self._engine, self._graph = graph.order, engine, graph
        self._undirected, self._th_sim = candidates.undirected, th_sim

    def parse(self, tau1: float) -> tuple[EdgeList, int, float]:
        """Return the edges with p > τ1, and the number of candidates (:class:`starfc.clustering.parsing.Parser`)."""
        run, given = self._graph.run, {"th_sim": self._th_sim}
        run.ask("project", given)
        run.ask("parse", given | {"tau1": tau1, "undirected": self._undirected})
        for stage in ("near", "project", "parse"):
            run_stage(self._engine, run, stage)
        blocks, candidates = [], 0
        for index, shard in enumerate(run.shards):
            counts, cols, scores, count = (
                run.load("parse", index, part) for part in ("counts", "cols", "scores", "candidates")
            )
            blocks.append((self.order[shard], counts, self.order[cols], scores))
            candidates += int(count[0])
        edges = EdgeList.from_blocks(blocks, run.manifest.n, self._graph.ids.dtype)
        if not self._undirected:
            return edges, candidates, 0.0
        return undirected(edges), candidates // 2, 0.0


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
