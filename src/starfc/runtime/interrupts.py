"""Requests to stop. SIGTERM (from a scheduler) and SIGINT (Ctrl-C) are noted, and the work stops between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

_AT_ONCE = 2.0  # a second Ctrl-C this many seconds after the first ends the process immediately
_put_back_later: dict[int, Any] | None = None  # within until_reported: the handlers to restore at its end


class Stopped(Exception):
    """The work stopped early because of a signal, and its state was saved. The message says how to continue."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopRequest:
    """The signal that asked this process to stop, if any. It is false until a signal arrives."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._since = 0.0

    def __bool__(self) -> bool:
        return self.signal is not None

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal. The terminal and torchrun often both send it, so a second one within 2 s is ignored."""
        if self.signal is not None and number == signal.SIGINT and time.monotonic() - self._since > _AT_ONCE:
            raise KeyboardInterrupt
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note SIGTERM and SIGINT while the block runs. Outside the main thread no signal is noted.

    If an error ends the block within :func:`until_reported`, signals are noted until the error has been reported.
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
    """Keep a request to stop from ending an entry point whose work has failed before it has reported the failure.

    torchrun sends SIGTERM to all processes as soon as one has ended. The others are then about to report that failure.
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


def _put_back(handlers: Mapping[Any, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
