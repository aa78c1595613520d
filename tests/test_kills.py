"""Commands that write are killed, and find the disk full: a small share of what ``python -m tests.kills`` tries."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize(
    ("kills", "only"),
    [
        ("8", ["knn", "convert"]),
        pytest.param("48", ["cluster", "report", "assign", "tune", "train"], marks=pytest.mark.slow),
    ],
)
def test_a_kill_leaves_the_old_result_or_the_new_one(kills, only):
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", "--kills", kills, "--rows", "240", "--only", *only],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "mixed 0  lost 0  left 0" in done.stdout.splitlines()[-1]
