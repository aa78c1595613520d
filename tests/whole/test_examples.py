"""Run the examples unchanged on the bundled sample."""

from __future__ import annotations

import subprocess
import sys

import pytest

from helpers.paths import ROOT


@pytest.mark.long
def test_from_numpy_to_a_report(tmp_path):
    script = ROOT / "examples" / "numpy_to_report.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) < 30
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "8000 instances" in done.stdout
    assert "joined clusters that existed before" in done.stdout
    assert "cluster 0" in done.stdout
    assert (tmp_path / "index.html").is_file()
    assert list((tmp_path / "thumbs").iterdir())
