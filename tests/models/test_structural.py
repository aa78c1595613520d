"""Test the structural model: its files, graph parsing, whole clusterings, calibration, and scores of a part."""

from __future__ import annotations

import csv
import itertools
import math

import numpy as np
import pytest
import torch

from helpers.samples import blobs, random_graph, same_partition, unit
from starfc.clustering.components import components
from starfc.clustering.partition import infomap, leiden
from starfc.clustering.pipeline import REFINEMENTS, cluster
from starfc.clustering.refinement import node_intimacy_undirected, refine, refine_dynamic
from starfc.errors import InputError
from starfc.evaluation.calibration import (
    calibrate,
    calibration_error,
    fit_temperature,
    labelled_logits,
    reliability,
    write_reliability,
)
from starfc.evaluation.labelled import LabelledGraph
from starfc.evaluation.metrics import bcubed, contingency, evaluate, pairwise, pairwise_around
from starfc.evaluation.thresholds import sweep_thresholds
from starfc.graph.edges import EdgeList
from starfc.graph.knn import exact_knn
from starfc.graph.neighbours import KnnGraph
from starfc.graph.structure import FEATURES, FIRST_FEATURES, EdgeLogits, Structure, encode, smooth
from starfc.models.checkpoint import load_model, save_model, write_checkpoint
from starfc.models.structural import EdgeScorer, StructuralModel
from starfc.scoring.structural import parse_structure


def make_model(columns: int = 11, candidates: int = 6, rounds: int = 2, seed: int = 0) -> StructuralModel:
    """Random weights, but the more common neighbours, the higher the logit; none of the buffers at its default."""
    generator = torch.Generator().manual_seed(seed)
    model = StructuralModel(8, columns=columns, candidates=candidates, smoothing=4, rounds=rounds, generator=generator)
    model.standardise(torch.rand(50, FIRST_FEATURES, generator=generator))
    model.temperature.fill_(1.7)
    return model.eval()


@pytest.fixture(scope="module")
def data():
    features, labels = blobs(noise=0.6)
    features = unit(features)
    return features, labels, exact_knn(features, 12)


def some_features(graph: KnnGraph) -> np.ndarray:
    """Random directions: what is smoothed over a graph need not be what it is of."""
    return unit(np.random.default_rng(5).normal(size=(graph.num_nodes, 16)))


def twin_probabilities(model: StructuralModel, graph: KnnGraph) -> np.ndarray:
    """p of all pairs at once, mirrored: (N, N), NaN for what is no candidate."""
    n = graph.num_nodes
    nodes = smooth(graph, some_features(graph), model.smoothing)
    structure = Structure(graph, model.columns, model.candidates, nodes)
    pairs = structure.first_round(np.arange(n))
    if model.rounds == 2:
        before = EdgeLogits(structure)
        with torch.no_grad():
            before.put(pairs, encode(model.first(torch.from_numpy(pairs.features)).numpy()))
        before.sum_degrees(np.arange(graph.num_nodes))
        pairs = structure.second_round(np.arange(n), before)
    with torch.no_grad():
        p = torch.sigmoid(model.logits(torch.from_numpy(pairs.features))).numpy()
    dense, ends = np.full((n, n), np.nan, np.float32), graph.ids[pairs.rows, pairs.slots]
    dense[pairs.rows, ends] = dense[ends, pairs.rows] = p
    return dense


def twin_edges(model: StructuralModel, graph: KnnGraph, tau1: float) -> EdgeList:
    p = twin_probabilities(model, graph)
    rows, cols = np.nonzero(p > tau1)  # NaN is above nothing
    edges = EdgeList.from_rows(rows, cols.astype(np.int32), p[rows, cols], graph.num_nodes)
    return EdgeList(edges.indptr, edges.cols, edges.scores, symmetric=True)


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_model_comes_back_from_its_folder_and_from_a_checkpoint(tmp_path, rounds):
    model = make_model(rounds=rounds)
    save_model(model, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["Structural.pth"]
    write_checkpoint(tmp_path / "one.pt", model, {})
    features = torch.rand(7, FIRST_FEATURES if rounds == 1 else FEATURES)
    for path in (tmp_path, tmp_path / "one.pt"):
        back = load_model(path, 16, 8)
        assert isinstance(back, StructuralModel)
        assert not back.training
        assert (back.columns, back.candidates, back.rounds, back.temperature) == (11, 6, rounds, torch.tensor(1.7))
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in back.state_dict().items())
        assert torch.equal(back.logits(features), model.logits(features))


def test_models_that_do_not_fit_or_are_damaged_are_refused(tmp_path):
    save_model(make_model(), tmp_path)
    write_checkpoint(tmp_path / "one.pt", make_model(), {})
    path = tmp_path / "Structural.pth"
    for place in (tmp_path, tmp_path / "one.pt"):
        assert load_model(place, 32).feature_dim is None  # embeddings of any dimension
        with pytest.raises(InputError, match="nhid = 64 needed; found 8"):
            load_model(place, 16, 64)
    state = torch.load(path, weights_only=True)
    for broken, message in (
        ({k: v for k, v in state.items() if k != "shape"}, "a 'shape' of 5 numbers needed"),
        (state | {"shape": torch.tensor([16, 8])}, "a 'shape' of 5 numbers needed"),
        ({k: v for k, v in state.items() if k != "second.shift"}, r"second.shift \(30,\) needed, found none"),
        (state | {"temperature": torch.tensor(float("nan"))}, "NaN or infinite"),
    ):
        torch.save(broken, path)
        with pytest.raises(InputError, match=message):
            load_model(tmp_path)
    save_model(make_model(), tmp_path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_model(tmp_path)


@pytest.mark.long
def test_standardised_features_have_mean_0_and_deviation_1_in_every_scorer():
    features = torch.rand(400, FIRST_FEATURES, generator=torch.Generator().manual_seed(1)) * 5 - 3
    features[:, 4] = 2.0  # never varies
    model = StructuralModel(8)
    model.standardise(features)
    for scorer in (model.first, *model.folds, model.second):
        standard = (features - scorer.shift[:FIRST_FEATURES]) * scorer.scale[:FIRST_FEATURES]
        torch.testing.assert_close(standard.mean(dim=0), torch.zeros(FIRST_FEATURES), atol=1e-4, rtol=0)
        varies = torch.arange(FIRST_FEATURES) != 4
        torch.testing.assert_close(standard.std(dim=0)[varies], torch.ones(FIRST_FEATURES - 1))
        assert scorer.scale[4].item() == pytest.approx(1000)
    first, second, last = model.first.layers
    expected = last(torch.relu(second(torch.relu(first((features - model.first.shift) * model.first.scale)))))
    torch.testing.assert_close(model.first(features), expected.squeeze(-1), atol=1e-3, rtol=1e-3)
    assert model.second.scale[FIRST_FEATURES] == 0.25
    assert (model.second.shift[FIRST_FEATURES:] == 0).all()


@pytest.mark.long
@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("tau1", [0.0, 0.5, 0.62, 1.0])
def test_parsing_equals_all_pairs_at_once(data, rounds, tau1):
    for graph, columns, candidates in ((data[2], 11, 6), (random_graph(300, 15, 2), 15, 20)):  # several blocks
        model = make_model(columns, candidates, rounds)
        twin = twin_edges(model, graph, tau1)
        order = np.random.default_rng(0).permutation(graph.num_nodes)
        for taken in (None, order):
            edges, num_candidates = parse_structure(model, some_features(graph), graph, tau1, taken)
            assert edges.symmetric
            np.testing.assert_array_equal(edges.indptr, twin.indptr)
            np.testing.assert_array_equal(edges.cols, twin.cols)
            np.testing.assert_allclose(edges.scores, twin.scores, atol=1e-6)
            assert num_candidates == np.isfinite(twin_probabilities(model, graph)).sum() // 2
        if tau1 in (0, 1):
            assert edges.num_edges == (num_candidates if tau1 == 0 else 0)


def test_a_graph_without_neighbours_has_no_edges():
    graph = KnnGraph(np.full((5, 3), -1, np.int32), np.zeros((5, 3), np.float32))
    edges, candidates = parse_structure(make_model(), some_features(graph), graph, 0.5)
    assert (len(edges), edges.num_nodes, candidates) == (0, 5, 0)


@pytest.mark.parametrize("refinement", REFINEMENTS)
def test_clusterings_are_the_twins(data, refinement):
    graph = data[2]
    model = make_model()
    p = twin_probabilities(model, graph)
    counts = set()
    for share, tau2 in ((0.3, 0.0), (0.5, 0.5), (0.6, 0.9)):
        tau1 = float(np.nanquantile(p, share))
        edges = twin_edges(model, graph, tau1)
        kept = {"fixed": refine, "dynamic": refine_dynamic}[refinement](edges, node_intimacy_undirected(edges), tau2)
        result = REFINEMENTS[refinement](some_features(graph), graph, model, tau1=tau1, tau2=tau2)
        assert same_partition(result.labels, components(kept))
        counts.add(result.num_clusters)
    assert len(counts) > 1


def test_labelled_logits_are_those_of_edges_with_both_ends_in_the_part(data):
    _, labels, graph = data
    model, scored = make_model(), np.random.default_rng(0).random(graph.num_nodes) < 0.5
    logits, same = labelled_logits(model, some_features(graph), graph, labels, scored)
    p = twin_probabilities(model, graph)
    rows, cols = np.nonzero(np.isfinite(np.triu(p, 1)) & (np.triu(p, 1) > 0) & np.outer(scored, scored))
    np.testing.assert_allclose(np.sort(1 / (1 + np.exp(-logits))), np.sort(p[rows, cols]), atol=1e-6)
    assert same.sum() == (labels[rows] == labels[cols]).sum()
    assert 0 < same.sum() < len(same)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_of_simulated_logits_is_found(temperature):
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, 40_000)
    same = rng.random(len(true)) < 1 / (1 + np.exp(-true))
    assert fit_temperature((true * temperature).astype(np.float32), same) == pytest.approx(temperature, rel=0.05)


@pytest.mark.long
def test_reliability_by_hand(tmp_path):
    p = np.array([0.0, 0.1, 0.45, 0.8, 0.9, 1.0])
    same = np.array([False, True, False, True, True, False])
    table = reliability(p, same, bins=4)
    assert [(row["low"], row["high"], row["edges"]) for row in table] == [(0, 0.25, 2), (0.25, 0.5, 1), (0.75, 1, 3)]
    np.testing.assert_allclose([row["p"] for row in table], [0.05, 0.45, 0.9])
    np.testing.assert_allclose([row["same"] for row in table], [0.5, 0, 2 / 3])
    assert calibration_error(table) == pytest.approx((2 * 0.45 + 0.45 + 3 * (0.9 - 2 / 3)) / 6)
    write_reliability(tmp_path, {"T = 1": table}, "six edges")
    written = list(csv.DictReader((tmp_path / "reliability.csv").read_text().splitlines()))
    assert [row["name"] for row in written] == ["T = 1"] * 3
    assert [float(row["p"]) for row in written] == [row["p"] for row in table]
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    many, hits = np.random.default_rng(0).random(1000), np.random.default_rng(1).random(1000) < 0.5
    assert sum(row["edges"] for row in reliability(many, hits)) == 1000
    assert sum(row["edges"] * row["same"] for row in reliability(many, hits)) == pytest.approx(hits.sum())


def brute_force(labels: np.ndarray, predicted: np.ndarray, scored: np.ndarray) -> tuple[float, float]:
    true = found = actual = 0
    for a, b in itertools.combinations(range(len(labels)), 2):
        if scored[a] or scored[b]:
            same, together = labels[a] == labels[b], predicted[a] == predicted[b]
            true, found, actual = true + (same and together), found + together, actual + same
    return true / found if found else 0.0, true / actual if actual else 0.0


@pytest.mark.parametrize("seed", range(8))
def test_pairs_around_a_part_are_counted(seed):
    rng = np.random.default_rng(seed)
    labels, predicted, scored = rng.integers(0, 5, 40), rng.integers(0, 6, 40), rng.random(40) < 0.3
    table, rest = contingency(labels, predicted), contingency(labels[~scored], predicted[~scored])
    score = pairwise_around(table, rest)
    precision, recall = brute_force(labels, predicted, scored)
    assert (score.precision, score.recall) == pytest.approx((precision, recall))
    assert score.fscore == pytest.approx(2 * precision * recall / (precision + recall))
    whole = pairwise_around(table, contingency(labels[:1], predicted[:1]))
    assert whole == pairwise(table)  # one instance has no pairs


@pytest.mark.parametrize("refinement", REFINEMENTS)
def test_a_sweep_of_a_part_is_judged_by_the_pairs_around_it(data, refinement):
    _, labels, graph = data
    model, scored = make_model(), np.random.default_rng(3).random(len(labels)) < 0.4
    tau1 = math.floor(100 * np.nanquantile(twin_probabilities(model, graph), 0.5)) / 100
    edges, _ = parse_structure(model, some_features(graph), graph, tau1)
    grid = ((tau1,), (0.0, 0.5, 0.9))
    points = sweep_thresholds(edges, labels, refinement, grid, scored)
    for point in points:
        found = REFINEMENTS[refinement](some_features(graph), graph, model, tau1=tau1, tau2=point.tau2).labels
        assert (point.precision, point.recall) == pytest.approx(brute_force(labels, found, scored))
        assert point.bcubed == pytest.approx(bcubed(contingency(labels[scored], found[scored])).fscore)
        assert point.num_clusters == len(np.unique(found[scored]))
    assert len({p.num_clusters for p in points}) > 1
    everything = sweep_thresholds(edges, labels, refinement, grid)
    assert everything == sweep_thresholds(edges, labels, refinement, grid, np.ones(len(labels), bool))
    found = REFINEMENTS[refinement](some_features(graph), graph, model, tau1=tau1, tau2=0.5).labels
    assert everything[1].fscore == pytest.approx(evaluate(labels, found)["pairwise"]["fscore"])


@pytest.mark.parametrize("partition", ["infomap", "leiden"])
def test_communities_are_those_of_the_parsed_edges(data, partition):
    if partition == "leiden":
        pytest.importorskip("igraph", reason="igraph is not installed: the extra `communities`")
    graph, model = data[2], make_model()
    tau1 = float(np.nanquantile(twin_probabilities(model, graph), 0.5))
    result = cluster(some_features(graph), graph, model, tau1=tau1, tau2=0.5, partition=partition)
    edges = twin_edges(model, graph, tau1)
    members = infomap(edges) if partition == "infomap" else leiden(edges)
    assert same_partition(result.labels, members)
    inside = result.labels[edges.rows] == result.labels[edges.cols]
    assert result.edges_refined == inside.sum() // 2


def test_a_threshold_of_similarity_is_refused(data):
    with pytest.raises(InputError, match="th_sim: 0 needed by a structural model"):
        cluster(data[0], data[2], make_model(), tau1=0.5, tau2=0.5, th_sim=0.2)


def test_without_held_back_edges_there_is_no_calibration(data, tmp_path, caplog):
    features, labels, graph = data
    model, none = make_model(), np.zeros(len(labels), bool)
    model.temperature.fill_(1)
    found = calibrate(model, LabelledGraph(features, labels, graph, none), tmp_path, torch.device("cpu"))
    assert found == {"temperature": 1.0, "edges": 0}
    assert "calibration" in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("members", [0, 3, 128])
def test_members_of_a_scorer_divide_its_units(members):
    with pytest.raises(InputError, match=f"members: must divide the number of hidden units.*found {members} .*of 64"):
        EdgeScorer(10, 64, members=members)
    assert EdgeScorer(10, 64, members=4)(torch.zeros(5, 10)).shape == (5,)
