"""The questions whose answers are expected to change the most pairs.

A question is about two sides of rows: "Is this one person?" There are two kinds:

* ``join``: two clusters that may be one;
* ``split``: two parts of a cluster that may be two.

A question is asked again, with the same sides, if its answer may be wrong and many pairs depend on it.

The gain of a question is the expected number of wrong pairs: |A| |B| times the probability that the present clusters
are wrong about the two sides. This probability comes from the evidence between the sides (:mod:`starfc.answers.judge`),
which earlier answers have taught, and from the answers about the same sides. Each answer that two parts of a cluster
are the same lowers the gain of its other divisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from starfc.answers.candidates import Divisions, join_candidates, split_candidates
from starfc.answers.constraints import Verdict, cluster_of, verdicts
from starfc.answers.covariances import Covariances
from starfc.answers.divide import LEAST
from starfc.answers.evidence import Evidence, Sides
from starfc.answers.judge import Judge
from starfc.answers.marks import Answer, Kind, Marks, closures
from starfc.answers.measures import MEASURES, pair_measures

SHOWN = 6  # most telling rows of each side
LISTED = 1000  # rows of a side that a question lists at most
EACH = 3  # questions about one cluster among those that are returned together, as the larger side
_NEAREST = 2  # of the first rows, so many are those nearest to the other side
AGAIN = 0.5  # share of the gain of a division that remains when another one of the cluster was answered "the same"


@dataclass(frozen=True)
class Question:
    """A question about two sides.

    Attributes
    ----------
    kind : {'join', 'split'}
    a, b : tuple of int
        Rows of the sides, the most telling first, at most :data:`LISTED` each; an answer returns them.
    clusters : (int, int)
        The clusters of the sides.
    sizes : (int, int)
        Number of rows of each side.
    p : float
        Probability that both sides are one identity.
    gain : float
        Expected number of wrong pairs that the answer sets right.
    asked : int
        Number of earlier answers to the same question.
    """

    kind: Kind
    a: tuple[int, ...]
    b: tuple[int, ...]
    clusters: tuple[int, int]
    sizes: tuple[int, int]
    p: float
    gain: float
    asked: int = 0

    @property
    def shown(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The most telling rows of both sides."""
        return self.a[:SHOWN], self.b[:SHOWN]

    def answer(self, same: bool) -> Answer:
        """Return an answer to this question: whether both sides are one identity."""
        return Answer(self.a, self.b, same, self.p, self.kind, self.asked)

    def record(self, files: Sequence[Path | None] | None = None) -> dict[str, Any]:
        """Return the question for JSON: an entry of ``answers`` in a file of marks, with ``same`` to be filled in.

        With the file of every row, ``files`` are those of the rows that are shown.
        """
        named = {} if files is None else {"files": [_names(files, rows) for rows in self.shown]}
        return {
            "same": None,
            "kind": self.kind,
            "clusters": list(self.clusters),
            "sizes": list(self.sizes),
            "shown": [list(rows) for rows in self.shown],
            **named,
            "p": round(self.p, 4),
            "gain": round(self.gain, 1),
            "asked": self.asked,
            "a": list(self.a),
            "b": list(self.b),
        }


def _names(files: Sequence[Path | None], rows: Sequence[int]) -> list[str | None]:
    found = [files[row] for row in rows]
    return [None if path is None else str(path) for path in found]


class Asker:
    """Finds questions. It keeps what does not change from one call to the next.

    Parameters
    ----------
    evidence : Evidence
        The evidence of the set.
    divided : dict, optional
        Divisions of clusters from an earlier time, by the bytes of their rows (int64).
    measured : bool
        Whether all clusters are those of that time. Otherwise the divisions of a cluster are still known, but not
        their measures.

    Attributes
    ----------
    divided : dict
        The divisions of the clusters of the last call, in the same form.
    """

    def __init__(
        self, evidence: Evidence, divided: Mapping[bytes, Divisions] | None = None, measured: bool = False
    ) -> None:
        self.evidence = evidence
        self.divided = dict(divided or {}) if measured else {}
        self._masks = {} if measured else {key: one.masks for key, one in (divided or {}).items()}
        self._answered: dict[tuple[tuple[int, ...], tuple[int, ...]], NDArray[np.float64]] = {}

    def questions(self, labels: NDArray[np.int64], marks: Marks, count: int, spread: bool = True) -> list[Question]:
        """Return the questions of the highest gain, highest first.

        A cluster is the smaller side of at most one question, and the larger side of at most :data:`EACH`.

        Parameters
        ----------
        labels : (N,) int64
            Present cluster of every row; -1 for removed rows.
        marks : Marks
            What is known. Sides that a certain pair decides are not asked about.
        count : int
            Most questions to return.
        spread : bool
            Whether to limit the questions about one cluster.
        """
        number = int(labels.max(initial=-1)) + 1
        if not number:
            return []
        sums = self.evidence.clusters(labels, number)
        model = Covariances.of(self.evidence, sums)
        there = verdicts(marks.answers)
        ends = [(cluster_of(labels, verdict.a), cluster_of(labels, verdict.b)) for verdict in there]
        decided = {(min(x), max(x)) for x in ends} | {*map(tuple, np.sort(labels[marks.cannot], axis=1).tolist())}
        found = [
            *_again(there, ends, sums.sizes),
            *self._joins(labels, decided, there, sums, model, 4 * count),
            *self._splits(labels, marks, there, ends, model),
        ]
        found = _spread(found, count) if spread else sorted(found, key=lambda one: -one.gain)[:count]
        return [self._telling(question, labels) for question in found]

    def doubts(self, labels: NDArray[np.int64], marks: Marks) -> NDArray[np.float64]:
        """Return the expected share of strangers in the cluster of every row, (N,).

        It is that of the division for which it is largest: the share of its smaller side, times the probability that
        the sides are two identities; 0 for removed rows and in clusters of fewer than 4 rows.
        """
        number = int(labels.max(initial=-1)) + 1
        if not number:
            return np.zeros(len(labels))
        model = Covariances.of(self.evidence, self.evidence.clusters(labels, number))
        every = self._divisions(labels, model)
        judge = self._taught("split", _measures(every), labels, model, verdicts(marks.answers))
        doubts = np.zeros(number)
        for label, _, found in every:
            share = found.masks.mean(axis=1)
            strangers = np.minimum(share, 1 - share) * expit(-judge.log_odds(found.measures))
            doubts[label] = strangers.max(initial=0)
        return np.where(labels < 0, 0, doubts[labels])

    def _taught(
        self,
        kind: Kind,
        candidates: NDArray[np.float64],
        labels: NDArray[np.int64],
        model: Covariances,
        there: Sequence[Verdict],
    ) -> Judge:
        """Return the judge of joins or splits after the answers. ``candidates`` (m, 19) are the present measures."""
        judge = Judge.of(kind, candidates)
        measures, same = [], []
        for verdict in there:
            if verdict.kind != kind:
                continue
            key = (verdict.a, verdict.b)
            if key not in self._answered:
                self._answered[key] = pair_measures(self.evidence, model, labels, verdict.a, verdict.b)
            measures.append(self._answered[key])
            same.append(verdict.same)
        return judge.taught(np.array(measures), np.array(same)) if same else judge

    def _joins(
        self,
        labels: NDArray[np.int64],
        decided: set[tuple[int, int]],
        there: Sequence[Verdict],
        sums: Sides,
        model: Covariances,
        most: int,
    ) -> Iterable[Question]:
        """Yield questions about clusters that may be one, highest gain first, at most ``most``."""
        found = join_candidates(self.evidence, labels, sums, model)
        p = expit(self._taught("join", found.measures, labels, model, there).log_odds(found.measures))
        gain = p * sums.sizes[found.a] * sums.sizes[found.b]
        yielded = 0
        for at in np.argsort(-gain, kind="stable").tolist():
            a, b = int(found.a[at]), int(found.b[at])
            if (a, b) in decided:
                continue
            sizes = (int(sums.sizes[a]), int(sums.sizes[b]))
            yield Question("join", (), (), (a, b), sizes, float(p[at]), float(gain[at]))
            yielded += 1
            if yielded == most:
                return

    def _splits(
        self,
        labels: NDArray[np.int64],
        marks: Marks,
        there: Sequence[Verdict],
        ends: Sequence[tuple[int, int]],
        model: Covariances,
    ) -> Iterable[Question]:
        """Yield a question about each cluster: the division of the highest gain that is not decided."""
        together: dict[int, list[tuple[Sequence[int], Sequence[int]]]] = {}
        for verdict, (a, b) in zip(there, ends, strict=True):
            if a == b:
                together.setdefault(a, []).append((verdict.a, verdict.b))
        for a, b in _tied(marks, labels):
            together.setdefault(int(labels[a]), []).append(((a,), (b,)))
        every = self._divisions(labels, model)
        judge = self._taught("split", _measures(every), labels, model, there)
        for label, rows, found in every:
            masks, p = found.masks, expit(judge.log_odds(found.measures))
            sizes = masks.sum(axis=1)
            gain = (1 - p) * sizes * (len(rows) - sizes)
            for one, other in together.get(label, []):  # the more alike a division, the less it can tell
                gain *= AGAIN * (1 - _overlap(masks, rows, one, other))
                gain[_divides(masks, rows, one, other)] = -1
            if gain.max(initial=-1) < 0:
                continue
            at = int(np.argmax(gain))
            sides = tuple(rows[masks[at]].tolist()), tuple(rows[~masks[at]].tolist())
            numbers = (len(sides[0]), len(sides[1]))
            yield Question("split", *sides, (label, label), numbers, float(p[at]), float(gain[at]))

    def _divisions(
        self, labels: NDArray[np.int64], model: Covariances
    ) -> list[tuple[int, NDArray[np.int64], Divisions]]:
        """Return the clusters that can be divided, with their rows and divisions; those known from before are kept."""
        present: dict[bytes, Divisions] = {}
        every = []
        for label, rows in _members(labels):
            if len(rows) < LEAST:  # smaller clusters hold few pairs
                continue
            key = rows.tobytes()
            known = self.divided.get(key)
            if known is None:
                known = split_candidates(self.evidence, rows, labels, model, self._masks.get(key))
            present[key] = known
            every.append((label, rows, known))
        self.divided = present
        return every

    def _telling(self, question: Question, labels: NDArray[np.int64]) -> Question:
        """Return the question with the rows of its sides, the most telling first."""
        if question.asked:
            return question
        a, b = (np.array(side, np.int64) for side in (question.a, question.b))
        if question.kind == "join":
            a, b = (np.flatnonzero(labels == label) for label in question.clusters)
        sides = self._ordered(a, b), self._ordered(b, a)
        return replace(question, a=tuple(sides[0].tolist()), b=tuple(sides[1].tolist()))

    def _ordered(self, rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of a side: the most typical first, but two of the first rows are nearest to the other side.

        Features measure both by the similarity to the mean of the side, or Σ p of the edges to it if there are none.
        """
        if self.evidence.features is not None:
            x = self.evidence.rows(rows)
            typical, near = x @ x.mean(axis=0), x @ self.evidence.rows(others).mean(axis=0)
        else:
            matrix = self.evidence.matrix[rows]
            typical, near = (np.asarray(matrix[:, side].sum(axis=1)).ravel() for side in (rows, others))
        order = np.lexsort((rows, -typical))
        nearest = np.lexsort((rows, -near))[:_NEAREST]
        first = order[: SHOWN - _NEAREST]
        nearest = nearest[~np.isin(nearest, first)]
        rest = order[~np.isin(order, np.concatenate([first, nearest]))]
        return rows[np.concatenate([first, nearest, rest])[:LISTED]]


def _tied(marks: Marks, labels: NDArray[np.int64]) -> Iterable[tuple[int, int]]:
    """Yield pairs of rows of one cluster that chains of must-links connect, also chains through removed rows."""
    rows = np.unique(marks.must)
    rows = rows[labels[rows] >= 0]
    if not len(rows):
        return
    group = closures(marks, len(labels))[rows]
    order = np.lexsort((rows, labels[rows], group))
    rows, group = rows[order], group[order]
    next_ = (group[:-1] == group[1:]) & (labels[rows[:-1]] == labels[rows[1:]])
    yield from zip(rows[:-1][next_].tolist(), rows[1:][next_].tolist(), strict=True)


def _measures(every: Sequence[tuple[int, NDArray[np.int64], Divisions]]) -> NDArray[np.float64]:
    """Return the measures (m, 19) of all divisions."""
    return np.concatenate([np.empty((0, MEASURES)), *(found.measures for _, _, found in every)])


def _again(there: Sequence[Verdict], ends: Sequence[tuple[int, int]], sizes: NDArray[np.float64]) -> Iterable[Question]:
    """Yield the questions that were asked, with the probability that the present clusters are wrong about them."""
    for verdict, (a, b) in zip(there, ends, strict=True):
        if min(a, b) < 0:
            continue
        p = float(expit(verdict.odds))
        if a == b:
            pairs, wrong = (len(verdict.a), len(verdict.b)), 1 - p
        else:
            pairs, wrong = (int(sizes[a]), int(sizes[b])), p
        gain = wrong * pairs[0] * pairs[1]
        yield Question(verdict.kind, verdict.a, verdict.b, (a, b), pairs, p, gain, verdict.answers)


def _spread(questions: Iterable[Question], count: int) -> list[Question]:
    """Return the questions of the highest gain; a cluster is in one as the smaller side, and in few as the larger."""
    smaller: dict[int, int] = {}
    larger: dict[int, int] = {}
    chosen: list[Question] = []
    for question in sorted(questions, key=lambda one: (-one.gain, one.clusters)):
        small, large = question.clusters
        if (question.sizes[0], -small) > (question.sizes[1], -large):
            small, large = large, small
        if small in smaller or small in larger or large in smaller or larger.get(large, 0) >= EACH:
            continue
        smaller[small] = 1
        larger[large] = larger.get(large, 0) + 1
        chosen.append(question)
        if len(chosen) == count:
            break
    return chosen


def _members(labels: NDArray[np.int64]) -> Iterable[tuple[int, NDArray[np.int64]]]:
    """Yield every cluster with its rows, in increasing order."""
    order = np.argsort(labels, kind="stable")
    order = order[np.count_nonzero(labels < 0) :]
    found, starts = np.unique(labels[order], return_index=True)
    yield from zip(found.tolist(), np.split(order, starts[1:]), strict=True)


def _divides(
    masks: NDArray[np.bool_], rows: NDArray[np.int64], one: Sequence[int], other: Sequence[int]
) -> NDArray[np.bool_]:
    """Return which divisions (v,) of a cluster's rows separate most rows of two sides."""
    share = [masks[:, np.isin(rows, side)].mean(axis=1) > 0.5 for side in (one, other)]
    return share[0] != share[1]


def _overlap(
    masks: NDArray[np.bool_], rows: NDArray[np.int64], one: Sequence[int], other: Sequence[int]
) -> NDArray[np.float64]:
    """Return how far divisions (v,) of a cluster's rows are the same as that of two sides: |A ∩ B| / |A ∪ B|."""
    found = np.zeros(len(masks))
    for side in (one, other):
        known = np.isin(rows, side)
        for part in (masks, ~masks):
            found = np.maximum(found, (part & known).sum(axis=1) / np.maximum((part | known).sum(axis=1), 1))
    return found
