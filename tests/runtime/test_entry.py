"""Test how an entry point ends."""

import sys

from starfc.runtime.entry import run_command


def test_a_command_with_a_closed_stdout_ends_as_usual(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as Python sets it if the process was started with a closed stdout
    assert run_command(lambda: None) == 0
