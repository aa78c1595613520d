"""Progress bars: a live bar on a terminal, and a line every 30 seconds elsewhere.

Work that ends within two seconds shows no bar. If the level of the logger ``starfc`` is above INFO, there are no bars.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(
    what: str, items: Iterable[Any] | None = None, *, total: float | None = None, unit: str = "it", done: float = 0
) -> tqdm:
    """Return a tqdm bar over ``items``. Without items, the caller advances it with ``update``.

    Parameters
    ----------
    what : str
        Description of the work.
    items : iterable, optional
        Items to iterate over.
    total : float, optional
        The count at which the work is complete.
    unit : str
        Unit of the count.
    done : float
        The count at the start.
    """
    live = sys.stderr.isatty()
    return tqdm(
        items,
        desc=what,
        total=total,
        initial=done,
        unit=unit,
        unit_scale=True,
        delay=2,
        leave=False,
        disable=logging.getLogger("starfc").level > logging.INFO,
        mininterval=0.2 if live else 30,
        maxinterval=10 if live else 60,
        file=sys.stderr if live else _Lines(),
    )


class _Lines:
    """Output of a bar without a terminal: each update is a separate line, and clearing the bar writes nothing."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self) -> None:
        sys.stderr.flush()
