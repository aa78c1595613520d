"""The benchmarks' slow twin: equal to the golden files, and to the pipeline on random data."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, blobs, same_partition, unit

from starfc.clustering.pipeline import cluster
from starfc.data.dataset import Features
from starfc.data.formats import read_features
from starfc.graph.knn import build_knn
from starfc.graph.store import read_graph
from starfc.models.checkpoint import load_model
from starfc.models.gcn import StarFCModel


@pytest.fixture
def reference(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import reference

    return reference


@pytest.mark.parametrize(("tau1", "tau2"), [(0.7, 0.72), (0.9, 0.3)])
def test_the_twin_equals_the_golden_labels(reference, golden, tau1, tau2):
    features = Features(read_features(golden / "data/features/part1_test.bin", 256))
    graph = read_graph(golden / "data/knns/part1_test/faiss_k_80.npz", features, 80)
    model = load_model(golden)
    state = model.backbone.state_dict() | model.head.state_dict()
    labels = reference.cluster(features.all(), graph.ids, graph.sims, state, tau1, tau2)
    with np.load(golden / "reference_outputs.npz", allow_pickle=False) as file:
        assert same_partition(labels, file[f"labels_{tau1}_{tau2}"])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("tau1", "tau2"), [(0.05, 0.0), (0.3, 0.4), (0.5, 0.7), (0.999, 0.9)])
def test_the_pipeline_equals_the_twin(reference, seed, tau1, tau2):
    features = unit(blobs(identities=15, size=20, noise=0.6, seed=seed)[0])
    graph = build_knn(features, 15)
    model = StarFCModel(16, 24, init="metric", generator=torch.Generator().manual_seed(seed)).eval()
    state = {k: v.detach() for k, v in (model.backbone.state_dict() | model.head.state_dict()).items()}
    ours = cluster(features, graph, model, tau1=tau1, tau2=tau2)
    assert same_partition(ours.labels, reference.cluster(features, graph.ids, graph.sims, state, tau1, tau2))
