"""The weights and the length of the neighbour lists for a set of few rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from starfc import StarFC
from starfc.clustering.arrays import Settings, cluster_features, cluster_prepared, prepare, whole_lists
from starfc.clustering.few import best_way, lengths, lists_in_training, ways, whole_from
from starfc.commands import app
from starfc.data.dataset import Features
from starfc.data.files import read_labels
from starfc.errors import InputError
from starfc.evaluation.metrics import evaluate
from starfc.graph.knn import exact_knn
from starfc.models.checkpoint import FEW_ROWS, PRETRAINED, load_model
from starfc.training.kinds import make_kind

ROOT = Path(__file__).parents[2]
SETTINGS = Settings(partition="infomap")


@pytest.fixture(scope="module")
def small():
    """150 bundled embeddings, two of each identity, and their identities."""
    data = ROOT / "data" / "glyph"
    features, labels = np.load(data / "features" / "sample.npy"), read_labels(data / "labels" / "sample.meta")
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    kept = np.sort(np.concatenate([order[start : start + 2] for start in starts[:75]]))
    return np.asarray(features[kept], np.float32), labels[kept]


@pytest.fixture(scope="module")
def model():
    return load_model(PRETRAINED)


def prepared_with(features, model, k):
    """Prepare the rows with a model and lists of k entries, whatever suits few rows."""
    graph = exact_knn(features, k)
    return replace(prepare(features, model, replace(SETTINGS, k=4)), model=model, graph=graph)


@pytest.mark.parametrize(
    ("n", "k", "tried"),
    [
        (240, 80, [80]),
        (239, 80, [80, 79, 59, 39]),
        (100, 80, [80, 50, 33, 25, 16]),
        (10, 80, [10, 5, 4]),
        (2, 80, [2]),
        (9, 4, [4]),
        (180, 100, [100, 60, 45, 30]),  # the model uses 80 of them
        (300, 250, [250]),
    ],
)
def test_which_lengths_are_tried(n, k, tried):
    assert lengths(n, k, 80) == tried


def test_how_many_rows_are_few(model):
    other = load_model(FEW_ROWS)
    assert [whole_from(k, model) for k in (80, 20, 250)] == [480, 120, 480]
    assert whole_from(80, other) == 240  # only lengths are tried, so above there is one way
    assert len(ways(239, 80, other)) > 1


def test_lists_that_are_short_in_training_too_cause_no_doubt(model):
    assert [lists_in_training(n, model) for n in (60, 300)] == [59, 79]


def test_the_weights_for_few_rows_belong_to_the_packaged_model(model, tmp_path):
    assert [(one.folder, k) for one, k in ways(100, 80, model)][-1] == (FEW_ROWS, 80)
    assert [k for _, k in ways(100, 80, model)][:-1] == lengths(100, 80, 80)
    assert [k for _, k in ways(300, 80, model)] == [80, 80]
    other = load_model(FEW_ROWS)
    assert all(one is other for one, _ in ways(100, 80, other))


def test_the_way_with_the_highest_expected_f_is_taken(small, model):
    features = Features(small[0])
    taken = cluster_features(features, model, SETTINGS).prepared
    expected = {}
    for way, k in ways(len(features), SETTINGS.k, model):
        expected[way.folder, k] = cluster_prepared(prepared_with(features, way, k), SETTINGS).result.estimate.fscore
    assert expected[taken.model.folder, taken.graph.k] == max(expected.values())
    assert len(set(expected.values())) > 1


def test_without_edges_the_expected_f_is_nothing(model):
    class Nothing:
        estimate = None

    class Something:
        estimate = type("Estimate", (), {"fscore": 0.5})

    features, tried = Features(np.eye(8, dtype=np.float32)), [(model, 8), (model, 4)]
    assert best_way(features, tried, exact_knn, lambda _, graph: Something if graph.k == 4 else Nothing) == (model, 4)
    assert best_way(features, tried, exact_knn, lambda *_: Nothing) == (model, 8)


def test_identities_of_few_rows_are_not_joined(small, model):
    """With lists that hold nearly all rows, p of the usual weights is too high, and some strangers are joined."""
    rows, labels = small
    found = StarFC().fit(rows)
    before = cluster_prepared(prepared_with(Features(rows), model, 80), SETTINGS).result.labels
    ours, usual = (evaluate(labels, of, ("bcubed",))["bcubed"]["fscore"] for of in (found.labels_, before))
    assert ours > max(usual, 0.92)


def test_larger_sets_and_given_lists_are_as_before(model, tmp_path):
    rows = np.random.default_rng(0).normal(size=(480, 16)).astype(np.float32)
    assert prepare(Features(rows), model, SETTINGS).model is model
    graph = exact_knn(Features(rows[:90]), 80)
    given = {"make_graph": lambda *_: graph, "graph_of_all": tmp_path}
    found = prepare(Features(rows[:90]), model, SETTINGS, **given)
    assert found.graph is graph
    assert found.model is model


def test_an_engine_refuses_few_rows(small, model):
    with pytest.raises(InputError, match="at least 480 distinct rows needed with this model; found 150; leave it out"):
        prepare(Features(small[0]), model, SETTINGS, in_tasks=True)


@pytest.mark.parametrize("store", [(), ("--store", "store/of/tasks")])
def test_a_refused_run_on_shards_leaves_no_folder(small, tmp_path, monkeypatch, store):
    np.save(tmp_path / "few.npy", small[0])
    monkeypatch.chdir(tmp_path)
    arguments = ["cluster", "few.npy", "-o", "run", "--engine", "local", "--shard-rows", "256", *store]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "at least 480 distinct rows needed with this model; found 150" in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["few.npy"]


def test_new_rows_need_whole_lists(small, model):
    prepared = prepared_with(Features(small[0]), model, 20)
    whole = whole_lists(prepared, SETTINGS)
    np.testing.assert_array_equal(whole.ids, exact_knn(Features(small[0]), 80).ids)
    assert whole_lists(replace(prepared, graph=whole), SETTINGS) is whole


def test_a_set_of_few_rows_grows(small):
    rows, _ = small
    grown = StarFC().fit(rows[:60]).partial_fit(rows[60:])
    assert len(grown.labels_) == len(rows)
    assert grown.edge_scores_.edges.num_nodes == len(rows)


@pytest.mark.long
def test_kinds_of_few_rows():
    kinds = [kind for number in range(12) if (kind := make_kind(0, number, few=True)) is not None]
    sizes = np.array([len(kind.labels) for kind in kinds])
    assert len(kinds) > 6
    assert sizes.min() >= 30
    assert np.median(sizes) < 200
    np.testing.assert_array_equal(kinds[0].features, make_kind(0, 0, few=True).features)
