"""Test models that compare embeddings on shards: lists, edges and labels are those of the run in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.shards import killed_and_continued
from starfc.clustering.arrays import Settings, cluster_features
from starfc.data.dataset import Features
from starfc.data.synthetic import sample
from starfc.errors import InputError
from starfc.graph import approximate
from starfc.graph.opening import Search
from starfc.models.checkpoint import load_model, save_model
from starfc.models.gcn import StarFCModel
from starfc.models.hierarchical import HierarchicalModel
from starfc.models.judge import first_round_judge
from starfc.shards import projections
from starfc.shards.driver import Shards
from starfc.shards.engine import LocalEngine, engine_of
from starfc.shards.store import Store

EXACT = Search("exact", judge=first_round_judge)
GIVEN = Search("ivf", {"nprobe": 3, "partitions": 2, "sweeps": 1}, judge=first_round_judge)


@pytest.fixture(scope="module")
def rows():
    return sample(2000, seed=4, dim=32)[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(StarFCModel(32, 48, init="metric", generator=torch.Generator().manual_seed(0)), folder)
    return load_model(folder)


def cluster(rows, model, *, search=EXACT, tau1=0.8, tau2=0.6, refinement="fixed", th_sim=0.0, **how):
    given = Settings(tau1, tau2, refinement, k=40, search=search, th_sim=th_sim)
    return cluster_features(Features(rows, "x"), model, given, keep_edges=True, **how)


def on_shards(rows, model, store, engine=None, shard_rows=512, search=EXACT, **given):
    shards = Shards(store, engine or LocalEngine(0), model, search, shard_rows)
    return cluster(rows, model, search=search, make_graph=shards.graph, make_parser=shards.parser, **given)


def assert_same(found, expected):
    every = np.arange(len(expected.prepared.features))
    ours, theirs = found.prepared.graph, expected.prepared.graph
    pairs = [(ours.ids[every], theirs.ids), (ours.sims[every], theirs.sims)]
    ours, theirs = found.result.parsed, expected.result.parsed
    pairs += [(getattr(ours.edges, name), getattr(theirs.edges, name)) for name in ("indptr", "cols", "scores")]
    pairs += [(getattr(ours, name), getattr(theirs, name)) for name in ("intimacy", "kept")]
    pairs += [(getattr(found.result, name), getattr(expected.result, name)) for name in ("labels", "confidence")]
    for a, b in pairs:
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    for name in ("candidates", "parsed", "refined"):
        assert getattr(found.result.summary, name) == getattr(expected.result.summary, name)
    assert 0 < len(theirs.edges) < expected.result.summary.candidates * 2
    assert 0 < theirs.kept.sum() < len(theirs.kept)


@pytest.fixture
def in_double(monkeypatch):
    """The numbers of edges that tasks score in float64."""
    numbers, before = [], projections._in_double

    def counted(run, source, *others):
        numbers.append(len(source))
        return before(run, source, *others)

    monkeypatch.setattr(projections, "_in_double", counted)
    monkeypatch.setattr(projections, "_AT_ONCE", 1)
    return numbers


@pytest.mark.parametrize("refinement", ["fixed", "dynamic"])
@pytest.mark.parametrize("shard_rows", [256, 512])
def test_edges_are_those_of_the_run_in_memory(tmp_path, rows, model, in_double, refinement, shard_rows):
    """Also edges whose p is τ1, or so near it that float64 decides."""
    first = cluster(rows, model, refinement=refinement)
    tau1 = float(np.sort(first.result.parsed.edges.scores)[len(first.result.parsed.edges) // 2])
    how = {"refinement": refinement, "tau1": tau1, "th_sim": 0.35 if shard_rows == 512 else 0.0}
    expected = cluster(rows, model, **how)
    assert_same(on_shards(rows, model, Store(str(tmp_path)), shard_rows=shard_rows, **how), expected)
    assert sum(in_double) > 1


@pytest.mark.long
def test_approximate_lists(tmp_path, rows, model, monkeypatch):
    monkeypatch.setattr(approximate, "_CHUNKS", (500, 1 << 18))  # four chunks
    monkeypatch.setattr("starfc.graph.knn._FEW", 0)
    expected = cluster(rows, model, search=GIVEN)
    graph, store = expected.prepared.graph, Store(str(tmp_path))
    assert graph.info["backend"] == "ivf"
    assert_same(on_shards(rows, model, store, search=GIVEN), expected)
    expected = cluster(rows, model, refinement="dynamic", make_graph=lambda *_: graph)
    assert_same(on_shards(rows, model, store, search=GIVEN, refinement="dynamic"), expected)


def test_other_thresholds_with_the_same_store(tmp_path, rows, model):
    some, store = rows[:600], Store(str(tmp_path))
    for how in ({}, {"refinement": "dynamic"}, {"tau1": 0.7}, {"th_sim": 0.4}, {}):
        found = on_shards(some, model, store, shard_rows=256, **how)
        assert_same(found, cluster(some, model, **how))


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_processes_give_the_same(tmp_path, rows, model, workers):
    with engine_of("local", workers, None) as engine:
        for refinement in ("fixed", "dynamic"):
            found = on_shards(rows, model, Store(str(tmp_path)), engine, refinement=refinement)
            assert_same(found, cluster(rows, model, refinement=refinement))


def test_float64_rows(tmp_path, model):
    rows = sample(700, seed=4, dim=32)[0].astype(np.float64)
    rows *= 1 + 1e-9 * np.random.default_rng(0).normal(size=rows.shape)
    assert_same(on_shards(rows, model, Store(str(tmp_path)), shard_rows=128), cluster(rows, model))


@pytest.mark.parametrize("stage", ["near", "project", "parse"])
def test_a_damaged_array_is_made_again(tmp_path, rows, model, stage):
    some, store = rows[:600], Store(str(tmp_path))
    on_shards(some, model, store, shard_rows=256)
    assert store.finished("project") == {0, 1, 2}
    for later in ("near", "project", "parse")[("near", "project", "parse").index(stage) + 1 :]:
        store.remove_stage(later)
    for path in sorted(tmp_path.glob(f"{stage}/00001.*.npy")):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))
    assert_same(on_shards(some, model, Store(str(tmp_path)), shard_rows=256), cluster(some, model))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["near", "project", "parse"])
def test_a_killed_driver_continues(tmp_path, rows, model, stage):
    given = ("--model", str(model.folder), "--tau1", "0.8", "--tau2", "0.6", "--k", "40")
    found = killed_and_continued(tmp_path, rows, stage, *given)
    np.testing.assert_array_equal(found, cluster(rows, model).result.labels)


def test_a_model_of_three_scales_is_refused(tmp_path, rows):
    save_model(HierarchicalModel(32, 16), tmp_path / "model")
    with pytest.raises(InputError, match=r"engine: works with models of type gcn, .* found a model of type 'hier"):
        Shards(Store(str(tmp_path / "store")), LocalEngine(0), load_model(tmp_path / "model"), EXACT)
