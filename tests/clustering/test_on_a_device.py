"""Run whole pipelines as on a GPU, on the CPU: torch instead of compiled kernels, in several blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.devices import as_on_a_gpu
from helpers.edges import edge_set
from helpers.samples import blobs, unit
from starfc.clustering import adaptation
from starfc.clustering.adaptation import Adapted
from starfc.clustering.pipeline import cluster, cluster_dynamic
from starfc.data.dataset import Features
from starfc.graph.device_structure import DeviceStructure
from starfc.graph.knn import build_knn
from starfc.models.checkpoint import PRETRAINED, load_model
from starfc.models.gcn import StarFCModel
from starfc.models.hierarchical import HierarchicalModel
from starfc.models.structural import EdgeScorer
from starfc.scoring.projections import parse_affinity, parse_graph, project_nodes
from starfc.scoring.structural import Scoring, score_edges

LIMIT = 8 << 20  # bytes of the device


@pytest.fixture(scope="module")
def many():
    rows = unit(blobs(identities=30, dim=32, noise=0.9)[0])
    return rows, build_knn(rows, 30)


@pytest.fixture
def blocks(monkeypatch):
    """The numbers of nodes of the blocks whose features were computed on the device."""
    found: list[int] = []
    pairs = DeviceStructure._pairs

    def counted(self, rows, *rest):
        found.append(len(rows))
        return pairs(self, rows, *rest)

    monkeypatch.setattr(DeviceStructure, "_pairs", counted)
    return found


@pytest.mark.long
def test_a_contextual_model_gives_the_same_clusters(many, monkeypatch, blocks):
    """Context, both rounds, adaptation, communities: p to 1e-3, because a first-round logit is rounded to 1/16."""
    monkeypatch.setattr(adaptation, "_STEPS", 20)
    monkeypatch.setattr(adaptation, "GAIN", -1.0)  # every round stays
    monkeypatch.setattr(adaptation, "_ROUNDS", 2)
    monkeypatch.setattr(adaptation, "_LEAST", 100)
    rows, graph = many
    given = {"tau1": None, "tau2": None, "partition": "infomap", "keep_edges": True}
    here = cluster(rows, graph, load_model(PRETRAINED), **given)
    assert not blocks
    with as_on_a_gpu(LIMIT):
        there = cluster(rows, graph, load_model(PRETRAINED), **given)
    assert len(blocks) > 30
    assert max(blocks) < 100
    np.testing.assert_array_equal(there.labels, here.labels)
    assert there.rounds == pytest.approx(here.rounds, abs=1e-3)
    assert len(there.rounds) == 3
    ours, theirs = here.parsed, there.parsed
    np.testing.assert_array_equal(theirs.edges.cols, ours.edges.cols)
    np.testing.assert_allclose(theirs.edges.scores, ours.edges.scores, rtol=0, atol=2e-3)
    np.testing.assert_array_equal(theirs.intimacy, ours.intimacy)
    assert np.abs(theirs.logits.astype(int) - ours.logits).max() <= 1
    np.testing.assert_allclose(theirs.context.second, ours.context.second, rtol=0, atol=1e-3)


def test_all_logits_of_a_structural_model_are_those_of_the_kernels(many):
    rows, graph = many
    model = load_model(PRETRAINED.parent / "structural")

    def take(pairs, logits):
        return np.stack([pairs.rows, graph.ids[pairs.rows, pairs.slots]], axis=1), logits

    here = score_edges(model, rows, graph, take)
    with as_on_a_gpu(LIMIT):
        there = score_edges(model, rows, graph, take)
        assert Scoring(model, rows, graph).codes.dtype == np.int8
    (ours, z), (theirs, other) = ([np.concatenate(x) for x in zip(*found, strict=True)] for found in (here, there))
    np.testing.assert_array_equal(theirs, ours)
    np.testing.assert_allclose(other, z, rtol=0, atol=2e-2)


def test_adapted_scorers_give_the_same_logits_on_a_device():
    scorers = tuple(EdgeScorer(5, 4, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    rng = np.random.default_rng(0)
    adapted = Adapted(scorers, rng.integers(0, 2, 30).astype(np.int8))
    features, (rows, cols) = rng.normal(size=(70, 5)).astype(np.float32), rng.integers(0, 30, (2, 70))
    there = adapted.on_device(torch.device("cpu"))(*map(torch.from_numpy, (features, rows, cols)))
    np.testing.assert_array_equal(there.numpy(), adapted.logits(features, rows, cols))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["gcn", "hierarchical"])
def test_published_models_give_the_same_edges_and_clusters(many, kind):
    rows, graph = many
    generator = torch.Generator().manual_seed(0)
    if kind == "gcn":
        model = StarFCModel(32, 24, init="metric", generator=generator)
    else:
        model = HierarchicalModel(32, 24, init="metric", scales=(8, 12, 20), generator=generator)
    features = Features((3 * rows).astype(np.float16))
    for parse, run in ((parse_graph, cluster), (parse_affinity, cluster_dynamic)):
        here = parse(project_nodes(model, features, graph), 0.5)
        ours = run(features, graph, model, tau1=0.5, tau2=0.4)
        with as_on_a_gpu(LIMIT):
            nodes = project_nodes(model, features, graph)
            there = parse(nodes, 0.5, target_bytes=200 * 48)  # three slices of v
            theirs = run(features, graph, model, tau1=0.5, tau2=0.4)
        assert nodes.on_device is not None
        assert edge_set(there) == edge_set(here)
        np.testing.assert_array_equal(theirs.labels, ours.labels)
        assert (theirs.edges_parsed, theirs.edges_refined) == (ours.edges_parsed, ours.edges_refined)
