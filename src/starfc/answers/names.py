"""Names of clusters, by id, and how they follow their clusters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starfc.errors import InputError
from starfc.storage.records import Record, Text

LONGEST = 200  # characters of a name


class NamesRecord(Record):
    """``names.json`` of a run: the name of each named cluster, by its id."""

    names: dict[str, Text]


@dataclass(frozen=True)
class Lost:
    """A name that gave way, because its cluster was joined to one with another name.

    ``label`` is the id that is gone, ``into`` the cluster that its rows are in now, and ``kept`` that cluster's name.
    """

    label: int
    name: str
    into: int
    kept: str

    def text(self) -> str:
        """Return the loss as one sentence."""
        return f"cluster {self.label} ({self.name!r}) is now part of cluster {self.into}, which is called {self.kept!r}"


def names_of(record: Mapping[str, str], place: str) -> dict[int, str]:
    """Return the names by cluster id. Raise InputError if a key is not a cluster id, or a name is not one."""
    return {label_of(key, place): require_name(name, f"{place}: names, {key}") for key, name in record.items()}


def label_of(key: str, place: str) -> int:
    """Return the cluster id that a key of a file is. Raise InputError if it is none."""
    if not re.fullmatch("0|[1-9][0-9]{0,17}", key):
        raise InputError(f"{place}: names: keys must be cluster ids; found {key[:40]!r}")
    return int(key)


def require_name(name: str, place: str = "NAME") -> str:
    """Return a name without spaces around it. Raise InputError if it is empty, too long, or not one line of text."""
    name = name.strip()
    if not name or len(name) > LONGEST or not name.isprintable():
        raise InputError(f"{place}: one line of 1 to {LONGEST} characters needed; found {name[:60]!r}")
    return name


def carried(
    names: Mapping[int, str], before: NDArray[np.int64], after: NDArray[np.int64]
) -> tuple[dict[int, str], list[Lost]]:
    """Return the names after clusters changed, and the names that gave way.

    A name stays with its id as long as the id has rows. If it has none any more, the name goes to the cluster in which
    most of its former rows are; that cluster's own name wins, because the larger of two joined clusters keeps its id.

    Parameters
    ----------
    names : mapping
        Name by cluster id.
    before, after : (n,) int64, (m,) int64
        Clusters of the rows before and now; m >= n, -1 for removed rows.
    """
    found, lost = {}, []
    for label, name in names.items():
        if (after == label).any():
            found[label] = name
    for label, name in names.items():
        if label in found:
            continue
        rows = after[: len(before)][before == label]
        rows = rows[rows >= 0]
        if not rows.size:
            continue  # all rows were removed
        into = int(np.bincount(rows).argmax())
        if into in found:
            lost.append(Lost(label, name, into, found[into]))
        else:
            found[into] = name
    return found, lost
