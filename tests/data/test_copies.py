"""Test copies: one row of each direction is clustered, the others follow. Test sets of few rows, down to one."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from helpers.paths import ROOT, STRUCTURAL
from helpers.samples import blobs, same_partition
from starfc.clustering.components import components
from starfc.clustering.copies import join_copies, with_copies
from starfc.clustering.parsing import ParsedEdges
from starfc.clustering.pipeline import cluster
from starfc.clustering.refinement import node_intimacy
from starfc.clustering.summary import kept
from starfc.commands import app
from starfc.data import copies as copies_module
from starfc.data.copies import DISTANCE, find_copies
from starfc.data.dataset import Features
from starfc.estimator import StarFC
from starfc.graph.edges import EdgeList
from starfc.graph.knn import exact_knn
from starfc.models.checkpoint import load_model
from starfc.review.measures import instance_columns
from starfc.runs.assign import assign
from starfc.runs.folder import Run


def twin(rows: np.ndarray) -> np.ndarray:
    """Every pair is compared, in float64; groups by their lowest row."""
    rows = rows.astype(np.float64)
    known = np.isfinite(rows).all(axis=1) & (np.abs(rows).sum(axis=1) > 0)
    lowest = np.arange(len(rows))
    for i in np.flatnonzero(known):
        for j in range(i):
            if known[j] and lowest[j] == j:
                cosine = rows[i] @ rows[j] / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j])
                if 1 - cosine <= DISTANCE:
                    lowest[i] = j
                    break
    return lowest


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("seed", [0, 1])
def test_copies_are_those_of_the_twin(dtype, seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(40, 24))[rng.integers(0, 40, 120)]
    rows += (rng.random((120, 1)) < 0.3) * rng.normal(0, 0.01, rows.shape)  # of another direction, if only just
    rows *= rng.uniform(0.1, 20, (120, 1))
    rows[[5, 9]] = 0
    rows[[11, 30]] = np.nan
    rows = rows.astype(dtype)
    np.testing.assert_array_equal(find_copies(Features(rows)), twin(rows))


def test_the_stored_type_does_not_matter_nor_where_a_block_ends(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(3000, 48)).astype(np.float32)
    every = np.concatenate([rows, 2 * rows, 0.3 * rows.astype(np.float16).astype(np.float32)])
    expected = np.tile(np.arange(len(rows)), 3)
    np.testing.assert_array_equal(find_copies(Features(every)), expected)
    monkeypatch.setattr(copies_module, "BLOCK_BYTES", 4 * 48 * 700)
    np.testing.assert_array_equal(find_copies(Features(every)), expected)


def test_many_copies_of_one_and_none_at_all():
    rows = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    np.testing.assert_array_equal(find_copies(Features(rows)), np.arange(500))
    np.testing.assert_array_equal(find_copies(Features(rows[:0])), [])
    many = np.concatenate([rows[:3], np.repeat(rows[2:3], 1000, axis=0)])
    np.testing.assert_array_equal(find_copies(Features(many)), [0, 1, *[2] * 1001])
    np.testing.assert_array_equal(find_copies(Features(many), np.arange(3, 1003)), [0, 1, 2, *[3] * 1000])


def test_directions_that_pass_into_one_another_are_no_copies_of_what_is_far():
    angle = np.arange(200) * 1e-3  # each within the tolerance of the next
    found = find_copies(Features(np.stack([np.cos(angle), np.sin(angle)], axis=1)))
    assert (np.abs(angle - angle[found]) <= 1.5e-3).all()


def doubled(n: int, times: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n rows, then copies of random ones: all rows in random order, and which of the n each is."""
    rng = np.random.default_rng(seed)
    source = rng.permutation(np.concatenate([np.arange(n), rng.integers(0, n, times)]))
    return blobs(identities=6, size=-(-n // 6), seed=seed)[0][:n][source] * rng.uniform(1, 9, (len(source), 1)), source


@pytest.mark.long
@settings(max_examples=15, deadline=None)
@given(st.integers(2, 120), st.integers(1, 150), st.integers(0, 99), st.sampled_from(["fixed", "dynamic"]))
def test_doubling_rows_changes_no_cluster(n, times, seed, refinement):
    rows, source = doubled(n, times, seed)
    first = np.sort(np.unique(source, return_index=True)[1])
    plain = StarFC(refinement=refinement, tau1=0.5, tau2=0.4, adapt="off").fit(rows[first])
    found = StarFC(refinement=refinement, tau1=0.5, tau2=0.4, adapt="off").fit(rows)
    assert same_partition(found.labels_[first], plain.labels_)
    at = np.searchsorted(np.sort(source[first]), source)
    place = np.argsort(source[first])[at]
    assert same_partition(found.labels_, plain.labels_[place])
    sizes = np.bincount(found.labels_)
    assert (np.diff(sizes) <= 0).all()
    several = np.bincount(place)[place] > 1
    expected = np.where(several & (plain.confidence_[place] == 0), 1, plain.confidence_[place])
    np.testing.assert_array_equal(found.confidence_, expected)


def check_edges(parsed: ParsedEdges, num_nodes: int) -> None:
    """Symmetric, columns sorted, no edge twice."""
    edges = parsed.edges
    assert edges.symmetric
    assert edges.num_nodes == num_nodes
    keys = edges.rows.astype(np.int64) * num_nodes + edges.cols
    assert (np.diff(keys) > 0).all()
    back = np.argsort(edges.cols.astype(np.int64) * num_nodes + edges.rows)
    for values in (edges.scores, parsed.intimacy, parsed.kept):
        np.testing.assert_array_equal(values[back], values)
    if parsed.logits is not None:
        assert len(parsed.logits) == num_nodes


def test_edges_and_summary_hold_together():
    rows, _ = doubled(100, 60, 3)
    features, model = Features(rows), load_model(STRUCTURAL)
    representative = find_copies(features)
    others, sizes = np.unique(representative, return_counts=True)
    distinct = features.subset(others)
    result = cluster(distinct, exact_knn(distinct, 80), model, tau1=0.5, tau2=0.4, sizes=sizes, keep_edges=True)
    wide = with_copies(result, representative)
    copies = len(rows) - len(others)
    assert copies == 60
    check_edges(wide.parsed, len(rows))
    summary, edges = wide.summary, wide.parsed.edges
    assert summary.candidates == result.summary.candidates + copies
    assert (summary.parsed.edges, summary.refined.edges) == (edges.num_edges, wide.parsed.kept.sum() // 2)
    roots = np.unique(representative, return_inverse=True)[1]
    assert summary.parsed == kept(components(edges), edges.num_edges)
    assert summary.parsed.components == len(np.unique(components(result.parsed.edges)[roots]))
    assert summary.refined.largest == np.bincount(wide.labels).max()
    inside = np.bincount(wide.labels[edges.rows[wide.parsed.kept]], minlength=wide.num_clusters) // 2
    np.testing.assert_array_equal(summary.cluster_edges, inside[: len(summary.cluster_edges)])
    assert (inside[len(summary.cluster_edges) :] == 0).all()
    total = np.bincount(wide.labels[edges.rows], edges.scores * wide.parsed.kept, minlength=wide.num_clusters) / 2
    mean = (total / np.maximum(inside, 1))[: len(summary.cluster_scores)]
    np.testing.assert_allclose(summary.cluster_scores, mean, rtol=1e-5)
    assert len(summary.cluster_edges) == (np.bincount(wide.labels) > 1).sum()
    assert with_copies(result, np.arange(len(others))) is result


def test_a_directed_list_gets_an_edge_from_each_copy():
    edges = EdgeList.from_rows(np.array([0, 2]), np.array([2, 0], np.int32), np.array([0.5, 0.75], np.float32), 4)
    parsed = ParsedEdges(edges, np.zeros(2, np.float32), np.zeros(2, bool))
    joined = join_copies(parsed, np.array([0, 0, 2, 2]))
    np.testing.assert_array_equal(joined.edges.rows, [0, 1, 2, 3])
    np.testing.assert_array_equal(joined.edges.cols, [2, 0, 0, 2])
    np.testing.assert_array_equal(joined.edges.scores, np.float32([0.5, 1, 0.75, 1]))
    np.testing.assert_array_equal(joined.kept, [False, True, False, True])


@pytest.mark.long
def test_explain_and_report_know_copies(tmp_path):
    rows, source = doubled(90, 40, 1)
    estimator = StarFC().fit(rows)
    a, b = np.flatnonzero(source == source[np.bincount(source)[source] > 1][0])[:2]
    found = estimator.explain(a, b)
    assert found.together
    assert found.path[0].score == found.path[0].intimacy == 1
    estimator.report(tmp_path / "page")
    measures = instance_columns(estimator.edge_scores_, estimator.labels_)
    assert len(measures["suspicion"]) == len(rows)


def test_rows_are_kept_where_that_is_asked_for():
    rows, _ = doubled(100, 30, 2)
    estimator = StarFC(STRUCTURAL, copies="keep").fit(rows)
    graph = exact_knn(Features(rows.astype(np.float64)), 80)
    twin = cluster(
        Features(rows), graph, load_model(STRUCTURAL), tau1=estimator.tau1_, tau2=estimator.tau2_, keep_edges=True
    )
    np.testing.assert_array_equal(estimator.labels_, twin.labels)
    np.testing.assert_array_equal(estimator.edge_scores_.edges.cols, twin.parsed.edges.cols)


def intimacies_hold(estimator: StarFC, representative: np.ndarray) -> None:
    """Of the edges that do not lead to copies they are what counting gives; of those that do, 1."""
    parsed = estimator.edge_scores_
    copy = representative != np.arange(len(representative))
    edges = parsed.edges
    to_copy = copy[edges.rows] | copy[edges.cols]
    assert (parsed.intimacy[to_copy] == 1).all()
    assert parsed.kept[to_copy].all()
    np.testing.assert_allclose(parsed.intimacy[~to_copy], node_intimacy(edges.select(~to_copy)), rtol=1e-6)


def test_partial_fit_after_copies_and_with_them():
    rows, _ = doubled(150, 70, 5)
    estimator = StarFC().fit(rows[:150])
    before = estimator.labels_.copy()
    estimator.partial_fit(rows[150:])
    np.testing.assert_array_equal(estimator.labels_[:150], before)
    representative = find_copies(Features(rows))
    np.testing.assert_array_equal(estimator.labels_, estimator.labels_[representative])
    check_edges(estimator.edge_scores_, len(rows))
    intimacies_hold(estimator, representative)
    assert (estimator.confidence_[representative != np.arange(len(rows))] > 0).all()
    assert estimator.assigned_.num_clusters == len(np.unique(estimator.labels_))
    again = rows[:20] * 3
    estimator.partial_fit(again)
    np.testing.assert_array_equal(estimator.labels_[len(rows) :], estimator.labels_[:20])
    assert (estimator.assigned_.joined, estimator.assigned_.created) == (20, [])


@pytest.mark.long
def test_a_copy_takes_over_from_its_representative():
    rows, _ = doubled(150, 60, 6)
    estimator = StarFC().fit(rows[:180])
    estimator.partial_fit(rows[180:])
    state, representative = estimator._state, find_copies(Features(rows))
    owners, sizes = np.unique(representative, return_counts=True)
    gone = owners[sizes > 1][:6]
    lone = owners[sizes == 1][:2]
    ids, labels = state.lists.ids.copy(), state.labels.copy()
    heirs = [np.flatnonzero(representative == row)[1] for row in gone]
    assigned = state.step(state.features, remove=[*gone, *lone])
    assert assigned.removed == sorted([*gone, *lone])
    left = np.setdiff1d(np.arange(len(rows)), [*gone, *lone])
    np.testing.assert_array_equal(state.labels[left], labels[left])
    assert (state.labels[gone] == -1).all()
    np.testing.assert_array_equal(state.representative[representative == gone[0]][1:], heirs[0])
    check_edges(state.clustered, len(rows))
    assert not np.isin(state.clustered.edges.cols, gone).any()
    # lists: those that a search of everything that is left finds
    alive = np.flatnonzero(state.lists.alive)
    expected = exact_knn(Features(rows[alive]), 80)
    found = state.lists.ids[alive]
    close = np.sort(np.append(alive, -1)[expected.ids], axis=1) == np.sort(found, axis=1)
    assert close.mean() > 0.999
    assert set(heirs) <= set(alive)
    assert (ids[heirs] == -1).all()
    # the last of a direction goes with its edges; one that is a copy leaves nothing behind
    more = np.flatnonzero(state.representative != np.arange(len(rows)))[:3]
    state.step(state.features, remove=more)
    assert (state.labels[more] == -1).all()


SIZES = (1, 2, 3, 10, 40, 79, 80, 81)


@pytest.mark.long
@pytest.mark.parametrize("n", SIZES)
def test_the_estimator_takes_any_number_of_rows(n, caplog):
    rows, _ = blobs()
    with caplog.at_level(logging.WARNING, "starfc"):
        estimator = StarFC().fit(rows[:n])
    said = [record.getMessage() for record in caplog.records if "lists of" in record.getMessage()]
    assert said == (
        [f"X: lists of at most {n - 1} neighbours instead of 79; clusters may be less certain"] if n < 80 else []
    )
    assert estimator.labels_.shape == estimator.confidence_.shape == (n,)
    assert (np.bincount(estimator.labels_) > 0).all()
    grown = estimator.partial_fit(rows[n:])
    assert len(grown.labels_) == len(rows)
    check_edges(grown.edge_scores_, len(rows))
    lists = exact_knn(Features(rows), 80)  # as long as of all rows
    np.testing.assert_allclose(estimator._state.lists.sims, lists.sims, atol=1e-6)
    if n > 1:
        StarFC(refinement="dynamic").fit(rows[:n])
        StarFC(partition="infomap").fit(rows[:n])


def test_copies_of_one_row_and_no_row_with_a_direction():
    one = blobs()[0][:1]
    for times in (1, 2, 100):
        estimator = StarFC().fit(np.repeat(one, times, axis=0))
        assert (estimator.labels_ == 0).all()
        assert (estimator.confidence_ == (times > 1)).all()
    none = StarFC(invalid_rows="singleton").fit(np.zeros((3, 16)))
    np.testing.assert_array_equal(none.labels_, [0, 1, 2])
    none.partial_fit(blobs()[0][:20])
    assert len(none.labels_) == 23


def test_a_lower_k_is_taken_and_warned_of(caplog):
    rows, _ = blobs()
    with caplog.at_level(logging.WARNING, "starfc"):
        StarFC(k=20).fit(rows)
    assert [r.getMessage() for r in caplog.records if "lists of" in r.getMessage()] == [
        "k 20: lists of at most 19 neighbours instead of 79; clusters may be less certain"
    ]


@pytest.fixture
def starfc():
    def run(*arguments):
        done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        return done.stdout + done.stderr

    return run


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


@pytest.mark.long
@pytest.mark.parametrize("n", SIZES)
def test_the_command_takes_any_number_of_rows(n, starfc, tmp_path, caplog):
    rows, _ = blobs()
    np.save(tmp_path / "f.npy", rows[:n])
    np.save(tmp_path / "more.npy", rows[n : n + 30])
    said = starfc("cluster", tmp_path / "f.npy", "-o", tmp_path / "out") + caplog.text
    assert (f"lists of at most {n - 1} neighbours instead of 79; clusters may be less certain" in said) == (n < 80)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "labels.npy"), StarFC().fit(rows[:n]).labels_)
    assert record_of(tmp_path / "out")["num_copies"] == 0
    starfc("report", tmp_path / "out", "-o", tmp_path / "page")
    for _ in range(2):
        starfc("assign", tmp_path / "out", tmp_path / "more.npy")
    run = Run.open(tmp_path / "out")
    assert len(run.labels) == n + 60
    np.testing.assert_array_equal(run.labels[-30:], run.labels[n : n + 30])  # the same rows again
    assert run.record["num_copies"] == 30


@pytest.mark.long
def test_a_folder_with_copies(starfc, tmp_path, caplog):
    rows, source = doubled(150, 50, 7)
    out = tmp_path / "out"
    np.save(tmp_path / "f.npy", rows.astype(np.float32))
    said = starfc("cluster", tmp_path / "f.npy", "-o", out)
    assert "50 instances are copies of others, and have the same labels as these" in said
    assert record_of(out)["num_copies"] == 50
    graphs = list((out / "knn").iterdir())
    assert [json.loads((g / "manifest.json").read_text())["num_nodes"] for g in graphs] == [150]
    check_edges(Run.open(out).parsed, 200)
    np.testing.assert_array_equal(Run.open(out).labels, StarFC().fit(rows.astype(np.float32)).labels_)
    a, b = np.flatnonzero(source == source[np.bincount(source)[source] > 1][0])[:2]
    assert "both in" in starfc("explain", out, a, b)

    before = Run.open(out).labels.copy()
    first = np.flatnonzero(find_copies(Features(rows)) != np.arange(200))[0]
    owner = find_copies(Features(rows))[first]
    np.save(tmp_path / "new.npy", np.concatenate([rows[:10], blobs(seed=9)[0][:10]]).astype(np.float32))
    assigned = assign(out, tmp_path / "new.npy")
    assert "searched for anew" not in caplog.text  # the graph of the representatives is found again
    np.testing.assert_array_equal(assigned.labels[:10], before[:10])
    assert record_of(out)["num_copies"] == 60
    assigned = assign(out, remove=[int(owner)])
    run = Run.open(out)
    assert run.labels[owner] == -1
    np.testing.assert_array_equal(np.delete(run.labels[:200], owner), np.delete(before, owner))
    assert record_of(out)["num_copies"] == 59
    again = assign(out, rows[[owner]].astype(np.float32))
    assert again.labels[0] == before[owner]
    (out / "state" / "ids.npy").unlink()  # the state is lost: it is made anew
    again = assign(out, rows[[first]].astype(np.float32))
    assert again.labels[0] == before[first]
    run = Run.open(out)
    check_edges(run.parsed, 222)
    starfc("report", out, "-o", tmp_path / "page")


@pytest.mark.long
def test_a_graph_of_all_rows_keeps_the_copies(starfc, tmp_path, caplog):
    rows, _ = doubled(500, 20, 8)  # so many that lists have one length
    np.save(tmp_path / "f.npy", rows.astype(np.float32))
    starfc("knn", tmp_path / "f.npy", "-o", tmp_path / "graph", "--k", 80)
    said = starfc("cluster", tmp_path / "f.npy", "-o", tmp_path / "a", "--knn-graph", tmp_path / "graph") + caplog.text
    assert "20 of 520 rows are copies of others (the same direction). They are kept, because the kNN graph" in said
    starfc("cluster", tmp_path / "f.npy", "-o", tmp_path / "b", "--copies", "keep")
    np.testing.assert_array_equal(np.load(tmp_path / "a" / "labels.npy"), np.load(tmp_path / "b" / "labels.npy"))
    assert record_of(tmp_path / "a")["num_copies"] == record_of(tmp_path / "b")["num_copies"] == 0


@pytest.mark.parametrize("k", [20, 100])
def test_the_command_takes_another_k(k, starfc, tmp_path, caplog):
    np.save(tmp_path / "f.npy", blobs(size=45)[0])  # 540 rows: of fewer, shorter lists are tried too
    said = starfc("cluster", tmp_path / "f.npy", "-o", tmp_path / "out", "--k", k) + caplog.text
    assert said.count("lists of at most 19 neighbours instead of 79") == (said.count("neighbours instead of"))
    assert ("lists of at most 19 neighbours instead of 79" in said) == (k == 20)
    assert record_of(tmp_path / "out")["knn_graph"]["k"] == k


def test_a_structural_config_takes_few_rows_and_invalid_ones(command, tmp_path):
    rows = np.full((3, 16), np.nan, np.float32)
    np.save(tmp_path / "none.npy", rows)
    rows[1] = 1
    np.save(tmp_path / "one.npy", rows)
    for name in ("none", "one"):
        for script in ("test_final.py", "test_dynamic.py"):
            code, _, err = command(
                script, "--config", ROOT / "configs" / "cfg_gcn_structural_ms1m.py",
                "--model", STRUCTURAL, "--features", tmp_path / f"{name}.npy", "--out", tmp_path / name,
                "--cfg-options", "model.kwargs.feature_dim=16", "invalid_rows=singleton",
            )  # fmt: skip
            assert code == 0, err
            assert sorted(np.load(tmp_path / name / "labels.npy")) == [0, 1, 2]
