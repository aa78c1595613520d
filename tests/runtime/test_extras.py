"""Test packages of an extra: the message about a missing one, and the work that goes on without it."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from baselines.communities import infomap, leiden
from helpers.paths import ROOT
from helpers.samples import blobs, random_graph
from starfc.commands import app
from starfc.config.config import load_config
from starfc.data.files import read_features
from starfc.errors import InputError
from starfc.evaluation.calibration import write_reliability
from starfc.evaluation.surface import Panel, draw
from starfc.evaluation.thresholds import Outline
from starfc.graph.knn import build_knn
from starfc.graph.neighbours import KnnGraph
from starfc.review.images import open_pictures
from starfc.runs.tune import run_choice
from starfc.runtime.extras import EXTRAS, installed, require
from starfc.training.trainer import run_training


def starfc(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def without(monkeypatch):
    """Hide a module, as if its package were not installed."""
    return lambda module: monkeypatch.setitem(sys.modules, module, None)


def test_every_package_is_in_its_extra_and_none_in_the_core():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    core = text.split("\ndependencies = [")[1].split("]\n")[0]
    extras = dict(re.findall(r"^([\w-]+) = \[(.*)\]$", text.split("[project.optional-dependencies]")[1], re.MULTILINE))
    for module, (package, extra) in EXTRAS.items():
        assert f'"{package}>=' in extras[extra], module
        assert f'"{package}' not in core, module
    together = re.search(r'"starfc\[([\w,-]+)\]"', extras["all"])[1].split(",")
    assert set(together) == {extra for _, extra in EXTRAS.values()} - {"baselines", "glyph", "faiss-gpu", "ray"}


def test_what_is_there_is_imported():
    require("json", "nothing")
    assert installed("json")
    assert not installed("no_such_package")


def test_hdf5_is_neither_read_nor_written(without, tmp_path):
    np.save(tmp_path / "f.npy", blobs()[0])
    (tmp_path / "f.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    without("h5py")
    with pytest.raises(InputError, match=r"f\.h5: HDF5 needs the package h5py; pip install 'starfc\[hdf5\]'"):
        read_features(tmp_path / "f.h5")
    code, _, err = starfc("convert", tmp_path / "f.npy", tmp_path / "new.h5")
    assert (code, err) == (2, "error: writing HDF5 needs the package h5py; pip install 'starfc[hdf5]'\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.h5", "f.npy"]


@pytest.mark.long
def test_a_page_without_pictures_needs_no_pillow(without, tmp_path):
    np.save(tmp_path / "f.npy", blobs(size=6)[0])
    assert starfc("cluster", tmp_path / "f.npy", "-o", tmp_path / "out", "--quiet")[0] == 0
    without("PIL")
    assert starfc("report", tmp_path / "out", "-o", tmp_path / "page")[0] == 0
    images = ("--images", tmp_path / "f.npy", "-o", tmp_path / "other", "-q")
    code, _, err = starfc("report", tmp_path / "out", *images)
    assert (code, err) == (2, "error: --images needs the package pillow; pip install 'starfc[report]'\n")
    with pytest.raises(InputError, match=r"^images needs the package pillow; pip install 'starfc\[report\]'$"):
        open_pictures(np.zeros((2, 4, 4), np.uint8), 2)


def test_heic_pictures_are_not_left_out_silently(without, tmp_path):
    for name in ("0.jpg", "1.HEIC"):
        (tmp_path / name).write_bytes(b"")
    without("pillow_heif")
    needed = r"1\.HEIC: HEIC needs the package pillow-heif; pip install 'starfc\[heic\]'$"
    with pytest.raises(InputError, match=needed):
        open_pictures(tmp_path, 2)


def test_thresholds_are_not_chosen_without_their_picture(without, workspace):
    without("matplotlib")
    with pytest.raises(InputError, match=r"needs the package matplotlib; pip install 'starfc\[plots\]'"):
        run_choice(load_config(workspace / "config.py"))


def test_training_goes_on_without_pictures(without, tmp_path, caplog):
    without("matplotlib")
    draw(tmp_path / "a.png", [[Panel("", [Outline(0.5, 0.5, 1, 1, 0.5, 1)], "edges")]], "")
    write_reliability(tmp_path, {"T = 1": [{"low": 0, "high": 1, "edges": 1, "p": 0.5, "same": 1}]}, "one edge")
    assert [path.name for path in tmp_path.iterdir()] == ["reliability.csv"]
    for name in ("a.png", "reliability.png"):
        assert f"not drawn: {name} needs the package matplotlib; pip install 'starfc[plots]'" in caplog.text


def test_tensorboard_is_asked_for_before_training(without, workspace):
    without("tensorboard")
    hooks = {"log_config": {"hooks": [{"type": "TensorboardLoggerHook"}]}}
    needed = r"^hooks: TensorboardLoggerHook needs the package tensorboard; pip install 'starfc\[tensorboard\]'$"
    with pytest.raises(InputError, match=needed):
        run_training(load_config(workspace / "config.py", hooks), workspace / "run")
    assert not (workspace / "run").exists()


def test_search_on_a_gpu_needs_faiss(without):
    without("faiss")
    with pytest.raises(InputError, match=r"'faiss_gpu' needs the package faiss-gpu; pip install 'starfc\[faiss-gpu\]'"):
        build_knn(blobs()[0], 5, "faiss_gpu")


def test_communities_of_the_baselines_need_their_packages(without):
    graph = random_graph(20, 5, seed=0)
    without("infomap")
    with pytest.raises(InputError, match=r"Infomap needs the package infomap; pip install 'starfc\[baselines\]'"):
        infomap(graph, min_sim=0.5)
    without("igraph")
    with pytest.raises(InputError, match=r"Leiden needs the package igraph; pip install 'starfc\[communities\]'"):
        leiden(graph, min_sim=0.5, resolution=0.1)


BESIDE_FAISS = """
import sys
import numpy as np
from baselines.communities import infomap
from starfc.graph.neighbours import KnnGraph

rng = np.random.default_rng(0)
ids = np.array([rng.choice(np.delete(np.arange(300), i), 8, replace=False) for i in range(300)], np.int32)
graph = KnnGraph(ids, np.full(ids.shape, 0.9, np.float32))
before = infomap(graph, min_sim=0.5)
assert "infomap" not in sys.modules
import faiss
index = faiss.IndexFlatIP(16)
index.add(rng.random((500, 16), dtype=np.float32))
index.search(rng.random((500, 16), dtype=np.float32), 5)
assert (infomap(graph, min_sim=0.5) == before).all()
assert "infomap" not in sys.modules
"""


@pytest.mark.long
def test_infomap_runs_beside_faiss():
    for module in ("infomap", "faiss"):
        if not installed(module):
            pytest.skip(f"{module} is not installed")
    done = subprocess.run(
        [sys.executable, "-c", BESIDE_FAISS], capture_output=True, text=True, check=False, cwd=ROOT / "benchmarks"
    )
    assert done.returncode == 0, done.stderr


def test_a_process_of_infomap_that_ends_early_is_an_error(monkeypatch):
    if not installed("infomap"):
        pytest.skip("infomap is not installed")
    monkeypatch.setattr("starfc.runtime.infomap._START", "import sys; sys.exit(3)")
    ids = (np.arange(20_000)[:, None] + np.arange(1, 6)).astype(np.int32) % 20_000  # more than a pipe holds
    with pytest.raises(RuntimeError, match="ended with code 3"):
        infomap(KnnGraph(ids, np.full(ids.shape, 0.9, np.float32)), min_sim=0.5)
