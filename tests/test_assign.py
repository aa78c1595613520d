"""Adding to a clustering and removing from it: lists, edges, clusters, and the folder that holds them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import blobs, same_partition, unit
from typer.testing import CliRunner

from starfc.clustering.components import components
from starfc.clustering.parsing import ParsedEdges
from starfc.clustering.pipeline import cluster
from starfc.clustering.refinement import node_intimacy
from starfc.commands import app
from starfc.config.config import load_config
from starfc.data.dataset import Features
from starfc.errors import InputError, MissingFileError
from starfc.estimator import PRETRAINED, StarFC
from starfc.graph.edges import EdgeList, undirected
from starfc.graph.knn import exact_knn
from starfc.graph.structure import NO_LOGIT
from starfc.incremental import lists as lists_module
from starfc.incremental.clusters import regroup
from starfc.incremental.edges import Changed, changed, without
from starfc.incremental.lists import Lists
from starfc.incremental.state import State, make_rule
from starfc.models.checkpoint import load_model, save_model
from starfc.models.gcn import StarFCModel
from starfc.models.hierarchical import HierarchicalModel
from starfc.models.structural import StructuralModel
from starfc.review.measures import COLUMNS, instance_columns
from starfc.runs import assign as folder_module
from starfc.runs.assign import assign
from starfc.runs.cluster import run_inference
from starfc.runs.folder import Run
from starfc.storage.commit import NEXT, changing
from starfc.storage.owners import ASSIGN

STRUCTURAL = PRETRAINED.parent / "structural"  # weights that see no context


ROOT = Path(__file__).resolve().parent.parent
NONE = np.empty(0, np.int64)


def lattice(n: int, dim: int, seed: int) -> np.ndarray:
    """Unit vectors of ±1/√d or so whose products are exact in float32 and tie often."""
    return (np.random.default_rng(seed).choice([-1.0, 1.0], (n, dim)) / np.sqrt(dim)).astype(np.float32)


def empty_lists(k: int) -> Lists:
    return Lists(
        np.empty((0, k), np.int32), np.empty((0, k), np.float32), np.empty(0, bool), np.empty((0, 0), np.int8),
        np.empty(0, bool), 0,
    )  # fmt: skip


def searched(features: np.ndarray, k: int, first: int, remove=()) -> Lists:
    """Lists of the first rows, then of all, some of the first removed on the way."""
    lists = empty_lists(k).grown(np.ones(first, bool))
    lists.enter(lists.search(Features(features[:first], normalise=False), 0, NONE))
    lists = lists.grown(np.ones(len(features) - first, bool))
    gone = np.asarray(remove, np.int64)
    lists.remove(gone)
    lists.enter(lists.search(Features(features, normalise=False), first, gone))
    return lists


@pytest.mark.parametrize(("dim", "k"), [(64, 20), (4, 20), (16, 90)])
def test_lists_are_those_of_a_search_of_everything(dim, k):
    """Many ties; many duplicates, so that a node's own id falls out; and fewer nodes than k at first."""
    features = lattice(160, dim, 0)
    features[:, 0] = np.abs(features[:, 0])
    if dim == 16:  # similarities clipped to 0 have no order: keep the others only
        features = np.abs(features) * np.where(np.random.default_rng(1).random(features.shape) < 0.15, -1, 1)
        features = features.astype(np.float32)
    lists, whole = searched(features, k, 80), exact_knn(features, k)
    clear = (whole.sims[:, -2] > 0) | (whole.ids[:, -2] < 0)
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(lists.ids[clear], whole.ids[clear])
    np.testing.assert_array_equal(lists.sims[clear], whole.sims[clear])


def test_lists_after_removal_are_those_of_the_rows_that_remain():
    features = unit(np.random.default_rng(0).normal(1, 1, (150, 24)))
    gone = np.array([3, 4, 99])
    lists = searched(features, 12, 100, remove=gone)
    stay = np.setdiff1d(np.arange(150), gone)
    whole = exact_knn(features[stay], 12)
    np.testing.assert_array_equal(lists.ids[stay], np.append(stay, -1)[whole.ids])
    np.testing.assert_allclose(lists.sims[stay], whole.sims, atol=1e-6)
    assert (lists.ids[gone] == -1).all()
    assert not lists.alive[gone].any()


def test_rounded_products_find_the_same_lists(monkeypatch):
    """Groups so narrow that rounding cannot tell their members apart are searched for again."""
    rng = np.random.default_rng(0)
    features = rng.normal(0.3, 1, (900, 48))
    features[300:700] = features[300] + 1e-3 * features[300:700]
    features = unit(features[rng.permutation(900)])
    gone = np.array([3, 4, 99])
    plain = searched(features, 12, 600, remove=gone)
    monkeypatch.setattr(lists_module, "product_dtype", lambda: torch.bfloat16)
    monkeypatch.setattr(lists_module, "_SMALL", 0)
    calls = []
    products = lists_module._products
    monkeypatch.setattr(lists_module, "_products", lambda *given: calls.append(given) or products(*given))
    rounded = searched(features, 12, 600, remove=gone)
    assert {given[-1] for given in calls} == {torch.float32, torch.bfloat16}
    np.testing.assert_allclose(rounded.sims, plain.sims, atol=1e-6)
    sharp = np.diff(plain.sims[:, :11], axis=1).max(axis=1) < -1e-6  # float32 sums of another order differ
    assert sharp.sum() > 100
    assert (rounded.ids[sharp, :10] == plain.ids[sharp, :10]).mean() > 0.999


def test_codes_move_with_their_entries():
    features = unit(np.random.default_rng(0).normal(1, 1, (60, 8)))
    lists = searched(features[:50], 10, 50)
    lists.codes, lists.candidates = (lists.ids[:, :9] % 100).astype(np.int8), 6
    lists.codes[:, 6:] = NO_LOGIT
    lists = lists.grown(np.ones(10, bool))
    lists.enter(lists.search(Features(features, normalise=False), 50, NONE))
    old = lists.ids[:50, :6]
    assert (old >= 50).any()
    np.testing.assert_array_equal(lists.codes[:50, :6], np.where(old >= 50, NO_LOGIT, old))
    assert (lists.codes[:, 6:] == NO_LOGIT).all()


def random_edges(n: int, seed: int, symmetric: bool) -> ParsedEdges:
    rng = np.random.default_rng(seed)
    dense = np.triu(rng.random((n, n)) < 0.25, 1) if symmetric else rng.random((n, n)) < 0.2
    np.fill_diagonal(dense, False)
    rows, cols = np.nonzero(dense)
    edges = EdgeList.from_rows(rows, cols.astype(np.int32), rng.random(len(rows)).astype(np.float32), n)
    edges = undirected(edges) if symmetric else edges
    intimacy = node_intimacy(edges)
    return ParsedEdges(edges, intimacy, intimacy > 0.4)


@pytest.mark.parametrize("symmetric", [True, False])
def test_intimacies_are_those_of_the_whole_list(symmetric):
    """Edges of nodes 0..39, then those at 40..49 added; nodes 5 and 45 taken out on the way and at the end."""
    whole = random_edges(50, 0, symmetric)
    early = (whole.edges.rows < 40) & (whole.edges.cols < 40)
    edges = whole.edges.select(early)
    edges = EdgeList(edges.indptr[:41], edges.cols, edges.scores, symmetric)
    intimacy = node_intimacy(edges)
    parsed = ParsedEdges(edges, intimacy, intimacy > 0.4)
    added = whole.edges.rows[~early], whole.edges.cols[~early], whole.edges.scores[~early]
    result = changed(parsed, added, 50, np.empty(0, np.int64), 0.4).parsed
    assert result.edges.symmetric == symmetric
    np.testing.assert_array_equal(result.intimacy, node_intimacy(result.edges))
    np.testing.assert_array_equal(result.kept, result.intimacy > 0.4)
    if symmetric:
        np.testing.assert_array_equal(result.edges.cols, whole.edges.cols)
        np.testing.assert_array_equal(result.intimacy, whole.intimacy)
    nothing = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    rest, ends = without(result, np.array([5, 45]))
    result = changed(rest, nothing, 50, ends, 0.4).parsed
    assert not np.isin(result.edges.cols, [5, 45]).any()
    assert not np.isin(result.edges.rows, [5, 45]).any()
    np.testing.assert_array_equal(result.intimacy, node_intimacy(result.edges))
    np.testing.assert_array_equal(result.kept, result.intimacy > 0.4)


def graph_of(pairs: dict[tuple[int, int], float], n: int, lost: tuple[tuple[int, int], ...] = ()) -> Changed:
    """Kept edges with their scores, symmetric; ``lost`` ones are parsed and no longer kept."""
    every = {**pairs, **dict.fromkeys(lost, 0.5)}
    rows, cols = np.array(list(every)).T
    scores = np.array(list(every.values()), np.float32)
    order = np.lexsort([cols, rows])
    edges = undirected(EdgeList.from_rows(rows[order], cols[order].astype(np.int32), scores[order], n))
    kept = np.array([
        (min(i, j), max(i, j)) in pairs for i, j in zip(edges.rows.tolist(), edges.cols.tolist(), strict=True)
    ])  # fmt: skip
    entries = np.arange(len(edges))
    parsed = ParsedEdges(edges, np.full(len(edges), 0.9, np.float32), kept)
    return Changed(parsed, entries, np.ones(len(edges), bool), np.ones(n, bool))


def test_new_instances_join_bridge_and_found_by_hand():
    """Clusters {0, 1, 2} and {3, 4}; 5 is between both, nearer to the second; 6 and 7 are new together; 8 is alone."""
    edges = graph_of({(0, 1): 0.9, (1, 2): 0.9, (3, 4): 0.9, (1, 5): 0.8, (4, 5): 0.95, (6, 7): 0.9}, 9)
    labels = np.array([0, 0, 0, 4, 4, -1, -1, -1, -1])
    found = regroup(labels, 7, edges, np.arange(5, 9), np.empty(0, np.int64), apply=False)
    np.testing.assert_array_equal(found.labels, [0, 0, 0, 4, 4, 4, 7, 7, 8])
    assert (found.next_label, found.joined, found.created.tolist()) == (9, 1, [7, 8])
    (merge,) = found.merges
    assert (merge.clusters, merge.via, merge.into, merge.edges) == ((0, 4), [5], None, 1)
    assert merge.evidence == [(1, 5, pytest.approx(0.8), pytest.approx(0.9))]
    found = regroup(labels, 7, edges, np.arange(5, 9), np.empty(0, np.int64), apply=True)
    np.testing.assert_array_equal(found.labels, [0, 0, 0, 0, 0, 0, 7, 7, 8])
    assert found.merges[0].into == 0


def test_a_chain_of_new_instances_does_not_join_two_clusters():
    edges = graph_of({(0, 1): 0.9, (2, 3): 0.9, (0, 4): 0.8, (4, 5): 0.7, (3, 5): 0.9}, 6)
    found = regroup(np.array([0, 0, 1, 1, -1, -1]), 2, edges, np.arange(4, 6), np.empty(0, np.int64), apply=False)
    np.testing.assert_array_equal(found.labels, [0, 0, 1, 1, 0, 1])
    assert found.merges[0].via == [4, 5]


def test_a_cluster_that_comes_apart_is_listed_and_stays_listed():
    edges = graph_of({(0, 1): 0.9, (2, 3): 0.9, (3, 4): 0.9}, 6, lost=((1, 2),))
    labels = np.array([3, 3, 3, 3, 3, 1])
    found = regroup(labels, 4, edges, np.empty(0, np.int64), np.empty(0, np.int64), apply=False)
    np.testing.assert_array_equal(found.labels, labels)
    (split,) = found.splits
    assert (split.cluster, split.sizes, split.rows, split.ids) == (3, [3, 2], [[0, 1]], None)
    quiet = Changed(edges.parsed, np.empty(0, np.int64), np.empty(0, bool), np.zeros(6, bool))
    again = regroup(labels, 4, quiet, np.empty(0, np.int64), found.suspects, apply=True)
    np.testing.assert_array_equal(again.labels, [4, 4, 3, 3, 3, 1])
    assert again.splits[0].ids == [3, 4]
    assert not again.suspects.size


def clustering(kind: str, dim: int = 16):
    features, labels = blobs(identities=14, size=16, dim=dim, noise=0.9, seed=3)
    if kind == "structural":
        return features, labels, load_model(STRUCTURAL), 80, (0.8, 0.7)
    model = StarFCModel(dim, 32, init="metric", generator=torch.Generator().manual_seed(0))
    return features, labels, model, 20, (0.6, 0.6)


def state_of(features: np.ndarray, rows: int, model, k: int, taus: tuple[float, float]) -> State:
    first = Features(features[:rows])
    graph = exact_knn(first, k)
    result = cluster(first, graph, model, tau1=taus[0], tau2=taus[1], keep_edges=True)
    rule = make_rule(model, *taus, 0.0, "fixed", "components")
    return State.of(rule, first, graph, np.arange(rows), result.parsed, result.labels)


@pytest.mark.parametrize("kind", ["structural", "gcn"])
def test_a_step_scores_new_edges_as_clustering_everything_would(kind):
    features, _, model, k, taus = clustering(kind)
    state = state_of(features, 200, model, k, taus)
    state.lists.known[:] = False  # so that no logit is of the graph before
    before = state.labels.copy()
    assigned = state.step(Features(features))
    whole = cluster(
        Features(features), exact_knn(Features(features), k), model, tau1=taus[0], tau2=taus[1], keep_edges=True
    )
    found, wanted = (
        {
            (i, j): p
            for i, j, p in zip(e.rows.tolist(), e.cols.tolist(), e.scores.tolist(), strict=True)
            if max(i, j) >= 200
        }
        for e in (state.parsed.edges, whole.parsed.edges)
    )
    assert len(wanted) > 50
    assert len(found.keys() ^ wanted.keys()) <= 0.01 * len(wanted)  # similarities differ by their rounding
    assert max(abs(found[e] - wanted[e]) for e in found.keys() & wanted.keys()) < 0.02
    np.testing.assert_array_equal(state.labels[:200], before)
    assert assigned.joined + np.isin(assigned.labels, assigned.created).sum() == len(features) - 200
    np.testing.assert_array_equal(state.parsed.intimacy, node_intimacy(state.parsed.edges))


@pytest.mark.parametrize("kind", ["structural", "gcn"])
def test_with_merges_applied_clusters_are_the_components(kind):
    features, _, model, k, taus = clustering(kind)
    state = state_of(features, 150, model, k, taus)
    state.step(Features(features[:180]), remove=[3, 8, 20])
    state.step(Features(features), remove=[151], apply_merges=True)
    there = state.labels >= 0
    assert np.flatnonzero(~there).tolist() == [3, 8, 20, 151]
    kept = state.parsed.edges.select(state.parsed.kept)
    assert same_partition(components(kept)[there], state.labels[there])
    assert not np.isin(kept.cols, [3, 8, 20, 151]).any()
    with pytest.raises(InputError, match="removed before"):
        state.step(state.features, remove=[8])
    with pytest.raises(InputError, match="rows from 0 to"):
        state.step(state.features, remove=[224])


@pytest.mark.parametrize(("columns", "candidates"), [(79, 40), (19, 40), (19, 5)])
def test_every_row_whose_logits_are_known_has_one_for_each_candidate(columns, candidates):
    features, _, _, _, _ = clustering("structural")
    generator = torch.Generator().manual_seed(0)
    model = StructuralModel(16, columns=columns, candidates=candidates, generator=generator)
    state = state_of(features, 150, model, columns + 1, (0.4, 0.3))
    for stop, remove in ((170, [4, 9]), (170, [11]), (224, [160])):
        state.step(Features(features[:stop]), remove=remove)
        lists, own = state.lists, slice(0, min(columns, candidates))
        asked = lists.known[:, None] & (lists.ids[:, own] >= 0)
        assert asked.sum() > 100 * min(candidates, columns)
        assert (lists.codes[:, own][asked] != NO_LOGIT).all()
        assert (lists.codes[:, own][lists.ids[:, own] < 0] == NO_LOGIT).all()


def test_kinds_that_cannot_be_added_to_are_refused():
    with pytest.raises(InputError, match="fixed refinement"):
        make_rule(load_model(STRUCTURAL), 0.6, 0.5, 0.0, "dynamic", "components")
    with pytest.raises(InputError, match="hierarchical"):
        make_rule(HierarchicalModel(16, 32, scales=(5, 10, 20)), 0.6, 0.5, 0.0, "fixed", "components")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of 200 instances in ``run``, 24 more and their labels beside it."""
    place = tmp_path_factory.mktemp("assign")
    features, labels, _, _, _ = clustering("structural")
    np.save(place / "old.npy", features[:200])
    np.save(place / "new.npy", features[200:].astype(np.float64))
    np.save(place / "labels.npy", labels)
    config = load_config(
        ROOT / "configs" / "cfg_gcn_structural_ms1m.py",
        {"invalid_rows": "singleton", "model.kwargs.feature_dim": 16},
    )
    run_inference(config, tau1=0.8, tau2=0.7, features=place / "old.npy", out=place / "run", keep_edges=True)
    return place


@pytest.fixture
def run(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy" / "run"


def test_a_folder_after_two_steps_is_whole(run):
    new = np.load(run.parent / "new.npy")
    new[5] = np.nan
    before = Run.open(run)
    first = assign(run, new[:10].astype(np.float32))
    (run.parent / "old.npy").unlink()  # it is no longer needed
    shutil.rmtree(run / "knn")
    second = assign(run, new[10:], remove=[1, 205], labels=run.parent / "labels.npy")
    after = Run.open(run)
    assert len(after.labels) == len(after.features()) == 224
    stay = np.setdiff1d(np.arange(200), [1])
    np.testing.assert_array_equal(after.labels[stay], before.labels[stay])
    np.testing.assert_array_equal(after.labels[210:], second.labels)
    assert after.labels[1] == after.labels[205] == -1
    assert first.labels[5] in first.created  # the row of NaN is on its own
    assert (run / "labels.meta").read_text().split() == list(map(str, after.labels.tolist()))
    assert [step["added"] for step in after.record["steps"]] == [10, 14]
    assert after.record["metrics"]["pairwise"]["fscore"] > 0.5
    history = json.loads((run / "assign.json").read_text())
    assert [step["removed"] for step in history] == [[], [1, 205]]
    np.testing.assert_allclose(after.features().rows(slice(210, 224)), unit(new[10:]), atol=1e-6)


@pytest.mark.parametrize("small", [1, 30])
def test_measures_after_steps_are_those_of_everything_measured_anew(tmp_path, small):
    features, _, _, _, _ = clustering("structural")
    features[[150, 205]] = features[[10, 40]]  # duplicates: many cuts are equal
    np.save(tmp_path / "old.npy", features[:190])
    config = load_config(ROOT / "configs" / "cfg_gcn_structural_ms1m.py", {"model.kwargs.feature_dim": 16})
    run_inference(
        config,
        tau1=0.6,
        tau2=0.75,
        features=tmp_path / "old.npy",
        out=tmp_path,
        keep_edges=True,
        min_cluster_size=small,
    )
    splits, merges, bridges = 0, 0, set()
    steps = [((190, 200), [], False), ((200, 204), [3, 30, 31, 77], False), ((204, 204), [60, 191], False)]
    steps += [((204, 204), [], True), ((204, 212), [], False), ((212, 216), [*range(100, 180, 4)], False)]
    steps += [((216, 216), [], small == 1), ((216, 224), [5], True)]
    for at, (rows, remove, apply) in enumerate(steps):
        if at == 6 and small > 1:
            (tmp_path / "state" / "sims.npy").unlink()  # the state is made anew, and with it ids of small clusters
        assigned = assign(tmp_path, features[slice(*rows)], remove=remove, apply_merges=apply)
        splits, merges = splits + len(assigned.splits), merges + len(assigned.merges)
        found = pq.read_table(tmp_path / "clusters.parquet")
        expected = instance_columns(Run.open(tmp_path).parsed, np.load(tmp_path / "state" / "clusters.npy"))
        for name in COLUMNS:
            assert found[name].to_pylist() == expected[name].to_pylist(), (at, name)
        bridges |= {bridge for bridge in found["weakest_bridge_a"].to_pylist() if bridge is not None}
    assert splits > 0
    assert merges > 0
    assert len(bridges) > 5


def test_a_run_with_rows_without_direction_is_added_to(tmp_path):
    features, _, _, _, _ = clustering("structural")
    features[[3, 70]] = np.nan
    np.save(tmp_path / "old.npy", features[:200].astype(np.float16))
    config = load_config(
        ROOT / "configs" / "cfg_gcn_structural_ms1m.py",
        {"invalid_rows": "singleton", "model.kwargs.feature_dim": 16},
    )
    run_inference(config, tau1=0.8, tau2=0.7, features=tmp_path / "old.npy", out=tmp_path / "run", keep_edges=True)
    before = Run.open(tmp_path / "run").labels
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    (tmp_path / "other" / "edges" / "logits.npy").unlink()  # of a run that kept none: they are computed where needed
    (tmp_path / "other" / "files.json").unlink()
    for folder in ("run", "other"):
        assign(tmp_path / folder, 1e6 * features[200:])  # above what float16 holds; its direction is kept
        after = Run.open(tmp_path / folder)
        np.testing.assert_array_equal(after.labels[:200], before)
        alive, ids = (
            np.load(tmp_path / folder / "state" / "alive.npy"),
            np.load(tmp_path / folder / "state" / "ids.npy"),
        )
        assert np.flatnonzero(~alive).tolist() == [3, 70]
        assert not np.isin(ids, [3, 70]).any()
        assert (ids[[3, 70]] == -1).all()
        assert (after.parsed.edges.cols >= 200).any()
        np.testing.assert_array_equal(after.parsed.intimacy, node_intimacy(after.parsed.edges))


def test_steps_in_the_folder_are_those_in_memory(run):
    features, _, model, k, taus = clustering("structural")
    state = state_of(features, 200, model, k, taus)
    for stop, remove in ((212, [7]), (224, [])):
        state.step(Features(features[:stop]), remove=remove)
        assign(run, features[len(Run.open(run).labels) : stop], remove=remove)
    there = Run.open(run)
    np.testing.assert_array_equal(there.labels, state.labels)
    np.testing.assert_array_equal(there.parsed.edges.cols, state.parsed.edges.cols)
    np.testing.assert_array_equal(there.parsed.kept, state.clustered.kept)
    assert 0 < len(state.across) < state.parsed.kept.sum()
    edges = there.parsed.edges.select(there.parsed.kept)
    assert (there.labels[edges.rows] == there.labels[edges.cols]).all()
    merged = assign(run, apply_merges=True).merges
    assert sum(2 * merge.edges for merge in merged) == len(state.across)
    there, stay = Run.open(run), state.labels >= 0
    assert same_partition(there.labels[stay], components(there.parsed.edges.select(there.parsed.kept))[stay])


def test_lists_kept_as_steps_are_those_written_whole(run, monkeypatch):
    new, whole = np.load(run.parent / "new.npy"), run.parent / "written-whole"
    shutil.copytree(run, whole)
    for folder, share in ((whole, np.inf), (run, 0)):
        monkeypatch.setattr(folder_module, "_SHARE", share)
        for rows, remove in ((slice(0, 8), []), (slice(8, 9), [3, 201]), (slice(9, 9), [11]), (slice(9, None), [])):
            assign(folder, new[rows], remove=remove)
    assert sorted(path.name for path in (run / "state").glob("step-*")) == [f"step-{at}.npz" for at in (2, 3, 4)]
    assert not list((whole / "state").glob("step-*"))
    one, other = (
        folder_module._read_state(Run.open(folder))[0].lists.grown(np.ones(2, bool)) for folder in (run, whole)
    )
    for name in ("ids", "sims", "alive", "codes", "known"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(Run.open(run).labels, Run.open(whole).labels)
    monkeypatch.setattr(folder_module, "_STEPS", 4)
    left = []
    for row in range(4):
        assign(run, new[row : row + 1])
        left.append(len(list((run / "state").glob("step-*"))))
    assert left == [4, 0, 1, 2]
    monkeypatch.setattr(folder_module, "_SHARE", np.inf)
    assign(run, new[:1])
    assert not list((run / "state").glob("step-*"))


def test_a_state_of_format_1_is_read(run, caplog):
    caplog.set_level("INFO", logger="starfc")
    new, old = np.load(run.parent / "new.npy"), run.parent / "format-1"
    assign(run, new[:8])
    shutil.copytree(run, old)
    np.save(old / "state" / "scale.npy", np.full(5, 7, np.float32))  # it had none; another program's is of other rows
    manifest = json.loads((old / "state" / "manifest.json").read_text())
    assert manifest.pop("steps") == []
    (old / "state" / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    (old / "files.json").unlink()  # there was none then
    for folder in (run, old):
        assign(folder, new[8:])
    assert "anew" not in caplog.text
    np.testing.assert_array_equal(Run.open(run).labels, Run.open(old).labels)


def test_lost_parts_of_the_state_are_made_anew(run, caplog):
    caplog.set_level("INFO", logger="starfc")
    shutil.rmtree(run / "knn")
    new = np.load(run.parent / "new.npy")
    assign(run, new[:10], remove=[4])
    assert "searched for anew" in caplog.text
    whole = run.parent / "whole"
    shutil.copytree(run, whole)
    (run / "state" / "sims.npy").write_bytes(b"")
    assert "made anew" not in caplog.text
    for folder in (run, whole):
        assign(folder, new[10:])
    assert "made anew" in caplog.text
    np.testing.assert_array_equal(Run.open(run).labels, Run.open(whole).labels)


@pytest.mark.parametrize("how", ["empty", "cut short", "flipped", "gone"])
@pytest.mark.parametrize("name", ["step-2.npz", "scale.npy", "ids.npy", "alive.npy"])
def test_damaged_parts_of_the_state_are_made_anew(run, caplog, monkeypatch, name, how):
    caplog.set_level("INFO", logger="starfc")
    monkeypatch.setattr(folder_module, "_SHARE", 0)
    new, whole = np.load(run.parent / "new.npy"), run.parent / "whole"
    for rows in (slice(0, 8), slice(8, 12)):
        assign(run, new[rows])
    shutil.copytree(run, whole)
    damaged = run / "state" / name
    held = damaged.read_bytes()
    half = len(held) // 2
    damaged.unlink()
    if how != "gone":
        kept = {"empty": b"", "cut short": held[:half], "flipped": bytes([255 ^ held[0]]) + held[1:]}
        damaged.write_bytes(kept[how])
    for folder in (run, whole):
        assign(folder, new[12:])
    assert ("made anew" in caplog.text) == (name != "scale.npy")
    np.testing.assert_array_equal(Run.open(run).labels, Run.open(whole).labels)


def test_a_step_that_fails_anywhere_leaves_the_run_as_it_was(run, monkeypatch):
    new = np.load(run.parent / "new.npy")
    with pytest.raises(InputError, match=r"\(m, 16\)"):
        assign(run, new[:, :8])
    with pytest.raises(InputError, match="labels"):
        assign(run, new, labels=np.zeros(3, int))
    with pytest.raises(MissingFileError):
        assign(run.parent / "none", new)
    assert not (run / NEXT).exists()
    assert "steps" not in Run.open(run).record
    (run / "edges" / "manifest.json").unlink()
    with pytest.raises(MissingFileError, match=r"not there, and files\.json lists it"):
        assign(run, new)
    (run / "files.json").unlink()
    with pytest.raises(MissingFileError, match="kept no edges"):
        assign(run, new)


KILLED = """
import itertools, json, os, shutil, signal, sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from starfc.runs import assign as folder_module
from starfc.runs.assign import assign
from starfc.runs.folder import Run
from starfc.storage.commit import NEXT, changing
from starfc.storage.owners import ASSIGN

base, new = Path(sys.argv[1]), np.load(sys.argv[2])
folder_module._SHARE = 0
for row in range(8):  # the first makes the state, and everything is compiled then
    assign(base, new[row : row + 1], remove=[2 * row])
old = Run.open(base).labels.copy()
folder_module._SHARE = float(sys.argv[3])  # the steps so far are kept beside the lists, or these written anew

def on(name, *rows):
    for some in rows:
        assign(base.with_name(name), new[some])
    run = Run.open(base.with_name(name))
    return run.labels.copy(), folder_module._read_state(run)[0].lists.grown(np.zeros(0, bool)).ids

shutil.copytree(base, base.with_name("done"))
wanted, _ = on("done", slice(8, 16))
after, lists = on("done", slice(16, None))
outcomes, stale = [], 0
for at in range(1000):
    folder = base.with_name(f"killed{at}")
    shutil.copytree(base, folder)
    pid = os.fork()
    if pid == 0:
        calls = itertools.count()  # from two threads
        def dying(step):
            def call(*arguments, **options):
                if next(calls) == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(*arguments, **options)
            return call
        os.replace, np.save, shutil.rmtree = dying(os.replace), dying(np.save), dying(shutil.rmtree)
        np.savez, os.unlink = dying(np.savez), dying(os.unlink)
        assign(folder, new[8:16])
        os._exit(7)
    code = os.waitpid(pid, 0)[1]
    with changing(folder, ASSIGN):
        pass  # finishes what was committed
    found = Run.open(folder)
    assert len(found.features()) == len(found.labels) == found.record["num_instances"]
    outcomes.append(len(found.labels) == len(wanted))
    assert (found.labels == (wanted if outcomes[-1] else old)).all()
    named = json.loads((folder / "state" / "manifest.json").read_text())["steps"]
    stale += {path.name for path in (folder / "state").glob("step-*")} > set(named)
    if at % 3 == 0 or outcomes[-1]:
        labels, ids = on(folder.name, *([] if outcomes[-1] else [slice(8, 16)]), slice(16, None))
        assert (labels == after).all() and (ids == lists).all()
        files, expected = (len(list((place / "state").glob("step-*"))) for place in (folder, base.with_name("done")))
        assert files == expected
    shutil.rmtree(folder)
    if os.WIFEXITED(code):
        assert os.WEXITSTATUS(code) == 7
        break
assert outcomes == sorted(outcomes) and False in outcomes and len(outcomes) > 25, outcomes
assert stale == 0, stale
"""


@pytest.mark.parametrize("share", ["0", pytest.param("inf", marks=pytest.mark.slow)])
def test_a_kill_at_any_write_leaves_the_old_run_or_the_new_one(run, share):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(run), str(run.parent / "new.npy"), share],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_writers_at_once_are_one_too_many(run):
    with changing(run, ASSIGN), pytest.raises(InputError, match=rf"process {os.getpid()} \('assign', since .*"):
        assign(run, np.load(run.parent / "new.npy"))


def test_small_clusters_left_out_have_ids_all_the_same(run):
    record = json.loads((run / "run.json").read_text())
    labels = np.load(run / "labels.npy")
    small = np.bincount(labels)[labels] < 20
    assert small.any()
    np.save(run / "labels.npy", np.where(small, -1, labels))
    (run / "run.json").write_text(json.dumps({**record, "min_cluster_size": 20}))
    (run / "files.json").unlink()
    assign(run, np.load(run.parent / "new.npy"))
    after, clusters = Run.open(run), np.load(run / "state" / "clusters.npy")
    assert (clusters >= 0).all()
    sizes = np.bincount(clusters)
    np.testing.assert_array_equal(after.labels, np.where(sizes[clusters] < 20, -1, clusters))
    np.testing.assert_array_equal(after.labels[:200][~small], labels[~small])


def test_a_run_that_calls_exact_search_faiss_is_added_to(run, caplog):
    record = json.loads((run / "run.json").read_text())
    record["config"]["knn_method"] = "faiss"
    (run / "run.json").write_text(json.dumps(record))
    (run / "files.json").unlink()
    (graph,) = (run / "knn").glob("*_exact_k_*")
    graph.rename(graph.with_name(graph.name.replace("exact", "faiss")))
    assign(run, np.load(run.parent / "new.npy"))
    assert "searched for anew" not in caplog.text
    assert json.loads((run / "run.json").read_text())["config"]["knn_method"] == "exact"


def test_a_published_model_is_added_to_as_well(tmp_path):
    features, _, model, _, _ = clustering("gcn")
    save_model(model, tmp_path / "model")
    np.save(tmp_path / "old.npy", features[:200])
    config = load_config(
        ROOT / "configs" / "cfg_gcn_ms1m.py",
        {"knn": 20, "tau1": 0.6, "tau2": 0.6, "model.kwargs.feature_dim": 16, "model.kwargs.nhid": 32},
    )
    run_inference(
        config, features=tmp_path / "old.npy", model_folder=tmp_path / "model", out=tmp_path / "run", keep_edges=True
    )
    assign(tmp_path / "run", features[200:])
    run = Run.open(tmp_path / "run")
    assert len(run.labels) == 224
    np.testing.assert_array_equal(run.parsed.intimacy, node_intimacy(run.parsed.edges))


def test_the_estimator_grows():
    features, _, model, k, taus = clustering("structural")
    estimator = StarFC(STRUCTURAL, tau1=taus[0], tau2=taus[1]).partial_fit(features[:200])
    before = estimator.labels_
    assert len(estimator.edge_scores_.edges) > 0
    estimator.partial_fit(features[200:212]).partial_fit(features[212:], apply_merges=True)
    state = state_of(features, 200, model, k, taus)
    state.step(Features(features[:212]))
    assert len(before) == 200
    state.step(Features(features), apply_merges=True)
    np.testing.assert_array_equal(estimator.labels_, state.labels)
    assert estimator.edge_scores_.edges.num_nodes == len(estimator.confidence_) == 224
    assert estimator.assigned_.first_row == 212
    assert not hasattr(StarFC(refinement="dynamic"), "partial_fit")


def test_the_command_adds_and_removes(run, capsys):
    pytest.importorskip("typer")
    from starfc.commands.assign import assign as command

    (run.parent / "gone.txt").write_text("3\n4\n")
    command(run, run.parent / "new.npy", remove=str(run.parent / "gone.txt"), labels=run.parent / "labels.npy")
    assert "24 instances added, rows 200 and on" in capsys.readouterr().out
    command(run, remove="7, 9", as_json=True, quiet=True)
    assert json.loads(capsys.readouterr().out)["removed"] == [7, 9]
    assert np.flatnonzero(Run.open(run).labels < 0).tolist() == [3, 4, 7, 9]
    with pytest.raises(InputError, match="--remove"):
        command(run, remove="seven")


def test_explain_and_report_after_adding_removing_and_merging(run, tmp_path):
    assign(run, apply_merges=True, remove=[0, 5])
    there = Run.open(run)
    assert there.removed == [0, 5]
    rows = np.flatnonzero(there.labels == np.bincount(there.labels[there.labels >= 0]).argmax())[:2]
    done = CliRunner().invoke(app, ["explain", str(run), *map(str, rows)])
    assert done.exit_code == 0, done.stderr
    assert f"both in cluster {there.labels[rows[0]]}" in done.stdout
    done = CliRunner().invoke(app, ["explain", str(run), "0", "1"])
    assert done.exit_code == 2
    assert "row 0: removed" in done.stderr
    done = CliRunner().invoke(app, ["report", str(run), "-o", str(tmp_path / "page"), "--json"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["instances"] == len(there.labels) - 2
    assert found["clusters"] == len(np.unique(there.labels[there.labels >= 0]))
