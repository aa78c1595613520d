"""Progress bars: a live one on a terminal, a line every 30 seconds elsewhere, none for what is over in two."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(what: str, items: Iterable[Item] | None = None, *, total: float | None = None, unit: str = "it") -> tqdm:
    """A tqdm bar over ``items``, or to be advanced by hand with ``update`` where there are none."""
    live = sys.stderr.isatty()
    return tqdm(
        items,
        desc=what,
        total=total,
        unit=unit,
        unit_scale=True,
        delay=2,
        leave=False,
        mininterval=0.2 if live else 30,
        maxinterval=10 if live else 60,
        file=sys.stderr,
    )
