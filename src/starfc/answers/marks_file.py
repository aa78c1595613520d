"""Read the file of marks.

The review page, `starfc ask` and Python exchange marks as one JSON object, `starfc-marks` version 1:

===================== ==============================================================================================
``format``            ``"starfc-marks"``; ``version`` is 1
``num_instances``     number of rows N of the run that the marks belong to
``must_link``         pairs [row, row] of one identity
``cannot_link``       pairs [row, row] of two identities
``answers`` (absent   answers to questions: ``{"a": [rows], "b": [rows], "same": true}``. ``a`` and ``b`` are rows that
or a list)            of the two sides. Optional: ``p``, the question's probability that both are one; ``kind``, "join"
                      or "split"; ``asked``, the number of answers before. Without ``same`` it is no answer yet. The
                      other keys that `starfc ask` writes are not used; unknown ones are refused
===================== ==============================================================================================

``report``, ``wrong_clusters`` and ``marks`` are for the page, ``steps`` for the run that keeps the marks; they are not
used. Other keys are refused.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from starfc.answers.marks import NEEDED, Answer, Kind, Marks, short
from starfc.errors import InputError
from starfc.storage.records import Count, Record, Share
from starfc.storage.safe import first_line, json_bytes

RowPair = Annotated[list[Count], Field(min_length=2, max_length=2)]
_Side = Annotated[list[Count], Field(min_length=1)]


class AnswerRecord(Record):
    """An answer."""

    model_config = ConfigDict(extra="forbid")

    a: _Side
    b: _Side
    same: bool | None = None
    p: Share = 0.5
    kind: Kind = "join"
    asked: Count = 0


class EntryRecord(AnswerRecord):
    """An entry of ``answers``: an answer, and what `starfc ask` writes for the person who gives it."""

    clusters: Any = None
    sizes: Any = None
    shown: Any = None
    files: Any = None
    gain: Any = None


class MarksRecord(Record):
    """A file of marks, and what the page or a run write beside them."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["starfc-marks"]
    version: Literal[1]
    num_instances: Count
    must_link: list[RowPair] = []
    cannot_link: list[RowPair] = []
    answers: list[EntryRecord] = []
    report: Any = None
    wrong_clusters: Any = None
    marks: Any = None
    steps: Any = None


def read_marks(path: str | Path, num_instances: int, earlier: Container[int] = ()) -> Marks:
    """Read a file of marks, as the review page exports it.

    Parameters
    ----------
    path : path
        The file.
    num_instances : int
        Number of rows N.
    earlier : container of int, optional
        Numbers of rows that the run had before; rows keep their numbers, so marks from then are still right.

    Raises
    ------
    MissingFileError, InputError
        The file does not exist, is not of this format, or belongs to a run with another number of rows.
    """
    record = _read(path)
    if record.num_instances != num_instances and record.num_instances not in earlier:
        raise InputError(
            f"{path}: marks of a run with {record.num_instances:,} rows, but this run has {num_instances:,}; use the "
            "marks of this run"
        )
    return marks_of(record, num_instances, str(path))


def _read(path: str | Path) -> MarksRecord:
    """Read a file that people may have changed. A message names the entry, what is needed, and what was found."""
    try:
        return MarksRecord.model_validate(json.loads(json_bytes(path)))
    except ValidationError as error:
        raise InputError(f"{path}: {_explained(error)}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {first_line(error)}") from None


def _explained(error: ValidationError) -> str:
    """Return the first mistake of a file as text.

    Another format goes first, then an unknown key, because another key may lack for it.
    """
    found = min(error.errors(), key=lambda one: (one["loc"] != ("format",), one["type"] != "extra_forbidden"))
    *above, last = found["loc"] or ("content",)
    within = "".join(f", entry {part + 1}" if isinstance(part, int) else f", {part}" for part in above)[2:]
    place = f"{within}: " if within else ""
    if found["type"] == "extra_forbidden":
        of, record = ("an entry", EntryRecord) if above else ("the file", MarksRecord)
        return f"{place}unknown key {short(last)}; the keys of {of} are {', '.join(record.model_fields)}"
    where = (f"{within}, " if within else "") + (f"entry {last + 1}" if isinstance(last, int) else str(last))
    key = next((part for part in reversed(found["loc"]) if isinstance(part, str)), "content")
    needed = "an object" if found["loc"] in ((), ("answers", last)) else NEEDED[key]
    what = "nothing" if found["type"] == "missing" else short(found["input"])
    return f"{where}: {needed} needed; found {what}"


def marks_of(record: MarksRecord, num_instances: int, name: str = "marks") -> Marks:
    """Return the marks of a record that was read, checked as :meth:`Marks.of` checks them."""
    given = answers_of(record.answers)
    marks = Marks.of(num_instances, record.must_link, record.cannot_link, given, name)
    return replace(marks, unanswered=len(record.answers) - len(given))


def answers_of(entries: Iterable[AnswerRecord]) -> tuple[Answer, ...]:
    """Return the entries that have an answer."""
    return tuple(Answer(tuple(x.a), tuple(x.b), x.same, x.p, x.kind, x.asked) for x in entries if x.same is not None)
