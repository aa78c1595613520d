"""Run scripts of benchmarks/ in this process."""

from __future__ import annotations

import runpy
import sys
from types import SimpleNamespace

import pytest
import torch

import harness
from helpers.paths import ROOT
from helpers.processes import run_script


def run_benchmark(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: object) -> None:
    """Run a script with its arguments. Its sides have processes of their own, as always, which are forked here."""
    path, threads = str(ROOT / "benchmarks" / script), torch.get_num_threads()
    with monkeypatch.context() as patch:
        patch.setattr(harness, "subprocess", SimpleNamespace(run=run_script))
        patch.setattr(sys, "argv", [path, *map(str, arguments)])
        patch.setenv("OMP_NUM_THREADS", "2")  # scripts set it: this puts it back
        code = 0
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        finally:
            torch.set_num_threads(threads)
        assert code == 0
