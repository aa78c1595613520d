"""The stages behind the scores, on shards: both directions of the edges, spanning forests, and sums over edges.

======= ================================================================================================================
edges   the edges at each row of a shard, in both directions, sorted by the name of the other end
forest  a maximum spanning forest of the edges whose lower end is in a shard, and their number
within  for each clustering, sum and number of the edges of a row inside its cluster, and the sum of the others
======= ================================================================================================================

The components of the edges with p > τ are those of the edges with p > τ of all forests together, at any τ: an edge that
a forest lacks closes a circle of edges with at least its p.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starfc.clustering.samples import remains
from starfc.graph.edges import EdgeList, positions, row_pointers
from starfc.graph.neighbours import id_dtype
from starfc.runtime.union_find_kernels import spanning
from starfc.shards.buckets import received
from starfc.shards.places import Some
from starfc.shards.run import ShardRun


@dataclass(frozen=True)
class View:
    """Some of the edges of a stage.

    Attributes
    ----------
    stage : str
        The stage that stored the edges.
    above : float
        Only edges with p > ``above`` count.
    apart : str, optional
        Table of ``former``, ``members`` and ``small``, if clusters were taken apart: only the edges count that remain
        (:func:`starfc.clustering.samples.remains`).
    """

    stage: str
    above: float = 0.0
    apart: str | None = None

    def asked(self) -> dict[str, Any]:
        """Return this view as what a stage is asked (:meth:`of`)."""
        return {"view": asdict(self)}

    @classmethod
    def of(cls, run: ShardRun, stage: str) -> View:
        """Return the view that a stage was asked for."""
        return cls(**run.asked(stage)["view"])

    def around(self, run: ShardRun, places: NDArray[np.integer]) -> tuple[Some, EdgeList]:
        """Return the edges at some places, which are increasing, and the rows at both ends.

        The nodes of the list are these rows, by the order of their names. Rows at other places have no entries.
        """
        counts, cols, scores = run.entries(self.stage, ("cols", "scores"), places)
        rows = run.some(places, cols)
        return rows, self._chosen(run, rows, _listed(rows, places, counts, rows.numbers(cols), scores, symmetric=False))

    def among(self, run: ShardRun, places: NDArray[np.integer]) -> tuple[Some, EdgeList]:
        """Return the edges between the rows at some places, which are increasing, in both directions."""
        counts, cols, scores = run.entries(self.stage, ("cols", "scores"), places)
        rows = run.some(places)
        ends = rows.numbers(cols)
        held = ends >= 0
        counts = np.bincount(np.repeat(np.arange(len(places)), counts)[held], minlength=len(places))
        return rows, self._chosen(run, rows, _listed(rows, places, counts, ends[held], scores[held], symmetric=True))

    def _chosen(self, run: ShardRun, rows: Some, edges: EdgeList) -> EdgeList:
        edges = edges.above(self.above)
        if self.apart is None:
            return edges
        former, members, small = (run.rows(self.apart, part, rows.places) for part in ("former", "members", "small"))
        return edges.select(remains(edges, former, members, small))


def _listed(
    rows: Some,
    places: NDArray[np.integer],
    counts: NDArray[np.int64],
    ends: NDArray[np.integer],
    scores: NDArray[np.float32],
    *,
    symmetric: bool,
) -> EdgeList:
    """Return entries, which are in the order of ``places``, as an edge list of ``rows``, in the order of names."""
    number = rows.numbers(places)
    every = np.zeros(len(rows), np.int64)
    every[number] = counts
    indptr, order = row_pointers(every), np.argsort(number)
    at = positions((np.cumsum(counts) - counts)[order], counts[order])
    return EdgeList(indptr, ends[at], scores[at], symmetric)


def edges(run: ShardRun, stage: str, index: int) -> dict[str, NDArray]:
    """Return the edges at each row of a shard: row pointers, places of the other ends in the order of names, and p."""
    scored, shard = run.asked(stage)["scored"], run.shards[index]
    target, source, score = (run.load(scored, index, part) for part in ("target", "source", "score"))
    from_others = received(run, scored, index, ("source", "score"))
    rows = np.concatenate([source, from_others[0]]).astype(np.int64) - shard.start
    cols = np.concatenate([target, from_others[1]])
    ends = run.some(cols)
    number = ends.numbers(cols)
    order = np.argsort(rows * len(ends) + number)
    counts = np.bincount(rows, minlength=shard.stop - shard.start)
    scores = np.concatenate([score, from_others[2]])
    return {"indptr": row_pointers(counts), "cols": cols[order], "scores": scores[order]}


def forest(run: ShardRun, stage: str, index: int) -> dict[str, NDArray]:
    """Return the places of both ends and p of a maximum spanning forest, and the number of edges."""
    shard = run.shards[index]
    rows, edges = View.of(run, stage).around(run, np.arange(shard.start, shard.stop))
    starts, cols = edges.rows, edges.cols
    once = np.flatnonzero(starts < cols)
    starts, cols, scores = starts[once], cols[once], edges.scores[once]
    kept = spanning(np.argsort(-scores, kind="stable"), starts, cols, len(rows))
    dtype = id_dtype(run.manifest.n)
    ends = {"low": rows.places[starts[kept]].astype(dtype), "high": rows.places[cols[kept]].astype(dtype)}
    return ends | {"scores": scores[kept], "count": np.array([len(once)])}


def within(run: ShardRun, stage: str, index: int) -> dict[str, NDArray]:
    """Return the sums of :meth:`starfc.graph.edges.EdgeList.split_sums` of a shard's rows, for each clustering."""
    asked, shard = run.asked(stage), run.shards[index]
    places = np.arange(shard.start, shard.stop)
    rows, edges = View.of(run, stage).around(run, places)
    mine = rows.numbers(places)
    out: dict[str, NDArray] = {}
    for number, table in enumerate(asked["members"]):
        inside, count, outside = edges.split_sums(run.rows(table, "members", rows.places))
        out |= {f"inside-{number}": inside[mine], f"count-{number}": count[mine], f"outside-{number}": outside[mine]}
    return out
