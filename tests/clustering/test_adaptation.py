"""Test adaptation: halves of clusters, training data of each scorer, rounds that stay, and the record of a run."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from starfc import StarFC
from starfc.clustering import adaptation, part
from starfc.clustering.adaptation import GAIN, Adapted, Lessons, adapt_to_set, choose_threshold
from starfc.clustering.choice import LOWEST
from starfc.clustering.pipeline import cluster
from starfc.config.recipes import model_config
from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.graph.knn import build_knn
from starfc.graph.neighbours import KnnGraph
from starfc.models.checkpoint import PRETRAINED, load_model
from starfc.models.contextual import Context
from starfc.models.structural import EdgeScorer
from starfc.runs.assign import assign
from starfc.runs.cluster import _adaptation, cluster_text, run_inference
from starfc.runs.folder import Run
from starfc.runtime.stages import Stages, resident_bytes
from starfc.scoring.structural import Scoring
from starfc.storage import scratch

WIDTH = {"model": {"kwargs": {"feature_dim": 32}}}


def weak_rows(identities=60, size=15, dim=32, noise=0.95, seed=3):
    """Identities whose instances lie far apart: p is unsure of them."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.normal(size=(identities, dim)), size, axis=0)
    rows = rows + noise * rng.normal(size=rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), np.repeat(
        np.arange(identities), size
    )


@pytest.fixture(scope="module")
def scoring():
    rows, _ = weak_rows()
    return Scoring(load_model(PRETRAINED), rows, build_knn(rows, 80))


def test_an_edge_is_scored_by_the_scorer_that_was_not_trained_on_it():
    scorers = tuple(EdgeScorer(5, 4, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    half = np.array([0, 0, 1, 1], np.int8)
    rows, cols = np.array([0, 2, 0, 3]), np.array([1, 3, 2, 0])
    features = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    with torch.no_grad():
        one, other = (scorer(torch.from_numpy(features)).numpy() for scorer in scorers)
    expected = [other[0], one[1], (one[2] + other[2]) / 2, (one[3] + other[3]) / 2]
    np.testing.assert_allclose(Adapted(scorers, half).logits(features, rows, cols), expected, rtol=1e-6)


@pytest.mark.long
def test_scorers_are_those_of_a_plain_loop(scoring, monkeypatch):
    monkeypatch.setattr(adaptation, "_STEPS", 20)
    members = np.repeat(np.arange(60) * 15, 15)
    found = Lessons.of(scoring).adapted(scoring, None, members, seed=4)
    half = np.random.default_rng(4).integers(0, 2, 900)[members]
    np.testing.assert_array_equal(found.half, half)
    edges = [scoring.pairs(np.array([node])) for node in range(900)]
    x = torch.from_numpy(np.concatenate([pairs.features for pairs in edges]))
    rows = np.concatenate([pairs.rows for pairs in edges])
    cols = np.concatenate([scoring.graph.ids[pairs.rows, pairs.slots] for pairs in edges])
    with torch.no_grad():
        p = torch.sigmoid(scoring.scorer(x))
    for h in (0, 1):
        within = np.flatnonzero((half[rows] == h) & (half[cols] == h))
        same = torch.from_numpy((members[rows] == members[cols]).astype(np.float32))
        target = (0.8 * (0.96 * same + 0.02) + 0.2 * p)[within]
        scorer = EdgeScorer(x.shape[1], scoring.scorer.layers[0].out_features, members=scoring.scorer.members)
        scorer.load_state_dict(scoring.scorer.state_dict())
        optimizer, generator = torch.optim.Adam(scorer.parameters(), 1.5e-3), torch.Generator().manual_seed(4)
        for step in range(20):
            optimizer.param_groups[0]["lr"] = 1.5e-3 * (1 - step / 20)
            batch = torch.randint(len(within), (1024,), generator=generator)
            q = torch.sigmoid(scorer(x[within][batch]))
            loss = -(target[batch] * q.log() + (1 - target[batch]) * (1 - q).log()).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for ours, theirs in zip(found.scorers[h].parameters(), scorer.parameters(), strict=True):
            np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), atol=3e-3)


def test_a_half_with_too_few_edges_ends_it(scoring):
    assert Lessons.of(scoring).adapted(scoring, None, np.zeros(900, np.int64), seed=0) is None  # one cluster: one half


@pytest.mark.long
@pytest.mark.parametrize("threads", [1, 2])
def test_rounds_stay_that_raise_the_expected_f(threads):
    rows, _ = weak_rows()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        graph, model = build_knn(rows, 80), load_model(PRETRAINED)
        off = cluster(rows, graph, model, tau1=None, tau2=None, partition="infomap", adapt="off")
        auto = cluster(rows, graph, model, tau1=None, tau2=None, partition="infomap", keep_edges=True)
    finally:
        torch.set_num_threads(before)
    assert off.rounds == ()
    assert auto.rounds[0] == off.estimate.fscore
    stayed = [f for at, f in enumerate(auto.rounds) if at == 0 or f >= auto.rounds[at - 1] + GAIN]
    assert len(auto.rounds) - len(stayed) <= 1
    assert len(stayed) > 1, "this set is made so that a round stays"
    assert all(after >= former + GAIN for former, after in pairwise(stayed))
    assert auto.estimate.fscore < stayed[-1]  # told by p before adaptation
    context = auto.parsed.context
    assert context.adapted.shape[0] == 2
    assert len(context.late(model)) == 2


@pytest.mark.long
def test_a_round_that_promises_nothing_is_taken_back(monkeypatch):
    rows, _ = weak_rows()
    graph, model = build_knn(rows, 80), load_model(PRETRAINED)
    off = cluster(rows, graph, model, tau1=None, tau2=None, partition="infomap", adapt="off")
    monkeypatch.setattr(adaptation, "GAIN", 2.0)
    auto = cluster(rows, graph, model, tau1=None, tau2=None, partition="infomap", keep_edges=True)
    np.testing.assert_array_equal(auto.labels, off.labels)
    assert len(auto.rounds) == 2
    assert auto.parsed.context.adapted is None


@pytest.mark.long
def test_in_a_part_of_all_rows_the_rounds_are_those_of_the_whole_set(scoring, monkeypatch):
    monkeypatch.setattr(adaptation, "_STEPS", 60)
    edges, _, mass = scoring.parse(LOWEST)
    first = choose_threshold(edges, mass, None, "infomap", 0)
    expected = adapt_to_set(scoring, first, LOWEST, None, 0)
    assert len(expected.rounds) > 2, "the second round learns from the clusters of the first"
    parses = []
    parse = scoring.parse
    monkeypatch.setattr(scoring, "parse", lambda *given: parses.append(1) or parse(*given))
    monkeypatch.setattr(adaptation, "MANY", 899)
    found = adapt_to_set(scoring, first, LOWEST, None, 0)
    np.testing.assert_array_equal(found.members, expected.members)
    np.testing.assert_allclose(found.rounds, expected.rounds)
    assert found.choice.tau1 == expected.choice.tau1
    np.testing.assert_array_equal(found.adapted.parameters(), expected.adapted.parameters())
    np.testing.assert_array_equal(found.edges.scores, expected.edges.scores)
    assert len(parses) == 1
    monkeypatch.setattr(adaptation, "GAIN", 2.0)
    off = adapt_to_set(scoring, first, LOWEST, None, 0)
    assert off.members is first.members
    assert len(off.rounds) == 2
    assert len(parses) == 1, "no round was kept, so the whole set is not scored again"
    monkeypatch.setattr(part, "CORE", 1)
    none = adapt_to_set(scoring, first, LOWEST, None, 0)  # every drawn cluster is larger than the core
    assert (none.members is first.members, len(none.rounds)) == (True, 1)


@pytest.mark.long
def test_a_large_set_in_files_has_the_same_labels(monkeypatch, tmp_path):
    """Streaming: edges, features and graph are in files, and memory is given back between the stages."""
    rows, _ = weak_rows()
    graph, model = build_knn(rows, 80), load_model(PRETRAINED)
    given = {"tau1": None, "tau2": None, "partition": "infomap", "keep_edges": True}
    expected = cluster(rows, graph, model, **given)
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "ids.npy", graph.ids)
    np.save(tmp_path / "sims.npy", graph.sims)
    mapped, ids, sims = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("rows", "ids", "sims"))
    monkeypatch.setattr(scratch, "IN_MEMORY", 0)
    features, lists = Features(mapped, normalise=False), KnnGraph(ids, sims)
    found = cluster(features, lists, model, **given, stages=Stages(4 << 30), scratch=tmp_path)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.parsed.edges.scores, expected.parsed.edges.scores)
    assert found.estimate == expected.estimate
    with pytest.raises(InputError, match="memory"):
        cluster(features, lists, model, **given, stages=Stages(resident_bytes() + (1 << 20)), scratch=tmp_path)


@pytest.mark.long
def test_a_run_keeps_what_adaptation_learnt(tmp_path):
    rows, _ = weak_rows()
    np.save(tmp_path / "rows.npy", rows[:-20])
    record = run_inference(
        model_config(PRETRAINED, WIDTH), features=tmp_path / "rows.npy", out=tmp_path / "run", keep_edges=True
    )
    adapted = record["choices"]["adapt"]
    assert adapted["value"] >= 1
    assert adapted["reason"].startswith("expected F by the adapted model: ")
    times = "once" if adapted["value"] == 1 else f"{adapted['value']} times"
    assert f"adapted {times}: expected F" in cluster_text(record, tmp_path / "run")
    context = Run.open(tmp_path / "run").parsed.context
    assert context.adapted.shape[0] == 2
    step = assign(tmp_path / "run", rows[-20:])
    assert len(set(step.labels[:5].tolist())) == 1  # their identity is known, that of the other 15 is new
    assert step.joined >= 5
    np.testing.assert_array_equal(Run.open(tmp_path / "run").parsed.context.adapted, context.adapted)


@pytest.mark.long
def test_set_by_hand(tmp_path):
    rows, _ = weak_rows()
    np.save(tmp_path / "rows.npy", rows)
    config = model_config(PRETRAINED, WIDTH | {"adapt": "off"})
    record = run_inference(config, features=tmp_path / "rows.npy", out=tmp_path / "run")
    assert record["choices"]["adapt"] == {"value": 0, "reason": "adapt is off"}
    found = StarFC(adapt="off").fit(rows)
    np.testing.assert_array_equal(np.load(tmp_path / "run" / "labels.npy"), found.labels_)
    with pytest.raises(InputError, match="adapt: must be one of 'auto', 'off'; found 'on'"):
        StarFC(adapt="on").fit(rows)


def test_parameters_of_another_model_are_refused(scoring):
    context = scoring.context
    arrays = context.arrays() | {"adapted": np.zeros((2, 7), np.float32)}
    with pytest.raises(InputError, match="'adapted' has 7 parameters"):
        Context.from_arrays(arrays).late(load_model(PRETRAINED))
    for damaged in (np.zeros((3, 7), np.float32), np.full((2, 7), np.nan, np.float32), np.zeros((2, 7), np.int8)):
        broken = damaged if damaged.dtype.kind == "f" else damaged.astype("U1")
        with pytest.raises(ValueError, match=r"adapted|finite"):
            Context.from_arrays(arrays | {"adapted": broken})


@pytest.mark.parametrize(
    ("rounds", "words"),
    [
        ((0.9, 0.902), "one more round (90.20) gained less than 0.5 and"),
        ((0.9, 0.8), "(80.00) lowered it and was undone"),
    ],
)
def test_the_reason_says_what_the_dropped_round_did(rounds, words):
    config = SimpleNamespace(adapt="auto", partition=SimpleNamespace(type="infomap"))
    found = _adaptation(SimpleNamespace(rounds=rounds, labels=np.zeros(3)), config)
    assert found["value"] == 0
    assert words in found["reason"]
