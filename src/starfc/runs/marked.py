"""Files of marks and names in a run's folder.

===================== ==============================================================================================
``marks.json``        all marks that were applied, as `starfc-marks` (:mod:`starfc.answers.marks_file`), and the
                      ``steps`` in which they came
``names.json``        names of clusters, by id (:mod:`starfc.answers.names`)
``answers/clusters``  cluster of every row, .npy (N,) int64; ``state/clusters.npy`` instead, once instances were added
``answers/step-*``    what each step changed, .npz, for `starfc undo`: ``rows`` (m,) int64, their clusters ``before``
                      and ``after``, and the edges (``flipped_rows``, ``flipped_cols``) whose ``kept`` changed
===================== ==============================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from starfc.answers.constraints import Changes, Clusters, enforce, kept_edges
from starfc.answers.marks import Marks
from starfc.answers.marks_file import AnswerRecord, MarksRecord, RowPair, answers_of, marks_of
from starfc.answers.names import NamesRecord, label_of, names_of, require_name
from starfc.clustering.parsing import ParsedEdges
from starfc.errors import InputError
from starfc.graph.checks import require_ids
from starfc.incremental.edges import entries_of
from starfc.incremental.state import State
from starfc.runs.folder import Run
from starfc.storage.atomic import write_bytes, write_json
from starfc.storage.opened import OpenedFolder
from starfc.storage.records import Count, Record, Text
from starfc.storage.safe import read_own_npz

MARKS, NAMES, CLUSTERS = "marks.json", "names.json", "answers/clusters.npy"


class AppliedStep(Record):
    """A step of `starfc apply`: the marks that it added, those that these replaced, and what became of names.

    ``renamed`` has the name of a cluster before and after the step, by id, if they differ; None: no name.
    """

    number: Count
    must_link: list[RowPair]
    cannot_link: list[RowPair]
    answers: Count
    replaced_must: list[RowPair] = []
    replaced_cannot: list[RowPair] = []
    replaced_answers: list[AnswerRecord] = []
    renamed: dict[str, Annotated[list[Text | None], Field(min_length=2, max_length=2)]] = {}
    next_label: Count
    time: Text = ""


class AppliedRecord(MarksRecord):
    """``marks.json`` of a run."""

    steps: list[AppliedStep] = []


@dataclass(frozen=True)
class Kept:
    """The marks of a run, and the steps in which they were applied."""

    marks: Marks = field(default_factory=Marks)
    steps: tuple[AppliedStep, ...] = ()

    def with_step(self, new: Marks, step: dict[str, Any]) -> Kept:
        """Return the marks after a step that adds ``new``. ``step`` has the number, next label and time of the step."""
        marks = self.marks.added(new)

        def only(these: NDArray[np.int64], those: NDArray[np.int64]) -> list[list[int]]:
            known = {*map(tuple, those.tolist())}
            return [pair for pair in these.tolist() if tuple(pair) not in known]

        record = AppliedStep(
            must_link=only(marks.must, self.marks.must),
            cannot_link=only(marks.cannot, self.marks.cannot),
            answers=len(marks.answers) - len(self.marks.answers),
            replaced_must=only(self.marks.must, marks.must),
            replaced_cannot=only(self.marks.cannot, marks.cannot),
            replaced_answers=[
                AnswerRecord(**old.record())
                for old, new in zip(self.marks.answers, marks.answers, strict=False)
                if old.same != new.same
            ],
            **step,
        )
        return Kept(marks, (*self.steps, record))

    def with_names(self, before: Mapping[int, str], after: Mapping[int, str]) -> Kept:
        """Return the marks with what became of the names in the last step."""
        changed = sorted(label for label in before.keys() | after.keys() if before.get(label) != after.get(label))
        renamed = {str(label): [before.get(label), after.get(label)] for label in changed}
        return replace(self, steps=(*self.steps[:-1], self.steps[-1].model_copy(update={"renamed": renamed})))

    def names_before(self, names: Mapping[int, str]) -> dict[int, str]:
        """Return the names before the last step. ``names`` are those of today; one given since then stays."""
        found = dict(names)
        for key, (before, after) in self.steps[-1].renamed.items():
            label = int(key)
            if found.get(label) != after:
                continue
            found.pop(label, None)
            if before is not None:
                found[label] = before
        return found

    def without_last(self) -> Kept:
        """Return the marks before the last step."""
        last = self.steps[-1]

        def back(pairs: NDArray[np.int64], added: list[list[int]], replaced: list[list[int]]) -> NDArray[np.int64]:
            gone = {*map(tuple, added)}
            left = [pair for pair in pairs.tolist() if tuple(pair) not in gone]
            return np.array([*left, *replaced], np.int64).reshape(-1, 2)

        marks = Marks(
            back(self.marks.must, last.must_link, last.replaced_must),
            back(self.marks.cannot, last.cannot_link, last.replaced_cannot),
            self.marks.answers[: len(self.marks.answers) - last.answers],
        )
        return Kept(marks.added(Marks(answers=answers_of(last.replaced_answers))), self.steps[:-1])

    @property
    def changed(self) -> bool:
        """Whether the last step changed the marks."""
        last = self.steps[-1]
        return any((last.must_link, last.cannot_link, last.answers, last.replaced_answers))

    def write(self, path: Path, num_instances: int) -> None:
        """Write ``marks.json``."""
        content = self.marks.record(num_instances) | {"steps": [step.model_dump() for step in self.steps]}
        write_bytes(path, json.dumps(content).encode() + b"\n")


def read_kept(at: OpenedFolder, num_instances: int) -> Kept:
    """Read ``marks.json`` of a run with N rows; without it there are no marks."""
    if not at.has(MARKS):
        return Kept()
    record = at.json(MARKS, AppliedRecord)
    name = str(at.folder / MARKS)
    if record.num_instances > num_instances:
        raise InputError(f"{name}: marks of {record.num_instances:,} rows, but the run has {num_instances:,}")
    for step in record.steps:
        Marks.of(num_instances, step.replaced_must, step.replaced_cannot, answers_of(step.replaced_answers), name)
        for key, names in step.renamed.items():
            label_of(key, name)
            for one in names:
                if one is not None:
                    require_name(one, f"{name}: names, {key}")
    return Kept(marks_of(record, num_instances, name), tuple(record.steps))


def read_names(at: OpenedFolder) -> dict[int, str]:
    """Read ``names.json`` of a run; without it there are no names."""
    return names_of(at.json(NAMES, NamesRecord).names, str(at.folder / NAMES)) if at.has(NAMES) else {}


def write_names(path: Path, names: dict[int, str]) -> None:
    """Write ``names.json``."""
    write_json(path, {"names": {str(label): names[label] for label in sorted(names)}})


@dataclass(frozen=True)
class Undo:
    """What a step changed, for the way back; see the docstring of the module. Rows are (m,), edges (e,) int64."""

    rows: NDArray[np.int64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    flipped_rows: NDArray[np.int64]
    flipped_cols: NDArray[np.int64]

    @classmethod
    def of(cls, changes: Changes, labels: NDArray[np.int64], parsed: ParsedEdges, flips: NDArray[np.int64]) -> Undo:
        """Return what led from ``changes.before`` to ``labels``; ``flips`` are positions of edges."""
        rows = np.searchsorted(parsed.edges.indptr, flips, side="right") - 1
        return cls(changes.rows, changes.before, labels[changes.rows], rows, parsed.edges.cols[flips].astype(np.int64))

    @classmethod
    def read(cls, at: OpenedFolder, number: int, num_instances: int, most: int) -> Undo:
        """Read a step's file, and check that its rows and clusters exist."""
        path = at.verified(step_name(number))
        arrays = read_own_npz(path)
        if set(arrays) != set(cls.__dataclass_fields__) or any(
            array.ndim != 1 or array.dtype != np.int64 for array in arrays.values()
        ):
            raise InputError(f"{path}: does not hold the arrays of a step")
        undo = cls(**arrays)
        if not len(undo.rows) == len(undo.before) == len(undo.after) or len(undo.flipped_rows) != len(
            undo.flipped_cols
        ):
            raise InputError(f"{path}: holds arrays of different lengths")
        try:
            for name in ("rows", "flipped_rows", "flipped_cols"):
                require_ids(name, arrays[name], 0, num_instances)
            for name in ("before", "after"):
                require_ids(name, arrays[name], 0, most)
        except ValueError as error:
            raise InputError(f"{path}: damaged ({error})") from None
        return undo

    def flips(self, parsed: ParsedEdges) -> NDArray[np.int64]:
        """Return the positions of the edges whose ``kept`` changed, among the present edges."""
        edges = parsed.edges
        rows = np.unique(self.flipped_rows)
        entries = entries_of(edges, rows)
        keys = np.repeat(rows, np.diff(edges.indptr)[rows]) * edges.num_nodes + edges.cols[entries]
        return entries[np.isin(keys, self.flipped_rows * edges.num_nodes + self.flipped_cols)]


def step_name(number: int) -> str:
    """Return the name of a step's file."""
    return f"answers/step-{number}.npz"


def whole_clusters(at: OpenedFolder, run: Run) -> NDArray[np.int64] | None:
    """Return the cluster of every row (N,) int64 that `starfc apply` stored; None if it stored none."""
    if "steps" in run.record or not at.has(CLUSTERS):
        return None
    labels = at.npy(CLUSTERS, 1, np.int64)
    try:
        require_ids("clusters", labels, -1, run.most_labels)
        if len(labels) != len(run.labels):
            raise ValueError(f"{len(labels):,} rows instead of {len(run.labels):,}")
    except ValueError as error:
        raise InputError(f"{at.folder / CLUSTERS}: damaged ({error}); apply the marks again") from None
    return np.array(labels)


def hold(state: State, marks: Marks, earlier: NDArray[np.int64]) -> Changes:
    """Make the marks hold again after a step of `starfc assign`. This changes the state.

    ``earlier`` are the clusters before the step; a part that leaves a cluster gets the id back that it had.
    """
    before = state.labels.copy()
    clusters = Clusters(state.labels, state.next_label, state.clustered.edges, earlier)  # with the edges to copies
    changes = enforce(clusters, marks)
    if not len(changes.rows):
        return changes
    flips = kept_edges(state.parsed, changes.rows, before, state.labels)
    kept = np.array(state.parsed.kept)
    kept[flips] = ~kept[flips]
    state.parsed, state.next_label = replace(state.parsed, kept=kept), clusters.next_label
    touched = np.zeros(state.next_label, np.bool_)
    touched[: len(state.touched)] = state.touched
    touched[changes.before[changes.before >= 0]] = True
    touched[state.labels[changes.rows]] = True
    state.touched = touched
    return changes
