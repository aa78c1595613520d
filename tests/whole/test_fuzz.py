"""Check that damaged files end in one message: a small run of ``python -m tests.fuzz`` (:mod:`fuzz`)."""

from __future__ import annotations

import os

import pytest

from fuzz.drive import damaged, fuzz
from fuzz.readers import READERS, Reader

INPUTS = 2000  # of each reader


@pytest.mark.long
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_end_as_one_message(name):
    found = fuzz(name, INPUTS)
    assert found.inputs == INPUTS
    assert found.read + found.refused == INPUTS
    assert found.faults == []


def test_inputs_are_the_same_each_time():
    assert [damaged("npz", 3, number) for number in range(20)] == [damaged("npz", 3, number) for number in range(20)]
    assert len({damaged("npz", 3, number) for number in range(20)}) > 15


def test_faults_are_found(monkeypatch, tmp_path):
    def read(path):
        content = path.read_bytes()
        if content == b"seed":
            return
        if content[:1] in b"s":
            os.abort()
        if content[-1:] == b"d":
            bytearray(3 << 30)
        raise KeyError(content)

    monkeypatch.setitem(READERS, "poor", Reader(".x", lambda: [b"seed"], read, [b"token"]))
    found = fuzz("poor", 60, keep=tmp_path / "kept")
    kinds = {what.split(" ")[0] for _, what in found.faults}
    assert kinds == {"process", "an", "KeyError:"}
    assert len(list((tmp_path / "kept").iterdir())) == len(found.faults)
    assert found.inputs == 60
