"""Search approximate kNN graphs: partitions into cells, then sweeps over the lists.

1. A *partition* divides the rows into cells (:mod:`starfc.graph.cells`), and each row is compared with the members of
   its nearest cells. Another partition of another seed has its borders elsewhere.
2. A *sweep* compares each row with the neighbours of its neighbours (:mod:`starfc.graph.sweeps`). It finds what the
   borders of cells have cut.

Each of these phases goes through the rows in chunks of the first partition's order. In each chunk, products are
computed in bfloat16 where this is faster; the similarities of the best candidates are computed again in float32.
After a sweep, the recall is measured (:mod:`starfc.graph.recall`). The search ends when it reaches the target.

Memory: the features in the number type of the products, 40 ids for each row, and one chunk per thread. Lists are on
disk between the phases (:mod:`starfc.graph.partial`), so an interrupted search continues.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.data.dataset import Features
from starfc.graph.cells import Cells, Members, divide, make_cells, nearest_cells, probe_cells
from starfc.graph.device_members import DeviceMembers
from starfc.graph.neighbours import KnnGraph, id_dtype, tidy
from starfc.graph.order import inverse
from starfc.graph.partial import PartialGraph
from starfc.graph.recall import COLUMNS, Judge, Recalls, Sample
from starfc.graph.rerank import rerank
from starfc.graph.structure_kernels import in_degrees
from starfc.graph.sweeps import Steps, sweep
from starfc.runtime import threads
from starfc.runtime.device import uses_torch
from starfc.runtime.products import slices
from starfc.runtime.progress import progress
from starfc.runtime.words import word
from starfc.storage.records import PhaseRecord

log = logging.getLogger("starfc")

_PROBES = (8, 24)  # minimum and maximum number of cells that each row probes, if the search chooses
_IN_CELLS = 0.8, 10  # it chooses enough that this share of the first ten neighbours lies in the probed cells
_PARTITIONS = 2  # partitions before the first sweep, if the search chooses
# Minimum and maximum rows per chunk. Large chunks have several rows for each cell of another partition; a chunk takes
# about 3 KB per row: 156 candidates of 6 bytes, and its lists.
_CHUNKS = (1 << 13, 1 << 18)
_MOST_PARTITIONS, _MOST_SWEEPS = 4, 12
_STALLED = 0.7  # if a sweep leaves more than this share of the missing edges, the next phase is another partition
_IN_FIRST = 10  # the judge needs the number of lists that have a row among their first ten


def rows_per_chunk(n: int) -> int:
    """Return the number of rows that a phase processes at a time in each thread."""
    return min(max(n // 16, _CHUNKS[0]), _CHUNKS[1])


def chooses(params: Mapping[str, int]) -> bool:
    """Return whether a search with these ``knn_params`` chooses its phases, so that it reaches the target."""
    return not set(params) - {"nlist"}


@dataclass(frozen=True)
class Plan:
    """Which phases a search has.

    Attributes
    ----------
    probes : int
        Number of cells that each row probes in each partition.
    partitions, sweeps : int, optional
        Numbers of both; None lets the search choose until the recall is at least ``target``.
    """

    probes: int
    partitions: int | None
    sweeps: int | None
    target: float

    @classmethod
    def of(cls, params: Mapping[str, int], target: float, probes: int) -> Plan:
        """Return the plan that ``knn_params`` sets. If one of the numbers is given, only ``probes`` is chosen."""
        if chooses(params):
            return cls(probes, None, None, target)
        return cls(params.get("nprobe", probes), params.get("partitions", 1), params.get("sweeps", 0), target)

    @property
    def chosen(self) -> bool:
        """Whether the search chooses the numbers of partitions and sweeps."""
        return self.partitions is None

    def after(self, done: Sequence[PhaseRecord]) -> PhaseRecord | None:
        """Return the phase after those that are done; None at the end."""
        cells, sweeps = (sum(phase.kind == kind for phase in done) for kind in ("cells", "sweep"))
        another_partition = PhaseRecord(kind="cells", number=cells, probes=self.probes)
        another_sweep = PhaseRecord(kind="sweep", number=sweeps)
        if self.partitions is not None and self.sweeps is not None:
            if cells < self.partitions:
                return another_partition
            return another_sweep if sweeps < self.sweeps else None
        reached = [Recalls(**phase.recalls).reached if phase.recalls else None for phase in done]
        if cells < _PARTITIONS:
            return another_partition
        if reached[-1] is None:
            return another_sweep
        if reached[-1] >= self.target or sweeps == _MOST_SWEEPS:
            return None
        before = reached[-2] if len(done) > 1 else None
        stalled = before is not None and 1 - reached[-1] > _STALLED * (1 - before)
        if not stalled:
            return another_sweep
        return another_partition if cells < _MOST_PARTITIONS else None


def approximate_search(
    features: Features,
    k: int,
    params: Mapping[str, int],
    seed: int,
    recall: float,
    folder: Path,
    judge: Judge | None = None,
    device: str | torch.device = "cpu",
) -> KnnGraph:
    """Return an approximate kNN graph; the parameters are those of :func:`starfc.graph.knn.build_knn`."""
    n = len(features)
    count = params.get("nlist", max(1, n // k))
    chunks = slices(n, rows_per_chunk(n))
    key = {"fingerprint": features.check.fingerprint, "k": k, "params": dict(params), "seed": seed, "recall": recall}
    key |= {"chunk": chunks[0].stop, "judged": judge is not None}
    partial = PartialGraph(folder, key, n, k, chunks)
    device = torch.device(device)
    first = partial.cells(0, lambda: make_cells(features, count, seed, device))
    order = first.order
    members = DeviceMembers.on(device, features, order) if uses_torch(device) else Members.of(features, order)
    search = _Search(features, k, partial, members, judge, count, seed, device)
    sample = Sample.draw(features, k, np.random.default_rng(seed), judged=judge is not None, device=device)
    plan = Plan.of(params, recall, probes_for(features, first, sample))
    info = run_phases(search, plan, sample, count)
    del search, members
    graph = partial.finish(order)
    return KnnGraph(graph.ids, graph.sims, info)


class Phases(Protocol):
    """A search whose phases can be run: lists of a set, in memory or elsewhere."""

    finished: list[PhaseRecord]

    def probe(self, phase: PhaseRecord) -> None: ...

    def sweep(self, phase: PhaseRecord) -> None: ...

    def measure(self, sample: Sample) -> Recalls:
        """Return the recalls of the lists after the last finished phase."""

    def note(self, recalls: dict[str, Any]) -> None:
        """Store what was measured after the last finished phase."""


def run_phases(search: Phases, plan: Plan, sample: Sample, count: int) -> dict[str, Any]:
    """Run the phases of a plan, and return the ``info`` of the graph; ``count`` is the number of cells."""
    done = search.finished
    while True:
        if done and not done[-1].recalls and (plan.after(done) is None or (plan.chosen and done[-1].kind == "sweep")):
            recalls = search.measure(sample)
            log.info("kNN graph: %s", recalls.text())
            search.note(recalls.as_dict())
        phase = plan.after(done)
        if phase is None:
            break
        if phase.kind == "cells":
            search.probe(phase)
        else:
            search.sweep(phase)
    recalls = Recalls(**done[-1].recalls)
    if plan.chosen and recalls.reached < plan.target:
        log.warning(
            "kNN graph: %s %g was not reached: %s; exact search finds all neighbours",
            word("knn_recall"), plan.target, recalls.text(),
        )  # fmt: skip
    cells, sweeps = (sum(phase.kind == kind for phase in done) for kind in ("cells", "sweep"))
    return {
        "backend": "ivf",
        "params": {"nlist": count, "nprobe": plan.probes, "partitions": cells, "sweeps": sweeps},
        "recall": recalls.reached,
        "recall_rows": recalls.rows,
        "recalls": recalls.as_dict(),
    }


class _Search:
    """The state of a search: the rows in the order of the first partition, and the lists so far."""

    def __init__(
        self,
        features: Features,
        k: int,
        partial: PartialGraph,
        members: Members,
        judge: Judge | None,
        count: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.device = device
        self.features, self.k, self.partial, self.members, self.judge = features, k, partial, members, judge
        self.count, self.seed, self.finished, self.note = count, seed, partial.finished, partial.note
        self.n, self.keep = len(features), k + k // 8 + 2
        self.places = inverse(members.names)
        # The search is approximate, so no error bound is needed; k / 8 more candidates keep the recall high.
        self.error = np.zeros(self.n, np.float32)

    def probe(self, phase: PhaseRecord) -> None:
        cells = self._partition(phase.number)
        probes = min(phase.probes, cells.centroids.searched)
        cells = replace(cells, centroids=cells.centroids.to(self.device))

        def offer(chunk: slice, known: NDArray[np.integer] | None, pools: Any) -> None:
            probed = nearest_cells(self.members.at(chunk), cells, probes)
            probe_cells(self.members, cells, probed, chunk, known, pools)

        self._each(phase, offer)

    def _partition(self, number: int) -> Cells:
        """Return a partition of the places. The first one is their order."""
        if number > 0:
            seed = self.seed + number
            return self.partial.cells(number, lambda: divide(self.members.at, self.n, self.count, seed, self.device))
        cells = self.partial.cells(0, lambda: make_cells(self.features, self.count, self.seed, self.device))
        return Cells(cells.centroids, np.arange(self.n, dtype=cells.order.dtype), cells.starts)

    def sweep(self, phase: PhaseRecord) -> None:
        steps = Steps.of(self.partial.lists().ids)
        self._each(phase, lambda chunk, known, pools: sweep(self.members, steps, chunk, known, pools))

    def measure(self, sample: Sample) -> Recalls:
        """Return the recalls of the lists after the last finished phase."""
        lists, names = self.partial.lists(), self.members.names

        def lists_of(rows: NDArray[np.int64]) -> KnnGraph:
            found, sims = lists.ids[self.places[rows]], lists.sims[self.places[rows]]
            return KnnGraph(np.where(found >= 0, names[found], -1), sims)

        def in_lists_of(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            counts = np.zeros((2, self.n), np.float32)
            for chunk in self.partial.chunks:
                in_degrees(np.ascontiguousarray(lists.ids[chunk, :COLUMNS]), _IN_FIRST, counts)
            return counts[:, self.places[rows]]

        return sample.measure(self.features, lists_of, in_lists_of, self.judge)

    def _each(self, phase: PhaseRecord, offer: Any) -> None:
        """Run a phase over all chunks that are not finished: offer candidates, and keep each row's best k."""
        partial, scaled = self.partial, self.features.scaled
        partial.start(phase)
        what = f"kNN graph: {'partition' if phase.kind == 'cells' else 'sweep'} {phase.number + 1}"
        with progress(what, total=self.n, done=partial.rows_done, unit="row") as bar:

            def work(chunk: slice) -> None:
                rows, lists = self.members.names[chunk], partial.before(chunk)
                pools = self.members.pools(len(rows), lists, max(1, self.k - 1), self.keep)
                offer(chunk, None if lists is None else lists.ids, pools)
                shape = (len(rows), self.k)
                sims, ids = np.empty(shape, np.float32), np.empty(shape, id_dtype(self.n))
                rerank(pools.on_host(), scaled, rows, self.members.names, self.error[chunk], sims, ids)
                found = tidy(ids, sims, rows, self.n)
                partial.write(chunk, np.where(found.ids >= 0, self.places[found.ids], -1), found.sims)
                bar.update(len(rows))

            threads.each(work, partial.missing())
        partial.end()


def probes_for(features: Features, cells: Cells, sample: Sample) -> int:
    """Return the number of probes with which 80 % of the ten nearest neighbours of sampled rows are in probed cells."""
    least, most = _PROBES
    share, nearest = _IN_CELLS
    own = torch.from_numpy(features.rows(sample.rows[sample.sampled]))
    probed = cells.centroids.nearest(own, min(most, cells.centroids.searched))
    cell_of = np.empty(len(features), np.int32)
    cell_of[cells.order] = np.repeat(np.arange(len(cells), dtype=np.int32), np.diff(cells.starts))
    near = sample.exact.ids[sample.sampled, :nearest]
    inside = (cell_of[near][:, :, None] == probed[:, None, :]) & (near >= 0)[:, :, None]
    found = np.cumsum(inside.sum(axis=(0, 1))) / max(np.count_nonzero(near >= 0), 1)
    return min(max(least, int(np.count_nonzero(found < share)) + 1), len(probed[0]))
