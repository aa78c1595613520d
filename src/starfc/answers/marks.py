"""Marks: which rows a person says are one identity, and which are not. Check them, find contradictions.

Their file is read by :mod:`starfc.answers.marks_file`.

Pairs are certain: they always hold. An answer is evidence about two sides
of rows: a person errs in some answers, so an answer that overwhelming evidence contradicts does not count
(:mod:`starfc.answers.constraints`).
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components

from starfc.errors import InputError
from starfc.runtime.words import counted

Kind = Literal["join", "split"]
FORMAT, VERSION = "starfc-marks", 1
#: What messages say about the keys of a file.
NEEDED = {
    "format": f'"{FORMAT}"',
    "version": f"{VERSION}",
    "num_instances": "the number of rows of the run",
    "must_link": "pairs [row, row]",
    "cannot_link": "pairs [row, row]",
    "answers": "a list of entries",
    "a": "a list of rows",
    "b": "a list of rows",
    "same": "true, false or null",
    "p": "a number from 0 to 1",
    "kind": '"join" or "split"',
    "asked": "the number of earlier answers",
}


@dataclass(frozen=True)
class Answer:
    """An answer to a question about two sides.

    Attributes
    ----------
    a, b : tuple of int
        Rows of the two sides of the question.
    same : bool
        Whether the person says that both sides are one identity.
    p : float
        Probability, before the answer, that both sides are one identity; the question names it.
    kind : {'join', 'split'}
        Whether the question was about two clusters, or about two parts of one.
    asked : int
        Number of answers to the same question before this one. So an answer that is applied twice counts once, and
        one with another ``same`` corrects it.
    """

    a: tuple[int, ...]
    b: tuple[int, ...]
    same: bool
    p: float = 0.5
    kind: Kind = "join"
    asked: int = 0

    @cached_property
    def sides(self) -> frozenset[frozenset[int]]:
        """The two sides, whichever is first."""
        return frozenset((frozenset(self.a), frozenset(self.b)))

    def record(self) -> dict[str, Any]:
        """Return the answer as an entry of a file of marks."""
        return {
            "a": list(self.a),
            "b": list(self.b),
            "same": self.same,
            "p": self.p,
            "kind": self.kind,
            "asked": self.asked,
        }


def _no_pairs() -> NDArray[np.int64]:
    return np.empty((0, 2), np.int64)


@dataclass(frozen=True)
class Marks:
    """Marks of rows 0..N-1.

    Attributes
    ----------
    must, cannot : (m, 2), (c, 2) int64
        Pairs of rows of one identity, and of two identities. The smaller row first, without repetitions, in the order
        in which they were given.
    answers : tuple of Answer
        Answers to questions, in the order in which they were given; one for each question and ``asked``.
    unanswered : int
        Number of questions without an answer in the file that was read.
    """

    must: NDArray[np.int64] = field(default_factory=_no_pairs)
    cannot: NDArray[np.int64] = field(default_factory=_no_pairs)
    answers: tuple[Answer, ...] = ()
    unanswered: int = 0

    @classmethod
    def of(
        cls,
        num_instances: int,
        must_link: ArrayLike | None = None,
        cannot_link: ArrayLike | None = None,
        answers: Iterable[Answer] = (),
        name: str = "marks",
    ) -> Marks:
        """Check pairs and answers, and return them as marks.

        Parameters
        ----------
        num_instances : int
            Number of rows N.
        must_link, cannot_link : (m, 2) integers, optional
            Pairs of rows.
        answers : iterable of Answer
            Answers to questions.
        name : str
            What messages call the source of the marks.

        Raises
        ------
        InputError
            A pair is not two different rows from 0 to N - 1, or is in both lists; or an answer breaks a rule of
            :class:`Answer`, or does not have two sides of rows without a common one.
        """
        must = _pairs(must_link, num_instances, name, "must_link")
        cannot = _pairs(cannot_link, num_instances, name, "cannot_link")
        both = {*map(tuple, must.tolist())} & {*map(tuple, cannot.tolist())}
        if both:
            shown = ", ".join(f"{a} and {b}" for a, b in sorted(both)[:5])
            raise InputError(f"{name}: {counted(len(both), 'pair')} in both must_link and cannot_link ({shown})")
        if not isinstance(answers, Iterable):
            raise InputError(f"{name}: answers: several of type Answer needed; found {short(answers)}")
        checked = [
            _answer(answer, num_instances, f"{name}: answers, entry {at}") for at, answer in enumerate(answers, 1)
        ]
        return cls(must, cannot, _latest(checked))

    def __len__(self) -> int:
        return len(self.must) + len(self.cannot) + len(self.answers)

    def counts(self) -> dict[str, int]:
        """Return the numbers of answers, pairs, and questions without an answer, for JSON."""
        return {
            "answers": len(self.answers),
            "must_link": len(self.must),
            "cannot_link": len(self.cannot),
            "unanswered": self.unanswered,
        }

    def added(self, other: Marks) -> Marks:
        """Return these marks and those of ``other`` that are not among them.

        A newer pair replaces an older opposite one. An answer with the sides and ``asked`` of an older one, but with
        another ``same``, takes its place.

        Raises nothing: contradictions are found by :func:`contradictions`.
        """
        must = _without(self.must, other.cannot)
        cannot = _without(self.cannot, other.must)
        return Marks(
            np.concatenate([must, _without(other.must, must)]),
            np.concatenate([cannot, _without(other.cannot, cannot)]),
            _latest((*self.answers, *other.answers)),
        )

    def record(self, num_instances: int) -> dict[str, Any]:
        """Return the marks as the JSON object that :func:`starfc.answers.marks_file.read_marks` reads."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "num_instances": num_instances,
            "must_link": self.must.tolist(),
            "cannot_link": self.cannot.tolist(),
            "answers": [answer.record() for answer in self.answers],
        }


@dataclass(frozen=True)
class Contradiction:
    """A pair of rows that cannot be one identity, and pairs that together say that they are.

    Attributes
    ----------
    cannot : (int, int)
        The pair of ``cannot_link``.
    must : tuple of (int, int)
        The fewest pairs of ``must_link`` that lead from its first row to its second.
    """

    cannot: tuple[int, int]
    must: tuple[tuple[int, int], ...]

    def text(self) -> str:
        """Return the contradiction as one sentence."""
        chain = ", ".join(f"{a} and {b}" for a, b in self.must)
        return f"cannot_link {self.cannot[0]} and {self.cannot[1]}, but must_link {chain}"


def require_marks(marks: Marks, num_instances: int) -> Marks:
    """Return marks that were made in Python, checked as :meth:`Marks.of` checks them."""
    if not isinstance(marks, Marks):
        raise InputError(f"marks: must be of type Marks (starfc.Marks); found {short(marks)}")
    return Marks.of(num_instances, marks.must, marks.cannot, marks.answers)


def closures(marks: Marks, num_instances: int) -> NDArray[np.int64]:
    """Return the must-link closure of every row, (N,) int64: rows that must-links connect have the same number."""
    return _closures(marks.must, num_instances)


def contradictions(marks: Marks, num_instances: int) -> list[Contradiction]:
    """Find the cannot-links between rows that must-links say are one identity.

    Time and memory are linear in N and the number of marks; each contradiction needs one more search of the must-links.
    """
    closure = _closures(marks.must, num_instances)
    wrong = marks.cannot[closure[marks.cannot[:, 0]] == closure[marks.cannot[:, 1]]]
    if not len(wrong):
        return []
    graph = _graph(marks.must, num_instances)
    found = []
    for a, b in wrong.tolist():
        before = breadth_first_order(graph, a, directed=False)[1]
        chain, row = [], b
        while row != a:
            above = int(before[row])
            chain.append((min(row, above), max(row, above)))
            row = above
        found.append(Contradiction((a, b), tuple(reversed(chain))))
    return found


def require_consistent(marks: Marks, num_instances: int, name: str = "marks") -> None:
    """Raise InputError that lists the contradictions among marks, with the marks that cause them."""
    found = contradictions(marks, num_instances)
    if found:
        shown = "; ".join(one.text() for one in found[:5]) + ("; ..." if len(found) > 5 else "")
        raise InputError(f"{name}: {counted(len(found), 'contradiction')}: {shown}; take back one mark of each")


def _latest(answers: Iterable[Answer]) -> tuple[Answer, ...]:
    """Return one answer for each question and ``asked``: the first one that says what the last one says."""
    found: dict[tuple[frozenset[frozenset[int]], int], Answer] = {}
    for answer in answers:
        key = (answer.sides, answer.asked)
        if key not in found or found[key].same != answer.same:
            found[key] = answer  # the place of the first one stays
    return tuple(found.values())


def _closures(pairs: NDArray[np.int64], num_instances: int) -> NDArray[np.int64]:
    return connected_components(_graph(pairs, num_instances), directed=False)[1].astype(np.int64)


def _graph(pairs: NDArray[np.int64], num_instances: int) -> sparse.csr_matrix:
    ones = np.ones(len(pairs), np.int8)
    return sparse.csr_matrix((ones, (pairs[:, 0], pairs[:, 1])), (num_instances, num_instances))


def _pairs(given: ArrayLike | None, num_instances: int, name: str, key: str) -> NDArray[np.int64]:
    """Return pairs (m, 2) int64, each with the smaller row first, without repetitions. Raise InputError if not rows."""
    rule = f"{name}: {key}: pairs of two different rows from 0 to {num_instances - 1} needed"
    if given is None:
        return _no_pairs()
    try:
        pairs = np.asarray(given)
    except (ValueError, OverflowError):
        raise InputError(f"{rule}; found entries of different lengths") from None
    if pairs.size == 0:
        return _no_pairs()
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise InputError(f"{rule}; found shape {pairs.shape}, {pairs.dtype}")
    wrong = ((pairs < 0) | (pairs >= num_instances)).any(axis=1) | (pairs[:, 0] == pairs[:, 1])
    if wrong.any():
        raise InputError(f"{rule}; found {pairs[wrong][:5].tolist()}")
    return _without(np.sort(pairs.astype(np.int64), axis=1), _no_pairs())


def _answer(answer: Answer, num_instances: int, name: str) -> Answer:
    """Return an answer with Python's own types. Raise InputError if it breaks a rule."""
    if not isinstance(answer, Answer):
        raise InputError(f"{name}: an Answer needed; found {short(answer)}")
    sides = [_side(rows, num_instances) for rows in (answer.a, answer.b)]
    if not all(sides) or set(sides[0]) & set(sides[1]):
        raise InputError(
            f"{name}: two sides of rows from 0 to {num_instances - 1} needed, with no row in both; found "
            f"{short(answer.a)} and {short(answer.b)}"
        )
    for key, good in (
        ("same", isinstance(answer.same, bool | np.bool_)),
        ("p", _is_number(answer.p, Real) and 0 <= answer.p <= 1),
        ("kind", isinstance(answer.kind, str) and answer.kind in get_args(Kind)),
        ("asked", _is_number(answer.asked, Integral) and 0 <= answer.asked < 2**63),
    ):
        if not good:
            raise InputError(f"{name}, {key}: {NEEDED[key]} needed; found {short(getattr(answer, key))}")
    return Answer(sides[0], sides[1], bool(answer.same), float(answer.p), answer.kind, int(answer.asked))


def _side(rows: ArrayLike, num_instances: int) -> tuple[int, ...]:
    """Return the rows of a side; none if they are not all rows from 0 to N - 1."""
    try:
        found = np.asarray(rows)
    except (ValueError, OverflowError):
        return ()
    if found.ndim != 1 or found.dtype.kind not in "iu" or ((found < 0) | (found >= num_instances)).any():
        return ()
    return tuple(found.tolist())


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def short(value: object) -> str:
    """Return what was found as short text for messages."""
    return " ".join(reprlib.repr(value).split())


def _without(pairs: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pairs that are not among ``others``, each once, in their order."""
    seen: set[Sequence[int]] = {*map(tuple, others.tolist())}
    kept = []
    for pair in map(tuple, pairs.tolist()):
        if pair not in seen:
            seen.add(pair)
            kept.append(pair)
    return np.array(kept, np.int64).reshape(-1, 2)
