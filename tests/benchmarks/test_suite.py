"""Test the suite of data sets: its files, stored results, sets without pairs, and its grids."""

from __future__ import annotations

import importlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import harness
from baselines import BASELINES
from helpers.paths import ROOT
from helpers.processes import run_script
from helpers.samples import blobs, random_graph
from starfc.errors import InputError, MissingFileError

METHODS = ("single_link", "finch")


@pytest.fixture
def module(monkeypatch):
    """A module of benchmarks/, imported as the suite imports it."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    return importlib.import_module


@pytest.fixture
def manifest(tmp_path):
    """Two sets of made data beside their manifest: one to cluster, and one with as many rows as the model refuses."""
    sets = []
    for name, size, noise, kind in (("blobs", 12, 0.7, "made"), ("strangers", 1, 0.0, "extreme")):
        features, labels = blobs(identities=200 // size, size=size, dim=32, noise=noise, seed=size)
        np.save(tmp_path / f"{name}.npy", features)
        (tmp_path / f"{name}.meta").write_text("\n".join(map(str, labels)) + "\n")
        sets.append({"name": name, "features": f"{name}.npy", "labels": f"{name}.meta", "kind": kind, "trained": False})
    (tmp_path / "sets.json").write_text(json.dumps(sets))
    return tmp_path / "sets.json"


@pytest.fixture
def run(module, monkeypatch, capsys):
    """Run the suite from this process, which its sides are not part of; returns stdout."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the suite sets it: this puts it back
    suite = module("suite")
    monkeypatch.setattr(harness, "subprocess", SimpleNamespace(run=run_script))

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["suite.py", *map(str, arguments)])
        suite.main()
        return capsys.readouterr().out

    return main


@pytest.mark.long
def test_a_manifest_is_run_and_baselines_are_kept(manifest, run):
    out = manifest.parent / "out"
    where = ("--manifest", manifest, "--out", out, "--methods", *METHODS)
    result = json.loads(run(*where, "--json"))
    assert result == json.loads((out / "suite.json").read_text())
    assert {"versions", "git", "machine", "unit"} <= set(result)
    rows = {row["name"]: row for row in result["sets"]}
    made, strangers = rows["blobs"], rows["strangers"]
    assert 50 < made["fscore"] <= 100
    assert made["seconds"] > made["seconds_after_knn"] > 0 < made["peak_mb"]
    assert made["estimated_fscore"] is None or 0 <= made["estimated_fscore"] <= 100
    assert all(isinstance(text, str) for text in made["warnings"])
    tuned = {method: made["baselines"][method]["tuned"] for method in METHODS}
    assert made["regret"] == pytest.approx(max(t["fscore"] for t in tuned.values()) - made["fscore"], abs=1e-3)
    assert made["regret_bcubed"] == pytest.approx(max(t["bcubed"] for t in tuned.values()) - made["bcubed"], abs=1e-3)
    assert made["best"]["method"] in METHODS
    assert made["baselines"]["single_link"]["part0"]["parameters"] == {"min_sim": 0.8}
    assert tuned["single_link"]["fscore"] >= made["baselines"]["single_link"]["part0"]["fscore"]
    assert strangers["baselines"]["single_link"]["tuned"]["fscore"] == 100  # nothing joined, nothing to join
    assert result["mean_regret"] == pytest.approx(np.mean([made["regret"], strangers["regret"]]), abs=1e-3)
    assert result["worst_regret"] == max(made["regret"], strangers["regret"])
    table = (out / "suite.md").read_text()
    assert f"{made['fscore']:.2f}" in table
    assert "mean" in table.splitlines()[-1]

    ours = out / "ours" / "StarFC" / "blobs" / "ours.json"
    before = {path: path.stat().st_mtime_ns for path in out.glob("kept/*/baseline_*.json")}
    assert len(before) == 4
    first = ours.stat().st_mtime_ns
    run(*where, "--sets", "blobs", "--keep-ours")
    assert ours.stat().st_mtime_ns == first
    text = run(
        *where,
        "--sets",
        "blobs",
        "--no-tuned",
        "--fit",
        '{"partition": "components", "tau1": 0.9, "tau2": 0.99}',
        "--name",
        "strict",
    )
    assert text == (out / "suite-strict.md").read_text()
    strict = json.loads((out / "suite-strict.json").read_text())
    assert strict["fit"] == {"partition": "components", "tau1": 0.9, "tau2": 0.99}
    assert set(strict["sets"][0]["baselines"]["single_link"]) & {"part0", "tuned"} == {"part0"}
    assert strict["sets"][0]["regret"] is strict["mean_regret"] is None
    assert strict["sets"][0]["clusters"] > made["clusters"]
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("kept/*/baseline_*.json")}


@pytest.mark.long
def test_a_set_that_is_refused_counts_as_nothing(manifest, run):
    out = manifest.parent / "out"
    where = ("--manifest", manifest, "--out", out, "--sets", "blobs", "--methods", "single_link")
    features = np.load(manifest.parent / "blobs.npy")
    features[3] = 0
    np.save(manifest.parent / "blobs.npy", features)
    run(*where)
    result = json.loads((out / "suite.json").read_text())
    (row,) = result["sets"]
    assert "zero norm" in row["refused"]
    assert "zero norm" in row["baselines"]["single_link"]["not_run"]
    assert row["fscore"] == row["bcubed"] == 0
    assert row["regret"] is result["mean_regret"] is None
    assert row["refused"] in (out / "suite.md").read_text()


def test_what_is_asked_wrongly(manifest, run, module, tmp_path):
    where = ("--manifest", manifest, "--out", tmp_path / "out")
    for more, message in (
        (("--sets", "glyph"), "must be among blobs, strangers; found glyph"),
        (("--fit", '{"tau3": 1}'), "tau3"),
        (("--fit", "tau1=1"), "must be a JSON object"),
        (("--name", "a/b"), "without '/'"),
    ):
        with pytest.raises(InputError, match=message):
            run(*where, *more)
    sets, place = module("suite_sets"), tmp_path / "wrong.json"
    good = {"name": "a", "features": "a.npy", "labels": "a.meta", "kind": "made"}
    for found, message in (
        ([good, good], "twice: a"),
        ({"sets": [good]}, "found dict"),
        ([good | {"labels": None}], "set 0: needs name, features, labels, kind"),
        ([good | {"trained": "no"}], "true or false"),
        ([good | {"name": "../a"}], "without '/'"),
    ):
        place.write_text(json.dumps(found))
        with pytest.raises(InputError, match=message):
            sets.read_manifest(place)
    with pytest.raises(MissingFileError, match="no such file"):
        sets.read_manifest(tmp_path / "absent.json")
    place.write_text(json.dumps([good]))
    (entry,) = sets.read_manifest(place)
    assert (entry.features, entry.trained) == (tmp_path / "a.npy", False)


def test_scores_where_there_are_no_pairs(module):
    suite, alone, joined = module("suite"), np.arange(6), np.array([0, 0, 1, 2, 3, 4])
    assert suite.scores(alone, alone)["fscore"] == suite.scores(alone, alone)["bcubed"] == 100
    assert suite.scores(alone, joined)["fscore"] == 0 < suite.scores(alone, joined)["bcubed"]
    assert suite.scores(joined, alone)["fscore"] == 0
    one = np.zeros(6, int)
    assert suite.scores(one, one) == dict.fromkeys(("precision", "recall", "fscore", "bcubed", "nmi"), 100.0) | {
        "clusters": 1
    }


def test_what_a_model_estimates_of_itself(module):
    suite, values = module("suite"), {"precision": 0.9, "recall": 0.8, "fscore": 0.847, "bcubed": 0.85}
    model = type("Model", (), {})()
    assert suite.estimate_of(model) is None
    expected = {key: pytest.approx(100 * value) for key, value in values.items()}
    for found in (values, type("Estimate", (), values)()):
        model.estimate_ = found
        assert suite.estimate_of(model) == expected


def test_warnings_are_heard(module):
    suite = module("suite")
    with suite.heard() as said:
        suite.logging.getLogger("starfc").warning("giant cluster")
        suite.warnings.warn("few rows", stacklevel=1)
        suite.warnings.warn("soon", DeprecationWarning, stacklevel=1)
    assert said == ["giant cluster", "few rows"]


def test_grids_are_the_baselines_own_and_fit_any_similarities(module):
    grids, graph = module("suite_grids"), random_graph(60, 20, 0)
    assert set(grids.GRIDS) == set(BASELINES)
    part0 = json.loads((ROOT / "benchmarks" / "part0_parameters.json").read_text())["methods"]
    assert set(part0) == set(BASELINES)
    for method, baseline in BASELINES.items():
        for choice in (*grids.GRIDS[method].points, *grids.GRIDS[method].large):
            assert set(grids.fitted(choice, graph)) == set(baseline.grid[0]) | ({"k"} & set(choice))
    sims = graph.sims[graph.ids >= 0]
    assert grids.fitted({"k": 80, "quantile": 0.5}, graph) == {
        "k": 21, "min_sim": pytest.approx(np.median(sims), abs=1e-6)
    }  # fmt: skip
    assert grids.fitted({"quantile": 1.0}, graph)["min_sim"] > 1


def test_the_search_refines_the_best_point(module):
    grids, graph = module("suite_grids"), random_graph(60, 20, 0)
    coarse = grids.Grid(grids.grid(resolution=(0.01, 0.16), k=(4, 16)), (), ("resolution", "k"))
    points, best = grids.search(
        coarse, graph, lambda p: {"fscore": -abs(np.log(p["resolution"] / 0.04)) - abs(p["k"] - 8)}
    )
    assert best["parameters"] == {"resolution": 0.04, "k": 8}
    assert len(points) == len({str(point["parameters"]) for point in points})


def test_sets_are_made_once_and_are_what_they_say(module, monkeypatch, tmp_path):
    sets = module("suite_sets")
    monkeypatch.setattr(sets, "SHARED", tmp_path / "absent")
    names = ("lfw_dlib", "glyph_six", "large_identities", "sample_doubled", "small_100", "singletons")
    entries, missing = sets.default_sets(tmp_path, names)
    assert [entry.name for entry in entries] == ["large_identities", "sample_doubled", "singletons", "small_100"]
    assert [message.split()[0] for message in missing] == ["lfw_dlib", "glyph_six"]
    assert not any(entry.trained for entry in entries)
    splits = {entry.name: entry.open() for entry in entries}
    assert len(splits["sample_doubled"]) == 2 * 8595
    assert len(np.unique(splits["singletons"].labels)) == len(splits["singletons"])
    assert np.bincount(splits["large_identities"].labels).tolist() == [400] * 6
    assert len(np.unique(splits["small_100"].labels)) == 10
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
    sets.default_sets(tmp_path, names)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
