"""All scored edges of a set, in a store. What clustering asks of them runs as tasks (:mod:`starfc.shards.edges`,
:mod:`starfc.shards.communities`); this process holds arrays of N values and one shard or pack at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starfc.clustering.choice import communities_at, finished
from starfc.clustering.components import components
from starfc.clustering.map_equation import LARGE
from starfc.clustering.samples import in_small_part, stay_apart
from starfc.errors import InputError
from starfc.graph.edge_list_kernels import place_rows
from starfc.graph.edges import EdgeList, SplitSums, row_pointers
from starfc.graph.neighbours import id_dtype
from starfc.runtime.union_find_kernels import flatten, unite_pairs
from starfc.runtime.words import word
from starfc.shards.edges import View
from starfc.shards.engine import Engine, run_stage
from starfc.shards.run import ShardRun
from starfc.storage.scratch import large_array

# memory of a task: of its process, to read an edge, and to find the communities of one component at a time
_PROCESS_BYTES, _READ_BYTES, _NODE_BYTES, _ENTRY_BYTES = 400 << 20, 32, 160, 32


@dataclass(frozen=True)
class Links:
    """More edges, in both directions: their ends (m,), by name, and p (m,)."""

    rows: NDArray[np.integer]
    cols: NDArray[np.integer]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class Packed:
    """The components of a task.

    Attributes
    ----------
    nodes : (m,) integers
        Their rows, component by component.
    sizes : (c,) integers
        Rows of each component.
    needs : int
        Memory that the task is expected to need, in bytes.
    """

    nodes: NDArray[np.integer]
    sizes: NDArray[np.integer]
    needs: int


@dataclass(frozen=True)
class ShardEdges:
    """The edges of a :class:`~starfc.shards.edges.View`, and ``links`` (:class:`starfc.graph.edges.Edges`).

    Attributes
    ----------
    run, engine : ShardRun, Engine
    order, places : (N,) integers
        The row at each place, and the place of each row.
    view : View
    links : Links, optional
        Edges that are not in the store.
    forests : dict
        The stages of the forests that were made.
    """

    run: ShardRun
    engine: Engine
    order: NDArray[np.integer]
    places: NDArray[np.integer]
    view: View
    links: Links | None = None
    forests: dict[View, str] = field(default_factory=dict)

    @property
    def num_nodes(self) -> int:
        return len(self.order)

    @property
    def num_edges(self) -> int:
        """Number of edges."""
        stored = sum(int(self.run.load(self._forest, index, "count")[0]) for index in range(len(self.run.shards)))
        return stored + (0 if self.links is None else len(self.links.rows) // 2)

    @property
    def held(self) -> int:
        return 0

    @property
    def file_bytes(self) -> int:
        return 0

    def release(self) -> None:
        """Nothing is held."""

    def above(self, line: float) -> ShardEdges:
        """Return the edges with p > ``line``."""
        return replace(self, view=replace(self.view, above=max(self.view.above, line)))

    def whole(self, scratch: Path | None = None) -> EdgeList:
        """Return all edges as a list in memory, or in files in the folder ``scratch`` if it is large."""
        n = self.num_nodes
        totals = np.zeros(n, np.int64)
        for rows, edges in self._blocks():
            totals[rows] += np.diff(edges.indptr)
        indptr = row_pointers(totals)
        free = indptr[:-1].copy()
        cols, scores = (large_array((indptr[-1],), dtype, scratch) for dtype in (id_dtype(n), np.float32))
        for rows, edges in self._blocks():
            place_rows(free, rows, np.diff(edges.indptr), rows[edges.cols], edges.scores, cols, scores)
        found = EdgeList(indptr, cols, scores, symmetric=True)
        return found if self.links is None else found.plus(self.links.rows, self.links.cols, self.links.scores)

    def among(self, nodes: NDArray[np.integer]) -> EdgeList:
        """Return the edges of the store between some nodes (m,), which are increasing and become the nodes 0..m-1."""
        return self.view.among(self.run, np.sort(self.places[nodes]))[1]

    def ends_of(self, nodes: NDArray[np.integer]) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
        """Return the other ends (e,) of the edges of the store at some nodes, and their scores (e,), in any order."""
        around, edges = self.view.around(self.run, np.sort(self.places[nodes]))
        return around.names[edges.cols], edges.scores

    def plus(self, rows: NDArray[np.integer], cols: NDArray[np.integer], scores: NDArray[np.float32]) -> ShardEdges:
        """Return the edges with more edges, given in both directions; those that are known keep their p."""
        new = np.ones(len(rows), np.bool_)
        of = self.places[rows]
        order = np.argsort(of, kind="stable")
        size = self.run.manifest.shard_rows
        for first, stop in pairwise(np.flatnonzero(np.diff(of[order] // size, prepend=-1, append=-1))):
            some = order[first:stop]
            around, edges = self.view.around(self.run, np.unique(of[some]))
            keys = edges.rows.astype(np.int64) * len(around) + edges.cols
            ends = around.numbers(self.places[cols[some]])
            wanted = around.numbers(of[some]).astype(np.int64) * len(around) + ends
            new[some] = (ends < 0) | ~np.isin(wanted, keys)
        return replace(self, links=Links(rows[new], cols[new], scores[new]))

    def split_sums(self, members: NDArray[np.integer], above: float = 0.0) -> SplitSums:
        """Return the sums of :meth:`starfc.graph.edges.EdgeList.split_sums`."""
        return next(self.above(above).split_sums_each([members]))

    def split_sums_each(self, clusterings: Sequence[NDArray[np.integer]]) -> Iterator[SplitSums]:
        """Yield the sums of each clustering."""
        stage, n = self.run.next_of("within"), self.num_nodes
        self.run.ask(stage, self.view.asked() | {"members": [self.table(members=members) for members in clusterings]})
        run_stage(self.engine, self.run, stage)
        for number, members in enumerate(clusterings):
            inside, count, outside = np.zeros(n, np.float64), np.zeros(n, np.int32), np.zeros(n, np.float64)
            for index, shard in enumerate(self.run.shards):
                names = self.order[shard]
                for whole, part in ((inside, "inside"), (count, "count"), (outside, "outside")):
                    whole[names] = self.run.load(stage, index, f"{part}-{number}")
            if self.links is not None:
                rows, cols, scores = self.links.rows, self.links.cols, self.links.scores
                same, counts = members[rows] == members[cols], scores > self.view.above
                np.add.at(inside, rows[same & counts], scores[same & counts])
                np.add.at(count, rows[same & counts], 1)
                np.add.at(outside, rows[~same & counts], scores[~same & counts])
            yield inside, count, outside

    def components_above(self, line: float) -> NDArray[np.integer]:
        """Return the components of the edges with p > ``line`` (:func:`starfc.clustering.components.components`)."""
        n = self.num_nodes
        parent = np.arange(n, dtype=id_dtype(n))
        for index in range(len(self.run.shards)):
            low, high, scores = (self.run.load(self._forest, index, part) for part in ("low", "high", "scores"))
            likely = scores > line
            unite_pairs(parent, self.order[low[likely]], self.order[high[likely]])
        if self.links is not None:
            likely = self.links.scores > line
            unite_pairs(parent, self.links.rows[likely], self.links.cols[likely])
        flatten(parent)
        return parent

    @cached_property
    def degrees(self) -> NDArray[np.int32]:
        """Number of stored edges at each row, at any p, (N,)."""
        out = np.empty(self.num_nodes, np.int32)
        for index, shard in enumerate(self.run.shards):
            out[self.order[shard]] = np.diff(self.run.load(self.view.stage, index, "indptr"))
        return out

    def packs(self, pieces: NDArray[np.integer], wanted: NDArray[np.bool_]) -> list[Packed]:
        """Pack components into tasks of about as many edges as a shard has.

        Parameters
        ----------
        pieces : (N,) integers
            The smallest member of each row's component.
        wanted : (N,) bool
            The rows of the components to pack.

        Returns
        -------
        list of Packed

        Raises
        ------
        InputError
            A component needs more memory than a task has.
        """
        nodes = np.flatnonzero(wanted)
        # components by the place of their first row: those of a pack are then in few shards
        nodes = nodes[np.argsort(self.places[pieces[nodes]], kind="stable")]
        starts = np.flatnonzero(np.diff(pieces[nodes], prepend=-1))
        sizes = np.diff(starts, append=len(nodes))
        if not len(nodes):
            return []
        entries = np.add.reduceat(self.degrees[nodes].astype(np.int64), starts)
        needs = _PROCESS_BYTES + _NODE_BYTES * sizes + (_READ_BYTES + _ENTRY_BYTES) * entries
        self._require_room(sizes, entries, needs)
        limit = int(self.degrees.sum(dtype=np.int64)) // len(self.run.shards) + 1
        pack = (np.cumsum(entries) - entries) // limit
        bounds = np.flatnonzero(np.diff(pack, prepend=-1))
        # all edges are read, then one component after the other is searched
        most = np.maximum.reduceat(needs - _READ_BYTES * entries, bounds)
        expected = (most + _READ_BYTES * np.add.reduceat(entries, bounds)).tolist()
        parts = np.split(nodes, starts[bounds[1:]]), np.split(sizes, bounds[1:]), expected
        return [Packed(*part) for part in zip(*parts, strict=True)]

    def _require_room(
        self, sizes: NDArray[np.integer], entries: NDArray[np.integer], needs: NDArray[np.integer]
    ) -> None:
        most = int(needs.argmax())
        if self.engine.memory is not None and needs[most] > self.engine.memory:
            raise InputError(
                f"communities: a component of {sizes[most]:,} rows and {entries[most] // 2:,} edges needs "
                f"{needs[most] / 2**30:.1f} GiB in one task; a machine has {self.engine.memory / 2**30:.1f} GiB; use "
                f"a larger machine, or name a higher {word('tau1')}, whose components are smaller"
            )

    def run_packs(
        self, kind: str, packs: Sequence[Packed], wanted: dict[str, Any], members: NDArray[np.integer] | None = None
    ) -> list[NDArray[np.integer]]:
        """Run a stage with a task for each pack; return the communities of the rows of each.

        ``wanted`` is what the tasks need to know, ``members`` (N,) are the communities that were found before.
        """
        stage = self.run.next_of(kind)
        given = [{"places": self.places[pack.nodes], "sizes": pack.sizes} for pack in packs]
        if members is not None:
            given = [some | {"members": members[pack.nodes]} for some, pack in zip(given, packs, strict=True)]
        self.run.ask(stage, self.view.asked() | wanted, *given)
        run_stage(self.engine, self.run, stage, [pack.needs for pack in packs])
        return [self.run.load(stage, index, "members") for index in range(len(packs))]

    def table(self, **values: NDArray) -> str:
        """Store arrays (N,) by place, for tasks; return the name of the table."""
        return self.run.put({part: array[self.order] for part, array in values.items()})

    def _blocks(self) -> Iterator[tuple[NDArray[np.integer], EdgeList]]:
        """Yield the edges at the rows of each shard: the names of the nodes, and the edges at some of these."""
        for shard in self.run.shards:
            rows, edges = self.view.around(self.run, np.arange(shard.start, shard.stop))
            yield rows.names, edges

    @property
    def _forest(self) -> str:
        """The stage of the forests of the view."""
        if self.view not in self.forests:
            stage = self.run.next_of("forest")
            self.run.ask(stage, self.view.asked())
            run_stage(self.engine, self.run, stage)
            self.forests[self.view] = stage
        return self.forests[self.view]


@components.register
def _components(edges: ShardEdges) -> NDArray[np.integer]:
    return edges.components_above(edges.view.above)


@stay_apart.register
def _stay_apart(edges: ShardEdges, former: NDArray[np.integer], members: NDArray[np.integer]) -> ShardEdges:
    table = edges.table(former=former, members=members, small=in_small_part(former, members))
    return replace(edges, view=replace(edges.view, apart=table))


@communities_at.register
def _communities_at(
    edges: ShardEdges, thresholds: Sequence[float], seed: int, quick: bool
) -> list[NDArray[np.integer]]:
    found: list[NDArray[np.integer]] = []
    packs: list[Packed] = []
    number: list[int] = []  # of the threshold, of each pack
    for threshold in thresholds:
        pieces = edges.components_above(threshold)
        some = edges.packs(pieces, np.bincount(pieces)[pieces] > 2)  # two rows are one community
        number += [len(found)] * len(some)
        packs += some
        found.append(pieces)
    wanted = {"tau1": [thresholds[at] for at in number], "seed": seed, "quick": quick}
    for at, pack, members in zip(number, packs, edges.run_packs("modules", packs, wanted), strict=True):
        found[at][pack.nodes] = members
    return found


@finished.register
def _finished(
    edges: ShardEdges, members: NDArray[np.integer], tau1: float, seed: int, quick: bool
) -> NDArray[np.integer]:
    pieces = edges.components_above(tau1)
    several = np.bincount(pieces, members != pieces) > 0  # only then communities can be joined
    again = several | (quick & (np.bincount(pieces) > LARGE))
    packs = edges.packs(pieces, again[pieces])
    wanted = {"tau1": tau1, "seed": seed, "quick": quick}
    out = np.array(members)
    for pack, joined in zip(packs, edges.run_packs("joined", packs, wanted, members), strict=True):
        out[pack.nodes] = joined
    return out
