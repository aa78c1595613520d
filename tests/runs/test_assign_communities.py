"""Test adding to the folder of a run whose clusters are communities."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from helpers.paths import ROOT, STRUCTURAL
from helpers.samples import same_partition
from helpers.steps import check_communities, clustering
from starfc.commands import app
from starfc.config.config import load_config
from starfc.data.dataset import Features
from starfc.graph.knn import exact_knn
from starfc.incremental.state import State, make_rule
from starfc.models.checkpoint import load_model
from starfc.review.measures import COLUMNS, instance_columns
from starfc.runs.assign import assign
from starfc.runs.cluster import run_inference
from starfc.runs.folder import Run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of 200 instances by communities in ``run``, 24 more beside it."""
    place = tmp_path_factory.mktemp("communities")
    features, labels, _, _, _ = clustering("structural")
    np.save(place / "old.npy", features[:200])
    np.save(place / "new.npy", features[200:])
    np.save(place / "labels.npy", labels)
    config = load_config(
        ROOT / "configs" / "cfg_gcn_structural_ms1m.py",
        {"model.kwargs.feature_dim": 16, "partition.type": "infomap"},
    )
    run_inference(config, tau1=0.6, tau2=0.75, features=place / "old.npy", out=place / "run", keep_edges=True)
    return place


STEPS = [((0, 6), [], False), ((6, 9), [3, 30, 31, 77], False), ((9, 9), [60, 191], False), ((9, 9), [], True)]
STEPS += [((9, 16), [], False), ((16, 16), [*range(100, 180, 4)], False), ((16, 24), [5], True)]


@pytest.mark.long
def test_the_folder_follows_the_state_in_memory(run):
    before, new = Run.open(run), np.load(run.parent / "new.npy")
    features = np.concatenate([np.load(run.parent / "old.npy"), new])
    model = load_model(STRUCTURAL)
    rule = make_rule(model, before.tau1, before.tau2, 0.0, "fixed", "infomap")
    old = Features(features[:200])
    state = State.of(rule, old, exact_knn(old, 80), np.arange(200), before.parsed, before.labels)
    for at, ((start, stop), remove, apply) in enumerate(STEPS):
        state.step(Features(features[: 200 + stop]), remove=remove, apply_merges=apply)
        check_communities(state)
        assign(run, new[start:stop], remove=remove, apply_merges=apply)
        there = Run.open(run)
        np.testing.assert_array_equal(there.labels, state.labels)
        np.testing.assert_array_equal(there.parsed.kept, state.clustered.kept)
        np.testing.assert_array_equal(there.parsed.edges.cols, state.parsed.edges.cols)
        found, expected = pq.read_table(run / "clusters.parquet"), instance_columns(there.parsed, there.labels)
        for name in COLUMNS:
            assert found[name].to_pylist() == expected[name].to_pylist(), (at, name)
    assert [step["applied"] for step in there.record["steps"]] == [apply for _, _, apply in STEPS]
    assert len(json.loads((run / "assign.json").read_text())) == len(STEPS)


@pytest.mark.long
def test_explain_and_report_speak_of_communities_after_a_step(run, tmp_path):
    assign(run, run.parent / "new.npy", remove=[0, 5])
    there = Run.open(run)
    assert there.rule.communities
    counts = np.bincount(there.labels[there.labels >= 0])
    a, b = np.flatnonzero(there.labels == counts.argmax())[[0, -1]]
    done = CliRunner().invoke(app, ["explain", str(run), str(a), str(b)])
    assert done.exit_code == 0, done.stderr
    assert f"both in cluster {there.labels[a]}" in done.stdout
    edges = there.parsed.edges
    apart = np.flatnonzero(~there.parsed.kept)
    assert apart.size
    i, j = edges.rows[apart[0]], edges.cols[apart[0]]
    done = CliRunner().invoke(app, ["explain", str(run), str(i), str(j)])
    assert done.exit_code == 0, done.stderr
    assert "between two communities" in done.stdout
    done = CliRunner().invoke(app, ["report", str(run), "-o", str(tmp_path / "page"), "--json"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["instances"] == len(there.labels) - 2
    assert found["clusters"] == len(np.unique(there.labels[there.labels >= 0]))


def test_small_communities_left_out_have_ids_all_the_same(run):
    record, labels = json.loads((run / "run.json").read_text()), np.load(run / "labels.npy")
    small = np.bincount(labels)[labels] < 12
    assert 0 < small.sum() < len(labels)
    np.save(run / "labels.npy", np.where(small, -1, labels))
    (run / "run.json").write_text(json.dumps({**record, "min_cluster_size": 12}))
    (run / "files.json").unlink()
    assign(run, np.load(run.parent / "new.npy"))
    after, clusters = Run.open(run), np.load(run / "state" / "clusters.npy")
    assert same_partition(clusters[:200], labels)
    np.testing.assert_array_equal(after.labels, np.where(np.bincount(clusters)[clusters] < 12, -1, clusters))
