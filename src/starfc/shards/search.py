"""The stages of the neighbour search on shards.

Exact search (:func:`exact`) compares the rows of a shard with all rows. An approximate search has the phases of
:mod:`starfc.graph.approximate`: a task processes one chunk of places. For a sweep, two short stages first collect the
places that have each place among their first neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.graph.cells import Cells, Centroids, Members, nearest_cells, probe_cells
from starfc.graph.exact import SMALL, exact_search, nearest_of_rows
from starfc.graph.neighbours import KnnGraph, id_dtype, tidy
from starfc.graph.pools import Pools
from starfc.graph.rerank import rerank
from starfc.graph.sweeps import NEAR, Steps, sweep
from starfc.runtime import threads
from starfc.runtime.products import slices
from starfc.shards.buckets import bucketed, received
from starfc.shards.places import Places, Some
from starfc.shards.run import ShardRun

_RERANK = 1 << 12


def exact(run: ShardRun, stage: str, index: int) -> dict[str, NDArray]:
    """Return the exact lists of a shard."""
    shard, n = run.shards[index], run.manifest.n
    every = run.some(np.arange(n, dtype=id_dtype(n)))
    features = run.features(every.places)
    own = np.sort(every.numbers(np.arange(shard.start, shard.stop)))
    if n < SMALL:
        every_sims, every_ids = exact_search(features, run.manifest.k)
        sims, ids = every_sims[own], every_ids[own]
    else:
        sims, ids = nearest_of_rows(features, own.astype(np.int64), run.manifest.k)
    found = tidy(ids, sims, own, n)
    at = every.places[own] - shard.start
    lists, values = np.empty_like(found.ids), np.empty_like(found.sims)
    lists[at], values[at] = _places(every, found.ids), found.sims
    return {"ids": lists, "sims": values}


def save_cells(run: ShardRun, number: int, cells: Cells) -> None:
    """Store a partition for the tasks that probe it."""
    known = cells.centroids
    run.store.save(
        f"partition-{number}",
        0,
        {
            "order": cells.order, "starts": cells.starts, "centroids": known.vectors.numpy(),
            "coarse": known.coarse.numpy(), "groups": known.starts, "near": known.near,
        },
    )  # fmt: skip


def load_cells(run: ShardRun, number: int) -> Cells:
    """Return a stored partition; its order is memory-mapped."""
    order, starts, vectors, coarse, groups, near = (
        run.load(f"partition-{number}", 0, part)
        for part in ("order", "starts", "centroids", "coarse", "groups", "near")
    )
    centroids = Centroids(torch.from_numpy(np.array(vectors)), torch.from_numpy(np.array(coarse)), groups, near)
    return Cells(centroids, order, starts)


def probe(run: ShardRun, stage: str, index: int) -> dict[str, NDArray]:
    """Probe the nearest cells of a partition for a chunk (:func:`starfc.graph.cells.probe_cells`)."""
    asked, chunk = run.asked(stage), run.chunks[index]
    cells = load_cells(run, asked["partition"])
    own = np.arange(chunk.start, chunk.stop)
    before = _before(run, asked["before"], own)
    probed = nearest_cells(run.vectors(own), cells, min(asked["probes"], cells.centroids.searched))
    of_places = asked["partition"] > 0  # the first partition is the order of the places
    used = np.unique(probed)
    members = [np.arange(cells.starts[c], cells.starts[c + 1]) for c in used]
    if of_places:
        members = [np.asarray(cells.order[m[0] : m[-1] + 1]) if len(m) else m for m in members]
    local = _Local(run, own, before, *members)
    sizes = np.zeros(len(cells), np.int64)
    sizes[used] = [len(m) for m in members]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    near = Cells(cells.centroids, local.numbers(np.concatenate(members)), starts)

    def offer(part: slice, known: NDArray[np.integer] | None, pools: Pools) -> None:
        probe_cells(local.members, near, probed, part, known, pools)

    return local.improved(run, before, offer)


def pairs(run: ShardRun, stage: str, index: int) -> dict[str, NDArray]:
    """Return which places the lists of a chunk have among their first neighbours, by the chunk of these places."""
    before, chunk = run.asked(stage)["before"], run.chunks[index]
    near = run.load(before, index, "ids")[:, :NEAR]
    column, row = np.nonzero(near.T >= 0)  # by column, then by place
    targets = near[row, column]
    parts = {"column": column.astype(np.int8), "source": (chunk.start + row).astype(near.dtype)}
    return bucketed(targets, parts, run.chunks[0].stop, len(run.chunks))


def back(run: ShardRun, stage: str, index: int) -> dict[str, NDArray]:
    """Return the first places that have each place of a chunk among their first neighbours, (m, 10)."""
    chunk = run.chunks[index]
    target, column, source = received(run, run.asked(stage)["pairs"], index, ("column", "source"))
    order = np.lexsort((source, column, target))
    target, source = target[order] - chunk.start, source[order]
    counts = np.bincount(target, minlength=chunk.stop - chunk.start)
    rank = np.arange(len(target)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = rank < NEAR
    out = np.full((chunk.stop - chunk.start, min(NEAR, run.manifest.k)), -1, source.dtype)
    out[target[first], rank[first]] = source[first]
    return {"array": out}


def swept(run: ShardRun, stage: str, index: int) -> dict[str, NDArray]:
    """Compare a chunk with the places that two steps reach (:func:`starfc.graph.sweeps.sweep`)."""
    asked, chunk = run.asked(stage), run.chunks[index]
    own = np.arange(chunk.start, chunk.stop)
    before = _before(run, asked["before"], own)
    assert before is not None

    def steps(places: NDArray[np.integer]) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        return run.rows(asked["before"], "ids", places)[:, :NEAR], run.rows(asked["back"], "array", places)

    once = Places.of(run.manifest.n, own, *steps(own)).places
    near, there = steps(once)
    local = _Local(run, own, before, once, near, there)
    every = [np.full((len(local.places), near.shape[1]), -1, id_dtype(1)) for _ in range(2)]
    for whole, part in zip(every, (near, there), strict=True):
        whole[local.numbers(once)] = local.numbers(part)

    def offer(part: slice, known: NDArray[np.integer] | None, pools: Pools) -> None:
        assert known is not None
        sweep(local.members, Steps(*every), part, known, pools)

    return local.improved(run, before, offer)


def _before(run: ShardRun, stage: str | None, own: NDArray[np.integer]) -> KnnGraph | None:
    if stage is None:
        return None
    return KnnGraph(run.rows(stage, "ids", own), run.rows(stage, "sims", own))


def _places(rows: Some, numbers: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the places of rows that are given by their numbers; -1 stays -1."""
    return np.where(numbers >= 0, rows.places[numbers], -1)


class _Local:
    """The rows that a chunk is compared with, numbered by place, as the search numbers all rows."""

    def __init__(
        self, run: ShardRun, own: NDArray[np.integer], before: KnnGraph | None, *others: NDArray[np.integer]
    ) -> None:
        known = () if before is None else (before.ids,)
        rows = Places.of(run.manifest.n, own, *known, *others)
        self.places, self.numbers = rows.places, rows.numbers
        self.named = run.some(self.places)  # the same rows, numbered by name
        self.features = run.features(self.named.places)
        self.members = Members(run.vectors(self.places), self.named.numbers(self.places))
        start = int(self.numbers(own[:1])[0])
        self.own = slice(start, start + len(own))

    def improved(self, run: ShardRun, before: KnnGraph | None, offer: Any) -> dict[str, NDArray]:
        """Return the lists of the chunk after ``offer`` has offered candidates to its pools."""
        k, n, dtype = run.manifest.k, self.own.stop - self.own.start, self.members.vectors.dtype
        keep = k + k // 8 + 2
        known = None
        if before is None:
            pools = Pools.empty(n, keep, dtype, id_dtype(1))
        else:
            known = self.numbers(before.ids)
            pools = Pools.of_lists(KnnGraph(known, before.sims), max(1, k - 1), keep, dtype)
        offer(self.own, known, pools)
        sims, ids = np.empty((n, k), np.float32), np.empty((n, k), id_dtype(1))
        rows, error = self.members.names[self.own], np.zeros(n, np.float32)
        scaled = self.features.scaled

        def finish(part: slice) -> None:
            rerank(pools[part], scaled, rows[part], self.members.names, error[part], sims[part], ids[part])

        threads.each(finish, slices(n, _RERANK))
        found = tidy(ids, sims, rows, len(self.places))
        return {"ids": _places(self.named, found.ids).astype(id_dtype(run.manifest.n)), "sims": found.sims}
