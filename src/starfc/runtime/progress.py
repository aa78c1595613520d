"""Progress bars: a live one on a terminal, a line every 30 seconds elsewhere, none for what is over in two.

A log level above INFO, set for the logger ``starfc``, leaves them out.
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
    """A tqdm bar over ``items``, or to be advanced by hand with ``update`` where there are none, from ``done`` on."""
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
    """Where there is no terminal: each state of the bar is a line of its own, and clearing it writes nothing."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self) -> None:
        sys.stderr.flush()
