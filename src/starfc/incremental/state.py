"""A clustering that instances can be added to and removed from."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starfc.clustering.components import components
from starfc.clustering.copies import copied_confidence, copies_among, join_copies
from starfc.clustering.parsing import ParsedEdges
from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.graph.edges import edge_confidence
from starfc.graph.neighbours import KnnGraph, id_dtype
from starfc.graph.structure import NO_LOGIT
from starfc.incremental import copies
from starfc.incremental.clusters import ClusterMerge, ClusterSplit, regroup
from starfc.incremental.communities import within_communities
from starfc.incremental.edges import changed, without
from starfc.incremental.lists import Lists, Step, StoredLists
from starfc.incremental.scores import read_context, score_new
from starfc.models.checkpoint import Model
from starfc.models.contextual import Context, ContextualModel
from starfc.models.gcn import StarFCModel
from starfc.models.structural import StructuralModel
from starfc.runtime.defaults import PARTITIONS, RESOLUTION
from starfc.runtime.stages import Stages
from starfc.runtime.words import word

log = logging.getLogger("starfc")

_GROWTH = 10  # times the rows that a context was read off: beyond, it says little of the others


@dataclass(frozen=True)
class Rule:
    """How edges are scored and which stay: the model, both thresholds, and the floor of its affinity graph.

    With a ``partition`` into communities τ2 plays no part; ``resolution`` is of 'leiden', ``seed`` of either search.
    """

    model: StarFCModel | StructuralModel
    tau1: float
    tau2: float
    th_sim: float = 0.0
    partition: str = "components"
    resolution: float = RESOLUTION
    seed: int = 0

    @property
    def communities(self) -> bool:
        return self.partition != "components"


def make_rule(
    model: Model,
    tau1: float,
    tau2: float,
    th_sim: float,
    refinement: str,
    partition: str,
    resolution: float = RESOLUTION,
    seed: int = 0,
) -> Rule:
    """The rule of a run.

    Raises
    ------
    InputError
        A run of a kind that instances cannot be added to.
    """
    if refinement != "fixed":
        raise InputError(
            f"assign: a clustering by fixed refinement needed; found refinement {refinement!r}, whose thresholds all "
            "change when something is added; cluster again with the fixed one, or cluster everything at once"
        )
    if partition not in PARTITIONS:
        raise InputError(f"partition: one of {', '.join(map(repr, PARTITIONS))} needed; found {partition!r}")
    if not isinstance(model, StarFCModel | StructuralModel):
        raise InputError(
            "assign: a structural model or a published one of a single scale (gcn) needed; found a hierarchical one, "
            "whose nodes choose their scale anew; cluster everything at once"
        )
    return Rule(model, tau1, tau2, th_sim, partition, resolution, seed)


@dataclass
class Assigned:
    """What a step did. Ids of clusters are stable; rows of new instances follow the earlier ones.

    ``labels`` (m,) int64 are the clusters of the new instances; ``joined`` how many went to clusters that were there,
    ``created`` the ids of new ones; ``merges`` and ``splits`` what the edges ask for, done where ``applied``;
    ``doubts`` what has become doubtful about the clustering by this step, each of which was also logged as a warning.
    """

    labels: NDArray[np.int64]
    first_row: int
    joined: int
    created: list[int]
    merges: list[ClusterMerge]
    splits: list[ClusterSplit]
    applied: bool
    removed: list[int]
    num_clusters: int
    doubts: list[str] = field(default_factory=list)
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As JSON takes it."""
        record = asdict(self)
        record["labels"] = self.labels.tolist()
        return record


@dataclass
class State:
    """What a step starts from.

    ``parsed.kept`` are the edges of node intimacy above τ2, ``across`` the places of those between clusters; with
    communities the kept ones are those within a cluster, and none is across.
    ``labels`` (N,) int64 hold -1 for removed rows; ``suspects`` are clusters that came apart and were left as they are.
    ``context`` is what a contextual model judges edges by; None where fewer than two rows could be compared, so that
    it is read off the rows of the step after which there are more.
    ``representative`` (N,) int64 is the row that stands for each: the row itself, or of a copy (a row of the same
    direction) the one whose cluster it is in. Copies have no lists, and ``parsed`` no edges to them. ``collapse``: new
    rows may be copies.
    After a step, ``touched`` (next_label,) bool are the clusters whose instances or edges it changed, and ``last`` is
    what it did to the lists, None where that is more than a step can say.
    """

    rule: Rule
    features: Features
    lists: Lists | StoredLists
    parsed: ParsedEdges
    labels: NDArray[np.int64]
    next_label: int
    suspects: NDArray[np.int64]
    representative: NDArray[np.int64]
    collapse: bool = False
    across: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    touched: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    last: Step | None = None
    context: Context | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.context = self.parsed.context
        if self._contextual and self.context is None and np.count_nonzero(self.lists.alive) > 1:
            raise InputError(
                "assign: the run did not keep what its model judged the edges by (edges/context.npz); cluster "
                "everything again"
            )

    @classmethod
    def of(
        cls,
        rule: Rule,
        features: Features,
        graph: KnnGraph,
        rows: NDArray[np.integer],
        parsed: ParsedEdges,
        labels: NDArray[np.int64],
        next_label: int = 0,
        *,
        k: int | None = None,
        representative: NDArray[np.int64] | None = None,
        collapse: bool = False,
    ) -> State:
        """The state of a finished clustering.

        Parameters
        ----------
        features : Features
            Of all N rows.
        graph : KnnGraph
            Of those with lists, which are ``rows``: valid ones, and of copies their representative.
        parsed : ParsedEdges
            With the edges to copies.
        labels : (N,) int64
            -1 where an instance was left out of the clusters for their size: it is given a cluster of its own, or the
            one that the kept edges make.
        next_label : int
            The lowest id for a new cluster, where labels in use are not above it.
        k : int, optional
            Entries that lists will have once there are instances enough; those that the graph has otherwise.
        representative : (N,) int64, optional
            The row that stands for each; every row for itself otherwise.
        collapse : bool
            New rows of the direction of others will be their copies.
        """
        n, found = len(labels), graph.k
        k = found if k is None else max(k, found)
        representative = np.arange(n) if representative is None else representative
        ids, sims = np.full((n, k), -1, id_dtype(n)), np.zeros((n, k), np.float32)
        if len(rows) == n:
            ids[:, :found], sims[:, :found] = graph.ids, graph.sims
        else:
            ids[rows, :found] = np.append(rows, -1)[graph.ids]
            sims[rows, :found] = graph.sims
        alive = np.zeros(n, np.bool_)
        alive[rows] = True
        columns, candidates = columns_of(rule.model, k)
        known = parsed.logits is not None
        codes = np.full((n, columns), NO_LOGIT, np.int8)
        if parsed.logits is not None:  # shorter lists have fewer columns
            codes[:, : parsed.logits.shape[1]] = parsed.logits
        parsed = copies.left_out(parsed, representative)
        lists = Lists(ids, sims, alive, codes, np.full(n, known), candidates)
        labels, out = np.array(labels, np.int64), np.flatnonzero(labels < 0)
        next_label = max(next_label, int(labels.max(initial=-1)) + 1)
        if out.size:
            members = components(parsed.edges.select(parsed.kept))[out]
            _, number = np.unique(members, return_inverse=True)
            labels[out] = next_label + number
            next_label = int(labels.max()) + 1
        none = np.empty(0, np.int64)
        return cls(rule, features, lists, parsed, labels, next_label, none, representative, collapse)

    @property
    def _contextual(self) -> bool:
        return self.rule.model.kind.contextual

    @property
    def confidence(self) -> NDArray[np.float32]:
        """Mean score of the kept edges at every instance: (N,)."""
        confidence = edge_confidence(self.parsed.edges, self._kept)
        return copied_confidence(confidence, self.representative)

    @property
    def clustered(self) -> ParsedEdges:
        """The edges, of which those that lie between clusters are not kept, and the first round's logits."""
        logits = self.lists.codes if self.lists.codes.shape[1] else None
        parsed = replace(self.parsed, kept=self._kept, logits=logits, context=self.context)
        return join_copies(parsed, self.representative)

    @property
    def _kept(self) -> NDArray[np.bool_]:
        kept = self.parsed.kept.copy()
        kept[self.across] = False
        return kept

    @property
    def num_clusters(self) -> int:
        return int(np.count_nonzero(np.bincount(self.labels[self.labels >= 0])))

    def step(
        self,
        features: Features,
        *,
        invalid: NDArray[np.integer] | Sequence[int] = (),
        remove: NDArray[np.integer] | Sequence[int] = (),
        apply_merges: bool = False,
        stages: Stages | None = None,
        scratch: Path | None = None,
    ) -> Assigned:
        """Remove rows and add others; the state is then that after the step.

        Parameters
        ----------
        features : Features
            Of all rows, the new ones at the end: (N + m, d).
        invalid : integers
            New rows without direction, which become clusters of their own.
        remove : integers
            Rows to take out; their ids are not used again.
        apply_merges : bool
            Do the merges and splits that the edges ask for.

        Raises
        ------
        InputError
            A row to be removed that is not there.
        """
        started, stages = time.perf_counter(), stages or Stages()
        before, first = len(stages.finished), len(self.labels)
        remove = self._removable(remove)
        new = np.arange(first, len(features))
        alive = np.ones(len(new), np.bool_)
        alive[np.asarray(invalid, np.int64) - first] = False
        n, k = len(features), self.lists.ids.shape[1]
        representative = np.concatenate([self.representative, new])
        with stages.stage("kNN lists", needs=9 * n * k + (300 << 20)):
            lists = self.lists.grown(alive)
            heirs = copies.find_heirs(representative, remove)
            parsed = self.parsed if not len(heirs) else copies.inherit(lists, self.parsed, heirs)
            copies.pass_on(representative, remove, heirs)
            lists.remove(remove)
            last = lists.search(features, first, remove)
            if self.collapse and copies.may_be_there(last, first):
                copies.find_new(features, lists.alive, first, representative)
                lists.alive[copies_among(representative)] = False
                last = lists.search(features, first, remove)
            lists.enter(last)
        is_copy = copies_among(representative)
        with stages.stage("edge scores", needs=(256 << 20)):
            rule, touched, context = self.rule, last.touched(first), self.context
            if context is not None:
                context = replace(context, strangers=context.strangers.grown(features))
            elif isinstance(rule.model, ContextualModel) and np.count_nonzero(lists.alive) > 1:
                context = read_context(rule.model, features, lists, scratch)
            doubts = self._outgrown(lists)
            added = score_new(rule.model, features, lists, first, touched, rule.tau1, rule.th_sim, scratch, context)
        with stages.stage("intimacy", needs=40 * len(self.parsed.edges)):
            parsed, ends = without(parsed, remove) if remove.size else (parsed, remove)
            edges = changed(parsed, added, n, ends, None if rule.communities else rule.tau2)
        with stages.stage("clusters", needs=20 * len(self.parsed.edges)):
            labels = np.concatenate([self.labels, np.full(len(new), -1)])
            suspects = np.union1d(self.suspects, labels[remove])
            labels[remove] = -1
            among = np.where(is_copy, -1, labels)  # copies go where their representatives go
            placed = new[~is_copy[first:]]
            if rule.communities:
                kept = within_communities(
                    edges.parsed, among, self.next_label, placed, rule.partition, rule.resolution, rule.seed
                )
                edges = replace(edges, parsed=replace(edges.parsed, kept=kept))
            sizes = np.bincount(representative, minlength=n)
            grouping = regroup(among, self.next_label, edges, placed, suspects, apply_merges, sizes)
            grouping.labels[is_copy] = grouping.labels[representative[is_copy]]
            known = ~np.isin(grouping.labels[first:], grouping.created)
            grouping.joined += int(np.count_nonzero(known & is_copy[first:]))
            moved = labels != grouping.labels
            if rule.communities:  # those across are searched for anew at every step
                edges.parsed.kept[grouping.across] = False
                grouping.across = grouping.across[:0]
            altered = np.zeros(grouping.next_label + 1, np.bool_)  # the last is what -1 points to
            altered[labels[moved]], altered[grouping.labels[edges.at | moved]] = True, True
            altered[self.labels[remove]] = True
        self.features, self.lists, self.parsed, self.context = features, lists, edges.parsed, context
        self.representative = representative
        self.last = None if len(heirs) else last
        self.labels, self.suspects, self.across = grouping.labels, grouping.suspects, grouping.across
        self.next_label, self.touched = grouping.next_label, altered[:-1]
        return Assigned(
            grouping.labels[first:], first, grouping.joined, grouping.created.tolist(), grouping.merges,
            grouping.splits, apply_merges, remove.tolist(), self.num_clusters, doubts, time.perf_counter() - started,
            {stage.name: stage.seconds for stage in stages.finished[before:]},
        )  # fmt: skip

    def _outgrown(self, lists: Lists) -> list[str]:
        """That rows are many more by now than those that the threshold was found for, by the step that brings that."""
        if not self._contextual:
            return []
        before, now = int(np.count_nonzero(self.lists.alive)), int(np.count_nonzero(lists.alive))
        judged = before if self.context is None else self.context.num_nodes
        if not before <= _GROWTH * max(judged, 1) < now:
            return []
        doubt = (
            f"{now:,} rows by now, where {judged:,} were clustered: the threshold was found for so few, and clusters "
            "may be wrong; cluster all rows anew"
        )
        log.warning("%s", doubt)
        return [doubt]

    def _removable(self, rows: NDArray[np.integer] | Sequence[int]) -> NDArray[np.int64]:
        wanted = np.unique(np.asarray(rows, np.int64))
        wrong = wanted[(wanted < 0) | (wanted >= len(self.labels))]
        if wrong.size:
            raise InputError(
                f"{word('remove')}: rows from 0 to {len(self.labels) - 1} needed; found {wrong[:5].tolist()}"
            )
        gone = wanted[self.labels[wanted] < 0]
        if gone.size:
            raise InputError(f"{word('remove')}: rows {gone[:5].tolist()} were removed before; leave them out")
        return wanted


def columns_of(model: StarFCModel | StructuralModel, k: int) -> tuple[int, int]:
    """Columns of the kNN lists that have room for a logit, and how many of them are candidates."""
    if not isinstance(model, StructuralModel) or model.rounds == 1:
        return 0, 0
    columns = min(model.columns, k)
    return columns, min(model.candidates, columns)
