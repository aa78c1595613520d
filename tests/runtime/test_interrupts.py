"""Test requests to stop: they are noted, and no process stops before it has reported why its work failed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from starfc.errors import InputError
from starfc.runtime.entry import run_command
from starfc.runtime.interrupts import Stopped, stop_requests

BOTH = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The signals that reach the handlers of the process."""
    numbers: list[int] = []
    before = {number: signal.signal(number, lambda number, _: numbers.append(number)) for number in BOTH}
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def asked_at_the_end(number: int) -> Iterator[None]:
    """A block at whose end a signal comes."""
    try:
        yield
    finally:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", BOTH)
def test_a_request_is_noted_while_the_block_runs(heard, number):
    with stop_requests() as request:
        assert not request
        os.kill(os.getpid(), number)
        assert request.signal == number
    assert heard == []
    os.kill(os.getpid(), number)
    assert heard == [number]


@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("another process has ended"), 2, "error: another process has ended\n"),
        (Stopped("go on with this", signal.SIGTERM), 143, "go on with this\n"),
    ],
)
def test_a_request_after_a_failure_waits_until_it_is_reported(heard, capsys, number, error, code, said):
    def main() -> None:
        with asked_at_the_end(number), stop_requests():
            raise error

    for _ in range(2):
        assert run_command(main) == code
        assert capsys.readouterr().err == said
        assert heard == []
    os.kill(os.getpid(), number)  # what was there before is there again
    assert heard == [number]


def test_a_bug_and_work_that_ends_well_leave_the_handlers_as_they_were(heard):
    def fail() -> None:
        with stop_requests():
            raise KeyError

    def end() -> None:
        with asked_at_the_end(signal.SIGTERM), stop_requests():
            pass

    with pytest.raises(KeyError):
        run_command(fail)
    os.kill(os.getpid(), signal.SIGTERM)
    assert run_command(end) == 0
    assert heard == 2 * [signal.SIGTERM]


def test_outside_of_an_entry_point_handlers_are_put_back_at_once(heard):
    with pytest.raises(InputError), asked_at_the_end(signal.SIGTERM), stop_requests():
        raise InputError
    assert heard == [signal.SIGTERM]
