"""Sets of rows of a run, by place, and the numbers that a task gives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starfc.graph.neighbours import id_dtype

_BITS = 6  # of a place within its page of 64; an entry takes 4 bytes, so scattered places take 256 bytes each
_PAGE = 1 << _BITS


@dataclass(frozen=True)
class Places:
    """A set of places, numbered 0..m-1 in their order.

    A table of two levels holds the number of each place: ``_page[p // 64]`` is the row of ``_table`` with the numbers
    of the 64 places around p. Row 0 is that of pages without a place. A number is thus found in the same time in sets
    of any size.

    Attributes
    ----------
    places : (m,) integers
        The places, increasing.
    """

    places: NDArray[np.integer]
    _page: NDArray[np.int32]
    _table: NDArray[np.integer]

    @classmethod
    def of(cls, n: int, *arrays: NDArray[np.integer]) -> Places:
        """Return the places of a run of n rows that are in some arrays; -1 is left out."""
        page = np.zeros(n // _PAGE + 2, np.int32)  # the last one is that of -1
        for array in arrays:
            page[array >> _BITS] = 1
        page[-1] = 0
        touched = np.flatnonzero(page)
        page[touched] = np.arange(1, len(touched) + 1)
        held = np.zeros((len(touched) + 1, _PAGE), np.bool_)
        for array in arrays:
            held[page[array >> _BITS], array & (_PAGE - 1)] = True
        held[0] = False
        row, at = np.nonzero(held)
        table = np.full(held.shape, -1, id_dtype(len(row)))
        table[row, at] = np.arange(len(row))
        return cls((touched[row - 1] * _PAGE + at).astype(id_dtype(n)), page, table)

    def __len__(self) -> int:
        return len(self.places)

    def numbers(self, places: NDArray[np.integer]) -> NDArray[np.integer]:
        """Return the numbers of some places; -1 for those that are not in the set."""
        return self._table[self._page[places >> _BITS], places & (_PAGE - 1)]


@dataclass(frozen=True)
class Some:
    """Some rows of a run, numbered 0..m-1 in the order of their names.

    Attributes
    ----------
    names : (m,) integers
        Their names, increasing.
    places : (m,) integers
        The place of each.
    """

    names: NDArray[np.integer]
    places: NDArray[np.integer]
    _known: Places
    _number: NDArray[np.integer]  # (m + 1,): the number of each row by the order of places, and -1

    @classmethod
    def of(cls, known: Places, names_of: Callable[[NDArray[np.integer]], NDArray[np.integer]]) -> Some:
        """Return the rows at some places."""
        names = names_of(known.places)
        order = np.argsort(names)
        number = np.full(len(order) + 1, -1, id_dtype(len(order)))
        number[order] = np.arange(len(order))
        return cls(names[order], known.places[order], known, number)

    def __len__(self) -> int:
        return len(self.names)

    def numbers(self, places: NDArray[np.integer]) -> NDArray[np.integer]:
        """Return the numbers of some places; -1 for those that are not among these rows."""
        return self._number[self._known.numbers(places)]
