"""Test the comparison at rising sizes on a made set: its table, its record, and that nothing is made twice."""

from __future__ import annotations

import json

import numpy as np
import pytest

from helpers.samples import blobs
from helpers.scripts import run_benchmark


@pytest.fixture
def folder(tmp_path):
    """A set in the layout of scripts/make_glyph.py, with part0 and one test part."""
    for name in ("features", "labels"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for name, identities, seed in (("part0_train", 12, 0), ("part1_test", 10, 1)):
        features, labels = blobs(identities=identities, size=15, dim=32, noise=0.6, seed=seed)
        np.save(tmp_path / "data" / "features" / f"{name}.npy", features.astype(np.float16))
        (tmp_path / "data" / "labels" / f"{name}.meta").write_text("\n".join(map(str, labels)) + "\n")
    return tmp_path


@pytest.mark.slow
def test_methods_are_compared_and_results_are_kept(folder, monkeypatch, capsys):
    def run(*more):
        options = ("--data", folder / "data", "--out", folder / "out", "--threads", 1, *more)
        run_benchmark(monkeypatch, "glyph_scale.py", *options)
        return capsys.readouterr()

    said = run("--parts", 1, "--methods", "ours", "single_link")
    assert "part1_test: kNN graph" in said.err
    lines = said.out.strip().splitlines()
    assert lines[0] == "| method | part1: F / B / s |"
    assert lines[2].startswith("| ours | ")
    assert lines[3].startswith("| single link (min_sim 0.")
    record = json.loads((folder / "out" / "glyph_scale.json").read_text())
    assert record["lists"] == "exact"
    assert record["splits"]["part1_test"]["instances"] == 150
    assert record["splits"]["part1_test"]["identities"] == 10
    ours = record["methods"]["ours"]["parts"]["1"]
    assert ours["fscore"] > 0.9
    assert ours["peak_rss_mb"] > 0
    assert {"thresholds", "choices", "estimate"} <= set(ours)
    linked = record["methods"]["single_link"]
    tuned = json.loads((folder / "out" / "exact" / "part0_train" / "tune_single_link.json").read_text())
    assert linked["train_fscore"] == max(point["fscore"] for point in tuned["points"])
    assert linked["parts"]["1"]["fscore"] > 0.9
    assert {"versions", "git", "machine"} <= set(record)

    kept = folder / "out" / "exact" / "part1_test" / "test_single_link.json"
    before = kept.stat().st_mtime_ns
    said = run("--parts", 1, "--methods", "single_link")
    assert "part1_test: " not in said.err  # nothing is made again
    assert kept.stat().st_mtime_ns == before
    assert said.out.strip().splitlines() == lines  # what is stored stays in the table
