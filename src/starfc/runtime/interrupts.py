"""Being asked to stop: SIGTERM (a scheduler) and SIGINT (Ctrl-C) are noted, and acted on between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_AT_ONCE = 2.0  # seconds after which a second Ctrl-C ends the process where it stands
_put_back_later: dict[int, Any] | None = None  # in an entry point: handlers that wait until it has reported


class Stopped(Exception):
    """Work that ended early because it was asked to, with all of it kept; the message says how to go on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopRequest:
    """Whether, and by which signal, the process was asked to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._since = 0.0

    def __bool__(self) -> bool:
        return self.signal is not None

    def note(self, number: int, _frame: FrameType | None) -> None:
        """The handler; the same request often comes twice at once, from the terminal and from torchrun."""
        if self.signal is not None and number == signal.SIGINT and time.monotonic() - self._since > _AT_ONCE:
            raise KeyboardInterrupt
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note SIGTERM and SIGINT while the block runs (in the main thread; elsewhere nothing is noted).

    Where an error ends the block of an entry point (:func:`until_reported`), they are noted until it is reported.
    """
    global _put_back_later
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    except BaseException:
        if _put_back_later is not None:
            _put_back_later, before = before | _put_back_later, {}
        raise
    finally:
        _put_back(before)


@contextmanager
def until_reported() -> Iterator[None]:
    """For an entry point: a request to stop that comes when work has failed does not end it before it has said why.

    torchrun sends SIGTERM to all processes as soon as one has ended, so that the others are just about to report that.
    """
    global _put_back_later
    if threading.current_thread() is not threading.main_thread() or _put_back_later is not None:
        yield
        return
    _put_back_later = {}
    try:
        yield
    finally:
        before, _put_back_later = _put_back_later, None
        _put_back(before)


def _put_back(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
