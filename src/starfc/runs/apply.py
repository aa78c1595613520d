"""Apply marks to the folder of a finished run, take the last step back, name clusters, and find questions.

:class:`Marked` holds a run open, so that an answer needs only the clusters that it changes. Each call that changes the
run writes new files and makes them valid all at once (:mod:`starfc.storage.commit`). :mod:`starfc.runs.marked` lists
the files.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starfc.answers.constraints import Clusters, Verdict, enforce, kept_edges
from starfc.answers.expected import expected
from starfc.answers.marks import Marks, require_consistent, require_marks
from starfc.answers.marks_file import read_marks
from starfc.answers.names import Lost, carried, require_name
from starfc.answers.questions import Asker, Question
from starfc.clustering.choice import Estimate
from starfc.errors import InputError
from starfc.review.measures import numbered
from starfc.review.pairs import Pairs
from starfc.runs.asked import asker_of, keep
from starfc.runs.folder import STATE, Run
from starfc.runs.marked import (
    CLUSTERS,
    MARKS,
    NAMES,
    Kept,
    Undo,
    read_kept,
    read_names,
    step_name,
    whole_clusters,
    write_names,
)
from starfc.runs.outputs import Files, read_instances, write_clustering, write_run
from starfc.runs.state import first_state, read_state
from starfc.runs.table import Columns, changed_columns
from starfc.runtime.stages import Stages
from starfc.storage.atomic import save_array, save_arrays, write_json
from starfc.storage.commit import Change, changing, locked, settle
from starfc.storage.opened import OpenedFolder
from starfc.storage.owners import APPLY
from starfc.storage.records import StateManifest

log = logging.getLogger("starfc")


@dataclass(frozen=True)
class Applied:
    """The result of a step.

    Attributes
    ----------
    rows : (m,) int64
        Rows whose cluster changed.
    before, after : (m,) int64
        Their clusters before and now.
    joined : list of (int, int)
        The id that remains, and the id that is gone.
    divided : list of (int, int)
        The cluster, and the id of the part that left it.
    doubtful : list of Verdict
        Answers that do not count, because stronger ones contradict them.
    lost : list of Lost
        Names that gave way.
    pairs : int
        Number of pairs of rows that are now together and were not before, or the other way round.
    num_clusters : int
        Number of clusters now.
    steps : int
        Number of steps that can be undone.
    given : Marks, optional
        The marks that were given.
    stayed : dict
        After :meth:`Marked.undo`: number of rows by cluster that lie in clusters that the step made, because they were
        added or moved since.
    seconds : float
        Time of the step.
    """

    rows: NDArray[np.int64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    joined: list[tuple[int, int]] = field(default_factory=list)
    divided: list[tuple[int, int]] = field(default_factory=list)
    doubtful: list[Verdict] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    pairs: int = 0
    num_clusters: int = 0
    steps: int = 0
    seconds: float = 0.0
    given: Marks | None = None
    stayed: dict[int, int] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the result for JSON, without the rows."""
        return {
            "rows": len(self.rows),
            "pairs": self.pairs,
            "joined": [list(pair) for pair in self.joined],
            "divided": [list(pair) for pair in self.divided],
            "doubtful": [
                {"a": list(one.a[:6]), "b": list(one.b[:6]), "same": one.same, "answers": one.answers}
                for one in self.doubtful
            ],
            "lost_names": [vars(one) for one in self.lost],
            "stayed": {str(label): count for label, count in self.stayed.items()},
            "num_clusters": self.num_clusters,
            "steps": self.steps,
            "seconds": self.seconds,
        } | ({} if self.given is None else {"given": self.given.counts()})


class Marked:
    """A run that is held open while marks and names are given to it.

    Parameters
    ----------
    folder : path
        Folder of a run with stored edges.

    Attributes
    ----------
    labels : (N,) int64
        Cluster of every row, -1 for removed rows. Clusters that the run leaves out as too small have their ids here.
    marks : Marks
        All marks that hold or were given.
    names : dict
        Name by cluster id.

    Raises
    ------
    MissingFileError, InputError
        The folder holds no finished run with edges, or is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        at = OpenedFolder(self.folder)
        self.run = Run.open(at)
        self._at, self._parsed, self._held = at, self.run.parsed, False
        self._kept, self.names = read_kept(at, len(self.run.labels)), read_names(at)
        self._asker: Asker | None = None
        self._table: Columns | None = None
        self._pending: tuple[NDArray[np.int64], int]
        self._id = self._files_id()
        self.labels, self.next_label = self._clusters()

    @property
    def marks(self) -> Marks:
        return self._kept.marks

    @contextmanager
    def held(self, command: str) -> Iterator[None]:
        """Keep other commands from writing to the folder while the block runs. ``command`` is the name of this one.

        Raises
        ------
        InputError
            Another command writes to the folder.
        """
        with locked(self.folder, command):
            self._held = True
            try:
                yield
            finally:
                self._held = False

    def apply(self, marks: Marks | str | Path) -> Applied:
        """Add marks to the run and make the clusters again around them. Marks that the run has add no step.

        Parameters
        ----------
        marks : Marks or path
            New marks, or a file of marks. A new pair replaces an older opposite one.

        Raises
        ------
        InputError
            The marks break a rule of :meth:`Marks.of`, are of another run, or contradict each other or the earlier
            ones; the run changed since it was opened; or another process writes to it. The run is unchanged.
        """
        started = time.perf_counter()
        name = str(marks) if isinstance(marks, str | Path) else "marks"
        new = self.read(marks) if isinstance(marks, str | Path) else require_marks(marks, len(self.labels))
        require_consistent(self.marks.added(new), len(self.labels), name)
        number = self.run.record.get("applied", 0) + 1
        step = {"number": number, "next_label": self.next_label, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        kept = self._kept.with_step(new, step)
        before = self.labels
        if not kept.changed:
            none = np.empty(0, np.int64)
            settle(self.folder, APPLY, held=self._held)
            return Applied(none, none, none, num_clusters=self.num_clusters, steps=len(self._kept.steps), given=new)
        clusters = Clusters(before.copy(), self.next_label, self._parsed.edges)
        changes = enforce(clusters, kept.marks)
        flips = kept_edges(self._parsed, changes.rows, before, clusters.labels)
        undo = Undo.of(changes, clusters.labels, self._parsed, flips)
        names, lost = carried(self.names, before, clusters.labels) if len(changes.rows) else (self.names, [])
        kept = kept.with_names(self.names, names)
        with self._changing() as change:
            save_arrays(change.place / step_name(number), vars(undo))
            self._commit(change, clusters.labels, clusters.next_label, flips, kept, names)
        return Applied(
            changes.rows, changes.before, clusters.labels[changes.rows], changes.joined, changes.divided,
            changes.doubtful, lost, pairs_changed(before, clusters.labels, changes.rows), self.num_clusters,
            len(kept.steps), time.perf_counter() - started, new,
        )  # fmt: skip

    def read(self, path: str | Path) -> Marks:
        """Read a file of marks of this run, or of the run before rows were added. Raise InputError if it is wrong."""
        return read_marks(path, len(self.labels), self._earlier_sizes())

    def undo(self) -> Applied:
        """Take the last step of :meth:`apply` back: its marks, and the changes of the clusters.

        Rows that were added since stay where they are; so do rows whose cluster was changed since by another command.
        ``stayed`` has those of them that lie in clusters that the step made. Names that the step moved or took away
        come back.

        Raises
        ------
        InputError
            There is no step, or the run changed since it was opened.
        """
        started = time.perf_counter()
        if not self._kept.steps:
            raise InputError(f"{self.folder}: no marks were applied to this run; there is nothing to undo")
        last = self._kept.steps[-1]
        undo = Undo.read(self._at, last.number, len(self.labels), self.run.most_labels)
        before, labels = self.labels, self.labels.copy()
        back = before[undo.rows] == undo.after
        labels[undo.rows[back]] = undo.before[back]
        rows = undo.rows[back]
        made = np.unique(undo.after[undo.after >= last.next_label])
        stayed = {int(label): int(np.count_nonzero(labels == label)) for label in made}
        flips = kept_edges(self._parsed, rows, before, labels)
        if self.run.rule.communities:
            known = np.ones(len(flips), np.bool_)
        else:  # not all edges inside a cluster are kept: only those that the step took away come back
            known = self._parsed.kept[flips] | np.isin(flips, undo.flips(self._parsed))
        flips = flips[known]
        names, lost = carried(self._kept.names_before(self.names), before, labels)
        kept = self._kept.without_last()
        next_label = last.next_label if "steps" not in self.run.record else self.next_label
        with self._changing() as change:
            change.removed.append(step_name(last.number))
            self._commit(change, labels, next_label, flips, kept, names)
        return Applied(
            rows, before[rows], labels[rows], lost=lost, pairs=pairs_changed(before, labels, rows),
            num_clusters=self.num_clusters, steps=len(kept.steps), seconds=time.perf_counter() - started,
            stayed={label: count for label, count in stayed.items() if count},
        )  # fmt: skip

    def name(self, names: Mapping[int, str | None]) -> None:
        """Name clusters; None takes a name away. A warning says which other cluster has a name already.

        Raises
        ------
        InputError
            There is no such cluster, or a name is empty, longer than 200 characters, or more than one line.
        """
        found = dict(self.names)
        for label, name in names.items():
            self.require_cluster(label)
            found.pop(label, None)
            if name is not None:
                found[label] = require_name(name)
        for label in sorted(names.keys() & found.keys()):
            same = [other for other in sorted(found) if other != label and found[other] == found[label]]
            if same:
                a, b = (int(np.flatnonzero(self.labels == one)[0]) for one in (label, same[0]))
                log.warning(
                    "cluster %d: %s the name %r, too; if they are one person, a must-link makes one cluster: "
                    "starfc apply %s --same %d,%d", label, _have(same), found[label], self.folder, a, b,
                )  # fmt: skip
        with self._changing() as change:
            self._commit(change, self.labels, self.next_label, np.empty(0, np.int64), self._kept, found)

    def require_cluster(self, label: int) -> None:
        """Raise InputError if there is no cluster of an id."""
        if label < 0 or not (self.labels == label).any():
            raise InputError(f"{self.folder}: has no cluster {label}")

    def questions(self, count: int, stages: Stages | None = None, *, reading: bool = False) -> list[Question]:
        """Return the questions whose answers are expected to change the most pairs, at most ``count``.

        The first call of a run scores its candidate edges again (:func:`starfc.answers.evidence.evidence_of`) and keeps
        them in the folder (:mod:`starfc.runs.asked`). It needs the features. Later calls of an object need less than a
        second for 10^5 rows. With ``reading`` nothing is written into the folder.
        """
        first, asker = self._asker is None, self._asking(stages)
        found = asker.questions(self.labels, self.marks, count)
        if first and not reading:
            keep(self.run, self._at, asker, self.labels)
        return found

    def doubts(self) -> NDArray[np.float64]:
        """Return the expected share of strangers in the cluster of every row (:meth:`Asker.doubts`)."""
        return self._asking(None).doubts(self.labels, self.marks)

    def expected(self) -> Estimate:
        """Return the expected scores of the present clusters, given the answers (:mod:`starfc.answers.expected`)."""
        return expected(self._asking(None).evidence, self.labels, self.marks)

    def _asking(self, stages: Stages | None) -> Asker:
        if self._asker is None:
            self._asker = asker_of(self.run, self._at, self.labels, stages)
        return self._asker

    @property
    def num_steps(self) -> int:
        """Number of steps that can be undone."""
        return len(self._kept.steps)

    @property
    def files(self) -> Files | None:
        """The file of every row, None for rows that were removed; None if the run knows none."""
        if not self._at.has("clusters.parquet"):
            return None
        files = read_instances(self._at, len(self.labels))[1]
        removed = set(self.run.removed)
        return files and [None if row in removed else file for row, file in enumerate(files)]

    @property
    def num_clusters(self) -> int:
        """Number of clusters."""
        return len(np.unique(self.labels[self.labels >= 0]))

    def _clusters(self) -> tuple[NDArray[np.int64], int]:
        """Return the cluster of every row, and the lowest id for a new cluster."""
        record, at = self.run.record, self._at
        if "steps" in record:
            found = read_state(self.run)
            if found is None:
                state = first_state(self.run)
                return state.labels, state.next_label
            return found[0].labels, found[0].next_label
        stored = whole_clusters(at, self.run)
        labels = stored if stored is not None else numbered(Pairs.of(self._parsed), self.run.labels)
        return labels, max(record.get("next_label") or 0, int(labels.max(initial=-1)) + 1)

    def _earlier_sizes(self) -> set[int]:
        """Return the numbers of rows that the run had at some time."""
        return {step["first_row"] for step in self.run.record.get("steps", []) if "first_row" in step}

    def _files_id(self) -> str | None:
        files = OpenedFolder(self.folder)._files
        return None if files is None else files.id

    def _changing(self) -> Any:
        if self._files_id() != self._id:
            raise InputError(f"{self.folder}: another command changed the run since it was opened; open it again")
        return changing(self.folder, APPLY, held=self._held)

    def _commit(
        self,
        change: Change,
        labels: NDArray[np.int64],
        next_label: int,
        flips: NDArray[np.int64],
        kept: Kept,
        names: dict[int, str],
    ) -> None:
        """Write the files of a step, make them valid, and continue from them."""
        place, record, small = change.place, dict(self.run.record), self.run.record.get("min_cluster_size", 1)
        parsed = self._parsed
        if len(flips):
            marked = np.array(parsed.kept)
            marked[flips] = ~marked[flips]
            parsed = replace(parsed, kept=marked)
            save_array(place / "edges" / "kept.npy", marked)
        if self._table is None:
            self._table = Columns.read(self._at, self._parsed, self.labels)
        table = changed_columns(self._table, parsed, self.labels, labels)
        sizes = np.bincount(labels[labels >= 0])
        shown = labels if small == 1 else np.where((labels < 0) | (sizes[labels] >= small), labels, -1)
        write_clustering(place, shown, table.confidence, table.with_names(shown, names))
        if kept is not self._kept:
            kept.write(place / MARKS, len(labels))
            if (labels != self.labels).any():
                record |= {"metrics": {}, "labelled": False, "num_unlabelled": 0}
            record |= {
                "applied": max([record.get("applied", 0), *(step.number for step in kept.steps)]),
                "num_clusters": int(np.count_nonzero(sizes)),
                "num_singletons": int(np.count_nonzero(sizes == 1)),
                "num_left_out": int(sizes[sizes < small].sum()),
                "next_label": next_label,
            }
            if "steps" in record:
                save_array(place / STATE / "clusters.npy", labels)
                manifest = self._at.json(f"{STATE}/manifest.json", StateManifest).as_dict()
                write_json(place / STATE / "manifest.json", manifest | {"next_label": next_label})
            else:
                save_array(place / CLUSTERS, labels)
        if names or NAMES in change.owned:
            write_names(place / NAMES, names)
        write_run(place, record)
        change.afterwards.append(
            lambda: self._continue(replace(self.run, record=record, labels=shown, parsed=parsed), table, kept, names)
        )
        self._pending = labels, next_label

    def _continue(self, run: Run, table: Columns, kept: Kept, names: dict[int, str]) -> None:
        """Take over the state that was committed."""
        self.run, self._parsed, self._table, self._kept, self.names = run, run.parsed, table, kept, names
        self.labels, self.next_label = self._pending
        self._at = OpenedFolder(self.folder)
        self._id = self._files_id()


def _have(labels: list[int]) -> str:
    return f"cluster {labels[0]} has" if len(labels) == 1 else f"clusters {', '.join(map(str, labels))} have"


def pairs_changed(before: NDArray[np.int64], after: NDArray[np.int64], rows: NDArray[np.int64]) -> int:
    """Return the number of pairs of rows that are together in one of two clusterings (N,) and not in the other.

    ``rows`` are the rows whose label differs.
    """
    touched = np.isin(before, before[rows]) | np.isin(after, after[rows])
    one, other = before[touched], after[touched]
    both = np.unique(np.stack([one, other]), axis=1, return_counts=True)[1]
    counts = [np.unique(x, return_counts=True)[1] for x in (one, other)]
    pairs = [int((c.astype(np.int64) * (c - 1)).sum()) // 2 for c in (both, *counts)]
    return pairs[1] + pairs[2] - 2 * pairs[0]
