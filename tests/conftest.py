"""Fixtures that the tests share."""

from __future__ import annotations

import logging
import os
import runpy
import shutil
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # on small data, threads that spin take the cores from the others

import pytest
import torch

from helpers.paths import ROOT, SHARED
from helpers.samples import blobs
from starfc.models.checkpoint import save_model
from starfc.models.gcn import StarFCModel


@pytest.fixture(autouse=True)
def log_level():
    """Commands that run in the tests' own process set how much is logged; the next test starts as this one did."""
    logger = logging.getLogger("starfc")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Inputs and outputs of the reference implementation."""
    folder = SHARED / "golden"
    if not (folder / "reference_outputs.npz").is_file():
        pytest.skip(f"no golden files at {folder}; set STARFC_SHARED to the folder that holds golden/")
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    """Run an entry point in this process; returns exit code, stdout and stderr."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A folder as a user has it: data in the published layout, a model of 16-d features, and a config."""
    features, labels = blobs()
    for kind in ("features", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for split in ("part0_train", "part1_test"):
        features.tofile(tmp_path / "data" / "features" / f"{split}.bin")
        (tmp_path / "data" / "labels" / f"{split}.meta").write_text("\n".join(map(str, labels)) + "\n")
    save_model(StarFCModel(16, 32, init="metric", generator=torch.Generator().manual_seed(0)), tmp_path / "model")
    (tmp_path / "config.py").write_text(
        f"prefix = {str(tmp_path / 'data')!r}\n"
        f"pretrained = {str(tmp_path / 'model')!r}\n"
        "knn = 10\n"
        "model = dict(kwargs=dict(feature_dim=16, nhid=32, init='metric'))\n"
        "cluster_num = 6\n"
        "sampling = dict(nearest=8, patches=3, passes=1, min_nodes=10, subgraphs_per_epoch=4)\n"
        "optimizer = dict(type='AdamW', lr=1e-3, weight_decay=0.01)\n"
        "lr_config = dict(policy='onecycle')\n"
        "total_epochs = 1\n"
        "device = 'cpu'\n"
        "threads = 1\n"
    )
    return tmp_path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run; ``finished`` of the test's module is a folder that holds it as ``run``."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy" / "run"
