"""Check that the slow twin equals the golden files, and the pipeline and the training on random data."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from helpers.paths import ROOT
from helpers.samples import blobs, same_partition, unit
from helpers.training import train_step
from starfc.clustering.pipeline import cluster
from starfc.data.dataset import Features
from starfc.data.files import read_features
from starfc.graph.knn import build_knn
from starfc.graph.store import read_graph
from starfc.models.checkpoint import load_model
from starfc.models.gcn import StarFCModel
from starfc.training.sampling import build_subgraph, patches


@pytest.fixture
def reference(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import reference

    return reference


@pytest.mark.long
@pytest.mark.parametrize(("tau1", "tau2"), [(0.7, 0.72), (0.9, 0.3)])
def test_the_twin_equals_the_golden_labels(reference, golden, tau1, tau2):
    features = Features(read_features(golden / "data/features/part1_test.bin", 256))
    graph = read_graph(golden / "data/knns/part1_test/faiss_k_80.npz", features, 80)
    model = load_model(golden)
    state = model.backbone.state_dict() | model.head.state_dict()
    labels = reference.cluster(features.all(), graph.ids, graph.sims, state, tau1, tau2)
    with np.load(golden / "reference_outputs.npz", allow_pickle=False) as file:
        assert same_partition(labels, file[f"labels_{tau1}_{tau2}"])


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("tau1", "tau2"), [(0.05, 0.0), (0.3, 0.4), (0.5, 0.7), (0.999, 0.9)])
def test_the_pipeline_equals_the_twin(reference, seed, tau1, tau2):
    features = unit(blobs(identities=15, size=20, noise=0.6, seed=seed)[0])
    graph = build_knn(features, 15)
    model = StarFCModel(16, 24, init="metric", generator=torch.Generator().manual_seed(seed)).eval()
    state = {k: v.detach() for k, v in (model.backbone.state_dict() | model.head.state_dict()).items()}
    ours = cluster(features, graph, model, tau1=tau1, tau2=tau2)
    assert same_partition(ours.labels, reference.cluster(features, graph.ids, graph.sims, state, tau1, tau2))


@pytest.mark.long
@pytest.mark.parametrize(("init", "lr"), [("xavier", 0.1), ("metric", 0.002)])
def test_training_equals_the_twin(reference, tmp_path, init, lr):
    """Neighbours, Â, edges, and the losses of 20 steps from the same weights."""
    features, labels = blobs(identities=15, size=20, noise=0.6, seed=3)
    features = unit(features + 1)  # no similarity of 0, which scipy drops
    subgraph = build_subgraph(features, labels, 15, 0.0)
    matrix = reference.propagation_matrix(*reference.knn_through_files(features, 15, tmp_path))
    rows, cols, classes = reference.training_edges(matrix, labels)
    for ours, twin in ((subgraph.rows, rows), (subgraph.cols, cols), (subgraph.targets, classes)):
        np.testing.assert_array_equal(ours, twin)
    np.testing.assert_allclose(subgraph.aggregated, matrix @ features, rtol=1e-5, atol=1e-6)

    rng = np.random.default_rng(0)
    steps = [patch for _ in range(4) for patch in patches(subgraph.num_edges, 5, rng)]
    models = [StarFCModel(16, 24, init=init, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    optimizer = torch.optim.SGD(models[0].parameters(), lr, momentum=0.9, weight_decay=1e-5)
    ours = [train_step(models[0], optimizer, subgraph, torch.from_numpy(patch)).item() for patch in steps]
    state = models[1].backbone.state_dict() | models[1].head.state_dict()
    twin = reference.train(state, features, matrix, labels, steps, lr=lr)
    np.testing.assert_allclose(ours, twin, rtol=1e-5)
    assert twin[-1] < twin[0]
    trained = models[0].backbone.state_dict() | models[0].head.state_dict()
    for name, weights in state.items():
        torch.testing.assert_close(trained[name], weights.detach(), rtol=1e-4, atol=1e-5)
