"""Run the benchmarks on small data: check their files, and that a finished stage is not run again."""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from baselines import BASELINES, Baseline
from baselines.connected import single_link
from helpers.paths import ROOT
from helpers.samples import blobs
from helpers.scripts import run_benchmark
from starfc.config.config import load_config, save_config
from starfc.config.thresholds import save_thresholds
from starfc.models.checkpoint import save_model
from starfc.models.gcn import StarFCModel
from starfc.models.hierarchical import HierarchicalModel
from starfc.runtime.device import uses_torch


def run(script, *arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def data(tmp_path):
    features, labels = blobs(identities=30, size=20, dim=32, noise=0.4)
    np.save(tmp_path / "features.npy", features)
    np.save(tmp_path / "labels.npy", labels)
    return tmp_path


def model(folder, dim):
    save_model(StarFCModel(dim, 32, init="metric", generator=torch.Generator().manual_seed(0)), folder)
    pair = {"tau1": 0.3, "tau2": 0.3}
    save_thresholds(folder, {"fixed": pair, "dynamic": pair}, "nothing")
    return folder


@pytest.mark.slow
def test_inference_against_the_twin(data, monkeypatch):
    where = ("--features", data / "features.npy", "--labels", data / "labels.npy", "--json", data / "out.json")
    run_benchmark(monkeypatch, "inference.py", *where, "--model", model(data / "model", 32), "--knn", 20)
    result = json.loads((data / "out.json").read_text())
    assert result["labels_equal"] is True
    assert result["fscore"] == result["twin_fscore"] > 0.5
    assert {"speedup", "memory_ratio", "stages", "whole", "versions", "git", "machine"} <= set(result)
    assert result["whole"]["fscore"] == pytest.approx(result["fscore"], abs=0.05)


@pytest.mark.slow
def test_the_extended_method_against_the_basic_one(data):
    hierarchical = HierarchicalModel(32, 16, scales=(10, 15, 20), generator=torch.Generator().manual_seed(0))
    save_model(hierarchical, data / "hierarchical")
    where = ("--features", data / "features.npy", "--model", model(data / "model", 32), "--json", data / "out.json")
    for more in ((), ("--hierarchical-model", data / "hierarchical")):
        run("extended.py", *where, "--repeats", 1, *more)
        result = json.loads((data / "out.json").read_text())
        assert result["ratio"] == result["seconds"]["extended"] / result["seconds"]["basic"]
        assert set(result["stages"]["basic"]) == set(result["stages"]["extended"])


@pytest.mark.slow
def test_knn_graphs_against_flat_search(data):
    where = ("--features", data / "features.npy", "--json", data / "out.json", "--knn", 20)
    run("knn.py", *where, "--methods", "exact", "cells", "faiss-ivf-flat", "faiss-hnsw")
    methods = json.loads((data / "out.json").read_text())["methods"]
    assert methods["exact"]["same_neighbours"] > 0.999
    assert all(methods[name]["recall"] >= 0.98 for name in methods)
    run("knn.py", *where, "--methods", "exact", "--flat-queries", 100)
    methods = json.loads((data / "out.json").read_text())["methods"]
    assert methods["IndexFlatIP"]["params"] == {"rows_searched": 100}


@pytest.mark.long
def test_stages_on_a_device_against_the_cpu(data, monkeypatch):
    where = ("--features", data / "features.npy", "--device", "cpu", "--knn", 15, "--threads", 1)
    run_benchmark(monkeypatch, "gpu.py", *where, "--stages", "exact", "--json", data / "out.json")
    result = json.loads((data / "out.json").read_text())
    exact = result["stages"]["exact"]
    assert exact["equal"] == 1
    assert exact["difference"] == 0
    assert exact["share_of_tflops"] > 0
    assert {"seconds", "cpu_seconds", "peak_device_mb"} <= set(exact)
    assert {"versions", "git", "machine", "limits", "device_memory"} <= set(result)
    assert not uses_torch("cpu")  # as before


@pytest.mark.slow
def test_every_stage_on_a_device_against_the_cpu(data):
    labels = ("--labels", data / "labels.npy", "--device-memory", "64MB")
    where = ("--features", data / "features.npy", *labels, "--device", "cpu", "--knn", 15, "--threads", 1)
    run("gpu.py", *where, "--json", data / "out.json")
    stages = json.loads((data / "out.json").read_text())["stages"]
    assert all(stages[name]["equal"] > 0.99 for name in set(stages) - {"approximate"})
    assert stages["approximate"]["recall"] > 0.9
    assert stages["labels"]["metrics"]["pairwise"]["fscore"] > 0.9


@pytest.mark.slow
def test_scale_keeps_what_is_done(data):
    arguments = ("--nodes", 1500, 3000, "--folder", data / "scale", "--model", model(data / "model", 256), "--knn", 20)
    run("scale.py", *arguments, "--json", data / "first.json")
    before = {p: p.stat().st_mtime_ns for p in (data / "scale").rglob("*.npy")}
    (data / "scale" / "3000" / "run" / "labels.npy").unlink()
    record = json.loads((data / "scale" / "3000" / "record.json").read_text())
    del record["clustering"]
    (data / "scale" / "3000" / "record.json").write_text(json.dumps(record))
    run("scale.py", *arguments, "--json", data / "second.json")
    changed = {p for p in before if p.stat().st_mtime_ns != before[p]}
    assert changed
    assert all(path.is_relative_to(data / "scale" / "3000" / "run") for path in changed)
    # other options go to the generator of the data; without --model, the packaged model is used
    run("scale.py", "--nodes", 1500, "--folder", data / "any", "--mean-size", 20, "--json", data / "third.json")
    third = json.loads((data / "third.json").read_text())
    assert third["data"] == ["--mean-size", "20"]
    assert {"choice", "edge scores", "estimate"} < set(third["sizes"]["1500"]["peak_rss_mb_by_stage"])
    first, second = (json.loads((data / f"{name}.json").read_text()) for name in ("first", "second"))
    assert set(first["laws"]) == {"total", *first["sizes"]["1500"]["seconds"]}
    for size in ("1500", "3000"):
        assert first["sizes"][size]["pairwise"] == second["sizes"][size]["pairwise"]
        assert first["sizes"][size]["single_link"]["fscore"] > 0
    assert "clustering" in json.loads((data / "scale" / "3000" / "record.json").read_text())


@pytest.mark.long
def test_compare_chooses_on_one_split_and_scores_on_the_other(tmp_path, monkeypatch):
    for seed, part in enumerate(("train", "test")):
        features, labels = blobs(identities=30, size=20, dim=32, noise=0.9, seed=seed)
        np.save(tmp_path / f"{part}.npy", features)
        (tmp_path / f"{part}.meta").write_text("\n".join(map(str, labels)) + "\n")
    trained = model(tmp_path / "trained", 32)
    (tmp_path / "config.py").write_text(
        "knn = 20\nmodel = dict(kwargs=dict(feature_dim=32, nhid=32))\ndevice = 'cpu'\n"
    )
    save_config(load_config(tmp_path / "config.py"), trained / "config.json")
    out = tmp_path / "out"
    where = ("--train", tmp_path / "train", "--test", tmp_path / "test", "--out", out, "--threads", 1)
    run_benchmark(monkeypatch, "compare.py", *where, "--k", 20, "--methods", "single_link", "--run", f"star={trained}")
    record = json.loads((out / "compare.json").read_text())
    rows = {row["method"]: row for row in record["rows"]}
    link, ours = rows["single_link"], rows["run_star"]
    assert link["parameters"] == max(link["tried"], key=lambda point: point["fscore"])["parameters"]
    assert link["train_fscore"] == max(point["fscore"] for point in link["tried"])
    assert 0.5 < link["fscore"] != link["train_fscore"]
    assert ours["parameters"] == {"tau1": 0.3, "tau2": 0.3}
    assert ours["seconds"] > 0 < ours["peak_rss_mb"]
    assert {"versions", "git", "machine", "packages"} <= set(record)
    with (out / "compare.csv").open() as file:
        assert [line["method"] for line in csv.DictReader(file)] == [row["method"] for row in record["rows"]]
    table = (out / "compare.md").read_text()
    assert f"{100 * link['fscore']:.2f}" in table
    assert "star ★" in table
    assert (out / "compare.png").stat().st_size > 10_000
    before = {path: path.stat().st_mtime_ns for path in out.glob("*_*.json")}
    run_benchmark(monkeypatch, "compare.py", *where, "--k", 20, "--methods", "single_link", "--run", f"star={trained}")
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*_*.json")}  # nothing ran again


def test_compare_says_what_could_not_run(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    compare = importlib.import_module("compare")
    assert {point["k"] for point in compare.tried(BASELINES["rank_order"], 20)} == {10, 15, 20}
    monkeypatch.setitem(BASELINES, "absent", Baseline("Absent", "nobody", single_link, (), package="no_such_package"))
    row = compare.baseline_row(None, "absent", tmp_path)
    compare.write_tables([row], tmp_path)
    assert "| Absent | not run: package no_such_package" in (tmp_path / "compare.md").read_text()
    assert "no_such_package" in (tmp_path / "compare.csv").read_text()


@pytest.mark.slow
def test_parts_of_the_structural_model(data):
    features, labels = blobs(identities=40, size=12, dim=16, noise=0.4, seed=1)
    for part in ("train", "test"):
        np.save(data / f"{part}.npy", features)
        (data / "labels").mkdir(exist_ok=True)
        np.save(data / "labels" / f"{part}.npy", labels)
    arguments = ("--train", data / "train", "--test", data / "test", "--out", data / "out", "--subgraphs", 3)
    arguments += ("--variants", "full", "one_round", "--seeds", 0, 1, "--shift", 2, "--threads", 1)
    run("structural.py", *arguments)
    result = json.loads((data / "out" / "structural.json").read_text())
    full, one_round = result["rows"]
    assert len(full["runs"]) == 2
    assert full["fscore"] == pytest.approx(np.mean([r["fscore"] for r in full["runs"]]))
    assert full["runs"][0]["fscore"] > 0.5
    assert one_round["runs"][0]["cross_entropy"] != full["runs"][0]["cross_entropy"]
    assert len(result["shift"]["shift_in_standard_deviations"]) == 20
    with (data / "out" / "structural.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["seed"]) for row in rows] == [
        ("full", "0"), ("full", "1"), ("one_round", "0"), ("one_round", "1")
    ]  # fmt: skip
    written = (data / "out" / "train-full-0.json").stat().st_mtime_ns
    run("structural.py", *arguments)
    assert (data / "out" / "train-full-0.json").stat().st_mtime_ns == written
