"""Test the bundled sample with the bundled weights, and training on the full glyph splits if they are available."""

from __future__ import annotations

import json
import runpy
import sys

import numpy as np
import pytest

from helpers.paths import ROOT, SHARED
from starfc import StarFC
from starfc.config.config import load_config
from starfc.data.files import read_features, read_labels
from starfc.evaluation.metrics import evaluate
from starfc.models.checkpoint import PRETRAINED
from starfc.runs.cluster import run_inference
from starfc.training.trainer import run_training

CONFIG = ROOT / "configs" / "cfg_gcn_glyph.py"


@pytest.mark.long
def test_the_quickstart_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["test_final.py", "--config", str(CONFIG), "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "test_final.py"), run_name="__main__")
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for part in ("stage", "refinement", "pairwise", "bcubed", "nmi", "8,595 instances", str(tmp_path)):
        assert part in out
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["metrics"]["pairwise"]["fscore"] > 0.75
    assert record["metrics"]["bcubed"]["fscore"] > 0.75
    stored = json.loads((ROOT / "pretrained_model" / "glyph" / "thresholds.json").read_text())["fixed"]
    assert record["thresholds"] == {"tau1": stored["tau1"], "tau2": stored["tau2"]}
    assert record["diagnostics"]["giants"] == []


@pytest.mark.long
@pytest.mark.parametrize("refinement", ["fixed", "dynamic"])
def test_the_estimator_gives_the_same_clusters(tmp_path, refinement):
    record = run_inference(load_config(CONFIG), refinement=refinement, out=tmp_path)
    assert record["metrics"]["pairwise"]["fscore"] > 0.75
    features = read_features(ROOT / "data" / "glyph" / "features" / "sample.npy")
    labels = StarFC.from_pretrained(ROOT / "pretrained_model" / "glyph", refinement=refinement).fit_predict(features)
    np.testing.assert_array_equal(labels, np.load(tmp_path / "labels.npy"))
    truth = read_labels(ROOT / "data" / "glyph" / "labels" / "sample.meta", len(features))
    assert evaluate(truth, labels) == record["metrics"]


@pytest.mark.long
def test_the_structural_model_gives_the_same_from_a_config_and_from_the_estimator(tmp_path):
    record = run_inference(load_config(ROOT / "configs" / "cfg_gcn_structural_glyph.py"), out=tmp_path)
    assert record["metrics"]["pairwise"]["fscore"] > 0.94
    assert record["metrics"]["bcubed"]["fscore"] > 0.94
    features = read_features(ROOT / "data" / "glyph" / "features" / "sample.npy")
    labels = StarFC.from_pretrained(PRETRAINED.parent / "structural").fit_predict(features)
    np.testing.assert_array_equal(labels, np.load(tmp_path / "labels.npy"))


@pytest.mark.long
def test_the_quickstart_and_the_default_estimator_take_the_model_for_any_embedding(tmp_path):
    assert "cfg_gcn_structural_any.py" in (ROOT / "scripts" / "quickstart.sh").read_text()
    record = run_inference(load_config(ROOT / "configs" / "cfg_gcn_structural_any.py"), out=tmp_path)
    assert record["metrics"]["pairwise"]["fscore"] > 0.94
    assert record["metrics"]["bcubed"]["fscore"] > 0.94
    assert abs(record["estimate"]["fscore"] - record["metrics"]["pairwise"]["fscore"]) < 0.04
    features = read_features(ROOT / "data" / "glyph" / "features" / "sample.npy")
    np.testing.assert_array_equal(StarFC().fit_predict(features), np.load(tmp_path / "labels.npy"))


def test_thumbnails_belong_to_the_rows():
    with np.load(ROOT / "data" / "glyph" / "thumbs.npz") as thumbs:
        assert thumbs["images"].shape == (8595, 20, 20)
    lines = (ROOT / "data" / "glyph" / "list.tsv").read_text(encoding="utf-8").splitlines()
    labels = read_labels(ROOT / "data" / "glyph" / "labels" / "sample.meta", 8595)
    assert len(lines) == 8595
    characters = np.array([line.split("\t")[0] for line in lines])
    assert len({(a, b) for a, b in zip(characters.tolist(), labels.tolist(), strict=True)}) == 161


def test_the_product_reads_nothing_outside_the_repository():
    code = [p for f in ("src", "configs", "scripts") for p in (ROOT / f).rglob("*") if p.suffix in (".py", ".sh")]
    code += [ROOT / "train.py", ROOT / "test_final.py", ROOT / "test_dynamic.py"]
    assert len(code) > 30
    for path in code:
        assert "shared/" not in path.read_text(encoding="utf-8"), path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "refinement", "least"), [("glyph", "fixed", 0.83), ("glyph_hierarchical", "dynamic", 0.85)]
)
def test_accuracy_of_both_methods_on_the_full_splits(tmp_path, name, refinement, least):
    data = SHARED / "datasets" / "glyph"
    if not (data / "part1_test.npy").is_file():
        pytest.skip(f"no full glyph splits at {data}; set STARFC_SHARED to the folder that holds datasets/")
    overrides = {"prefix": str(data), "test_name": "part1_test", "test_data.knn_graph_path": None}
    config = load_config(ROOT / "configs" / f"cfg_gcn_{name}.py", overrides)
    run_training(config, tmp_path / "run")
    record = run_inference(config, refinement=refinement, model_folder=tmp_path / "run", out=tmp_path / "out")
    assert record["metrics"]["pairwise"]["fscore"] > least
