"""The state of a clustering to which instances can be added, and from which instances can be removed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
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

_GROWTH = 10  # warn if the rows become more than this many times the rows from which the context was computed


@dataclass(frozen=True)
class Rule:
    """The rule by which edges are scored and kept: the model, the thresholds and the partition.

    ``th_sim`` is the lowest similarity in the affinity graph. If ``partition`` makes communities, τ2 is not used.
    ``resolution`` is that of 'leiden', ``seed`` that of the communities' search.
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
        """Whether clusters are communities."""
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
    """Return the rule of a run.

    Raises
    ------
    InputError
        If instances cannot be added to a run of this kind.
    """
    if refinement != "fixed":
        raise InputError(
            f"assign: a clustering by fixed refinement needed; found refinement {refinement!r}, whose thresholds all "
            "change when instances are added; cluster again with fixed refinement, or cluster all rows together"
        )
    if partition not in PARTITIONS:
        raise InputError(f"partition: one of {', '.join(map(repr, PARTITIONS))} needed; found {partition!r}")
    if not isinstance(model, StarFCModel | StructuralModel):
        raise InputError(
            "assign: a structural model or a published model with one scale (gcn) needed; found a hierarchical model, "
            "whose nodes would choose their scales again; cluster all rows together"
        )
    return Rule(model, tau1, tau2, th_sim, partition, resolution, seed)


@dataclass
class Assigned:
    """The result of a step. Cluster ids are stable; the rows of new instances come after the earlier rows.

    Attributes
    ----------
    labels : (m,) int64
        The clusters of the new instances.
    first_row : int
        The row of the first new instance.
    joined : int
        Number of new instances that joined an existing cluster.
    created : list of int
        The ids of new clusters.
    merges, splits : list
        The merges and splits that the edges suggest.
    applied : bool
        Whether the merges and splits were done.
    removed : list of int
        The removed rows.
    num_clusters : int
        Number of clusters after the step.
    doubts : list of str
        New reasons to doubt the clustering, one sentence each; they were also logged as warnings.
    seconds : float
        Time of the step.
    stages : dict
        Time of each stage, in seconds.
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
        """Return the result as a dictionary for JSON."""
        record = asdict(self)
        record["labels"] = self.labels.tolist()
        return record


@dataclass
class State:
    """The state of a clustering between steps.

    Attributes
    ----------
    rule : Rule
        How edges are scored and kept.
    features : Features
        Features of all N rows.
    lists : Lists or StoredLists
        The kNN lists.
    parsed : ParsedEdges
        The edges, without those to copies. ``parsed.kept`` are the edges with node intimacy above τ2; with communities,
        those within a cluster.
    labels : (N,) int64
        Cluster ids; -1 for removed rows.
    next_label : int
        The lowest id for a new cluster.
    suspects : (s,) int64
        Clusters that are no longer connected, and were not split.
    representative : (N,) int64
        For a copy (a row with the direction of another row) the row whose cluster it shares, otherwise the row itself.
        Copies have no lists.
    collapse : bool
        Whether new rows can become copies.
    across : (e,) int64
        Positions of the kept edges between different clusters; empty with communities.
    touched : (next_label,) bool
        After a step: the clusters whose instances or edges changed.
    last : Step, optional
        After a step: the changes of the lists; None if a :class:`Step` cannot describe them.
    context : Context, optional
        The context in which a contextual model scores edges. None as long as there are fewer than two rows with lists;
        a later step then computes it from its rows.
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
                "assign: the run's folder lacks the context of its model (edges/context.npz); cluster all rows again"
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
        """Return the state of a finished clustering.

        Parameters
        ----------
        rule : Rule
            How edges are scored and kept.
        features : Features
            Features of all N rows.
        graph : KnnGraph
            kNN graph of the rows that have lists.
        rows : (m,) integers
            The rows that have lists: valid rows without copies.
        parsed : ParsedEdges
            The edges, with those to copies.
        labels : (N,) int64
            Cluster ids. -1 for instances whose cluster was dropped because it was too small; they get back the cluster
            that the kept edges make.
        next_label : int
            The lowest id for a new cluster; raised if labels in use are not below it.
        k : int, optional
            Number of entries that the lists will have once there are enough rows. Default: that of the graph.
        representative : (N,) int64, optional
            The representative of each row. Default: no copies.
        collapse : bool
            Whether new rows with the direction of another row become its copies.
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
        """Mean score of the kept edges at each instance, (N,)."""
        confidence = edge_confidence(self.parsed.edges, self._kept)
        return copied_confidence(confidence, self.representative)

    @property
    def clustered(self) -> ParsedEdges:
        """The edges with those to copies, the first round's logits and the context; edges across are not kept."""
        logits = self.lists.codes if self.lists.codes.shape[1] else None
        parsed = replace(self.parsed, kept=self._kept, logits=logits, context=self.context)
        joined = join_copies(parsed, self.representative)
        if (self.labels == self.labels[self.representative]).all():
            return joined
        return replace(joined, kept=joined.kept & joined.edges.inside(self.labels))  # a person took copies apart

    @property
    def _kept(self) -> NDArray[np.bool_]:
        kept = self.parsed.kept.copy()
        kept[self.across] = False
        return kept

    @property
    def num_clusters(self) -> int:
        """Number of clusters."""
        return int(np.count_nonzero(np.bincount(self.labels[self.labels >= 0])))

    def step(
        self,
        features: Features,
        *,
        invalid: NDArray[np.integer] | Sequence[int] = (),
        remove: NDArray[np.integer] | Sequence[int] = (),
        apply_merges: bool = False,
        apart: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None,
        stages: Stages | None = None,
        scratch: Path | None = None,
    ) -> Assigned:
        """Remove rows and add new rows. This changes the state.

        Parameters
        ----------
        features : Features
            Features of all rows, the new rows at the end: (N + m, d).
        invalid : integers
            New rows without direction; each becomes a cluster of its own.
        remove : integers
            Rows to remove; their ids are not used again.
        apply_merges : bool
            Whether to do the merges and splits that the edges suggest.
        apart : callable, optional
            Pairs of clusters that no merge may bring together (:func:`starfc.incremental.clusters.regroup`).
        stages : Stages, optional
            Records the time of each stage.
        scratch : path, optional
            Folder for temporary files.

        Raises
        ------
        InputError
            If a row to remove does not exist or was removed before.
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
            added = score_new(rule.model, features, lists, first, touched, rule.tau1, rule.th_sim, context)
        with stages.stage("intimacy", needs=40 * len(self.parsed.edges)):
            parsed, ends = without(parsed, remove) if remove.size else (parsed, remove)
            edges = changed(parsed, added, n, ends, None if rule.communities else rule.tau2)
        with stages.stage("clusters", needs=20 * len(self.parsed.edges)):
            labels = np.concatenate([self.labels, np.full(len(new), -1)])
            suspects = np.union1d(self.suspects, labels[remove])
            labels[remove] = -1
            among = np.where(is_copy, -1, labels)  # copies get the labels of their representatives below
            placed = new[~is_copy[first:]]
            if rule.communities:
                kept = within_communities(
                    edges.parsed, among, self.next_label, placed, rule.partition, rule.resolution, rule.seed
                )
                edges = replace(edges, parsed=replace(edges.parsed, kept=kept))
            sizes = np.bincount(representative, minlength=n)
            of_every = None if apart is None else lambda found: apart(found[representative])  # copies have no label yet
            grouping = regroup(among, self.next_label, edges, placed, suspects, apply_merges, sizes, of_every)
            grouping.labels[is_copy] = grouping.labels[representative[is_copy]]
            known = ~np.isin(grouping.labels[first:], grouping.created)
            grouping.joined += int(np.count_nonzero(known & is_copy[first:]))
            moved = labels != grouping.labels
            if rule.communities:  # each step finds the edges across again
                edges.parsed.kept[grouping.across] = False
                grouping.across = grouping.across[:0]
            altered = np.zeros(grouping.next_label + 1, np.bool_)  # the last entry is for label -1
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
        """Return a doubt if this step makes the rows more than 10 times those for which the threshold was chosen."""
        if not self._contextual:
            return []
        before, now = int(np.count_nonzero(self.lists.alive)), int(np.count_nonzero(lists.alive))
        judged = before if self.context is None else self.context.num_nodes
        if not before <= _GROWTH * max(judged, 1) < now:
            return []
        doubt = (
            f"there are now {now:,} rows, but the threshold was chosen when there were {judged:,}: clusters may be "
            "wrong; cluster all rows again"
        )
        log.warning("%s", doubt)
        return [doubt]

    def _removable(self, rows: NDArray[np.integer] | Sequence[int]) -> NDArray[np.int64]:
        """Return the sorted rows to remove. Raise unless all of them exist and none was removed before."""
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
    """Return the number of columns of the kNN lists that store logits, and how many of them are candidates."""
    if not isinstance(model, StructuralModel) or model.rounds == 1:
        return 0, 0
    columns = min(model.columns, k)
    return columns, min(model.candidates, columns)
