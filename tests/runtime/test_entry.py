"""Test how an entry point ends."""

import os
import sys

import pytest

from helpers.paths import ROOT
from starfc import commands
from starfc.runtime.entry import run_command

FEATURES = ROOT / "data" / "glyph" / "features" / "sample.npy"


def test_a_command_with_a_closed_stdout_ends_as_usual(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as Python sets it if the process was started with a closed stdout
    assert run_command(lambda: None) == 0


@pytest.mark.parametrize("arguments", [["--help"], ["cluster", "--help"], ["--version"], ["info", "sample.npy"]])
def test_output_to_a_full_device_ends_in_one_line(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["starfc", *(str(FEATURES) if a.endswith(".npy") else a for a in arguments)])
    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as stop:
            commands.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: the output: cannot be written (No space left on device); name another path\n"
    )


@pytest.mark.parametrize("unread", [["--version"], ["info", str(FEATURES)]])
def test_output_that_nobody_reads_ends_without_a_word(monkeypatch, capsys, unread):
    monkeypatch.setattr(sys, "argv", ["starfc", *unread])
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(SystemExit) as stop:
            commands.main()
    assert stop.value.code == 141
    assert capsys.readouterr().err == ""
