"""Test sampling, the training step, and whole small runs."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from helpers.samples import blobs, unit
from helpers.training import train_step
from starfc.config.config import Config, Optimizer, Sampling, load_config
from starfc.config.thresholds import load_thresholds
from starfc.errors import InputError
from starfc.graph.affinity import propagation_matrix
from starfc.graph.knn import exact_knn
from starfc.models.checkpoint import load_model
from starfc.models.gcn import StarFCModel
from starfc.training import prefetch
from starfc.training.basic import BasicTraining
from starfc.training.holdout import hold_back
from starfc.training.sampling import SubgraphSampler, build_subgraph, identity_centres, patches, random_rotation
from starfc.training.trainer import run_training


@pytest.fixture(scope="module")
def data():
    features, labels = blobs(identities=20, size=10, seed=1)
    return unit(features), labels


def test_centres_are_normalised_means(data):
    features, labels = data
    centres = identity_centres(features, labels)
    for identity in range(20):
        mean = features[labels == identity].mean(axis=0)
        np.testing.assert_allclose(centres[identity], mean / np.linalg.norm(mean), rtol=1e-5, atol=1e-6)


def test_a_subgraph_is_the_seeds_neighbourhood(data):
    features, labels = data
    sampler = SubgraphSampler(features, labels, nearest=8, identities=5, instance_share=0.75)
    centres = identity_centres(features, labels)
    near = np.argsort(-(centres @ centres[3]))[:8]
    drawn = set()
    for seed in range(40):
        instances = sampler.sample(3, np.random.default_rng(seed))
        identities, counts = np.unique(labels[instances], return_counts=True)
        assert len(identities) == 5
        assert (counts == 7).all()  # floor(0.75 * 10)
        assert set(identities) <= set(near)
        blocks = labels[instances].reshape(5, 7)  # an identity's instances stand together, ascending
        assert (blocks == blocks[:, :1]).all()
        assert (np.diff(instances.reshape(5, 7)) > 0).all()
        drawn |= set(identities)
    assert drawn == set(near)


def test_an_identity_keeps_at_least_one_instance(data):
    features, labels = data
    sampler = SubgraphSampler(features, labels, nearest=20, identities=20, instance_share=0.01)
    assert len(sampler.sample(0, np.random.default_rng(0))) == 20


def test_a_subgraph_has_its_own_knn_graph(data):
    features, labels = data
    some = np.arange(0, 200, 3)
    subgraph = build_subgraph(features[some], labels[some], 8, 0.0)
    matrix = propagation_matrix(exact_knn(features[some], 8))
    rows, cols = matrix.nonzero()
    np.testing.assert_array_equal(subgraph.rows, rows)
    np.testing.assert_array_equal(subgraph.cols, cols)
    np.testing.assert_array_equal(subgraph.targets.numpy() == 1, labels[some][rows] == labels[some][cols])
    np.testing.assert_allclose(subgraph.aggregated, matrix @ features[some], rtol=1e-4, atol=1e-5)
    assert (subgraph.rows == subgraph.cols).sum() == len(some)  # self loops are training edges too


def test_patches_cut_every_edge_once():
    parts = patches(103, 10, np.random.default_rng(0))
    assert len(parts) == 10
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(103))
    assert not np.array_equal(np.concatenate(parts), np.arange(103))


def test_a_subgraph_for_a_gpu_is_built_in_pinned_memory(data, monkeypatch):
    """From there it is copied while the CPU goes on. Without a GPU, torch cannot pin; marks stand for that here."""
    features, labels = data
    method = BasicTraining(Config(knn=8), StarFCModel(16, 24))
    given, instances, pinned = SimpleNamespace(features=features, labels=labels), np.arange(60), []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    plain = method.build(given, instances)
    assert not pinned
    method.model = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(is_cuda=True)]))
    found = method.build(given, instances)
    assert len(pinned) == len(fields(found))
    assert all(torch.equal(getattr(found, f.name), getattr(plain, f.name)) for f in fields(found))


@pytest.mark.long
def test_a_step_is_the_published_step(data):
    """Against a twin that concatenates node pairs and takes the cross-entropy of two classes."""
    features, labels = data
    subgraph = build_subgraph(features, labels, 8, 0.0)
    ours = StarFCModel(16, 24, generator=torch.Generator().manual_seed(0))
    twin = StarFCModel(16, 24, generator=torch.Generator().manual_seed(0))
    sampling, sgd = Sampling(patches=5, passes=2), Optimizer(lr=0.1, momentum=0.9, weight_decay=1e-5)
    method = BasicTraining(Config(sampling=sampling, optimizer=sgd), ours)
    assert method.num_steps(subgraph) == 10
    found = []
    for edges in method.deal(subgraph, 10, np.random.default_rng(7)):
        ours.zero_grad()
        loss, _ = method.loss(subgraph, edges, torch.Generator())
        loss.backward()
        method.update()
        found.append(loss.item())

    optimizer = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9, weight_decay=1e-5)
    rng, losses = np.random.default_rng(7), []
    for _ in range(2):
        for patch in patches(subgraph.num_edges, 5, rng):
            both = torch.cat([subgraph.features, subgraph.aggregated], dim=1)
            x = torch.relu(both @ twin.backbone.conv1.weight + twin.backbone.conv1.bias)
            pairs = torch.cat([x[subgraph.rows[patch].long()], x[subgraph.cols[patch].long()]], dim=1)
            step_loss = functional.cross_entropy(twin.head.classifier(pairs), subgraph.targets[patch].long())
            optimizer.zero_grad()
            step_loss.backward()
            optimizer.step()
            losses.append(step_loss.item())
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    for a, b in zip(ours.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strength", [0.0, 0.3, 2.0])
def test_a_rotation_keeps_similarities(data, strength):
    turn = random_rotation(16, strength, torch.Generator().manual_seed(0))
    f = torch.from_numpy(data[0])
    torch.testing.assert_close((f @ turn) @ (f @ turn).T, f @ f.T, rtol=1e-4, atol=1e-5)
    assert torch.equal(turn, torch.eye(16)) == (strength == 0)


def test_a_rotated_step_is_a_step_on_rotated_features(data):
    """The rotation is applied to the weights; the twin turns the features."""
    subgraph = build_subgraph(*data, 8, 0.0)
    turn = random_rotation(16, 0.5, torch.Generator().manual_seed(0))
    turned = replace(subgraph, features=subgraph.features @ turn, aggregated=subgraph.aggregated @ turn)
    edges, results = torch.arange(0, subgraph.num_edges, 2), []
    for graph, rotation in ((subgraph, turn), (turned, None)):
        model = StarFCModel(16, 24, generator=torch.Generator().manual_seed(0))
        loss = train_step(model, torch.optim.SGD(model.parameters(), 0.5), graph, edges, rotation)
        results.append([loss, *(p.detach() for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_holdout_takes_look_alikes_together():
    rng = np.random.default_rng(0)
    families = np.repeat(np.eye(10), 10, axis=0) + 0.01 * rng.normal(size=(100, 10))
    centres = (families / np.linalg.norm(families, axis=1, keepdims=True)).astype(np.float32)
    held = hold_back(centres, 0.3, 10, rng)
    assert len(held) == 30
    assert len(set(held // 10)) == 3  # three whole families


@pytest.mark.long
def test_a_run_leaves_its_record_and_repeats(workspace):
    config = load_config(workspace / "config.py", {"validation.source": "holdout", "validation.holdout_share": 0.3})
    losses, weights = [], []
    for name in ("a", "b"):
        run_training(config, workspace / name)
        entries = [json.loads(line) for line in (workspace / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([e["loss"] for e in entries if e["kind"] == "train"])
        weights.append(load_model(workspace / name).state_dict())
        assert 0 <= next(e["edge_accuracy"] for e in entries if e["kind"] == "validation") <= 1
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    for refinement in ("fixed", "dynamic"):
        assert all(0 <= tau <= 1 for tau in load_thresholds(workspace / "a", refinement))
    record = json.loads((workspace / "a" / "run.json").read_text())
    assert record["config"]["cluster_num"] == 6
    assert record["seed"] == 0
    assert {stage["name"] for stage in record["stages"]} == {"data", "training", "thresholds"}
    assert set(record["thresholds"]) == {"fixed", "dynamic"}
    assert (workspace / "a" / "threshold_surface.csv").is_file()
    assert (workspace / "a" / "threshold_surface.png").is_file()
    assert (workspace / "a" / "checkpoints" / "subgraph_000004.pt").is_file()
    other = load_config(workspace / "config.py", {"seed": 1, "validation.source": "none"})
    run_training(other, workspace / "c")
    assert not torch.equal(
        load_model(workspace / "c").state_dict()["backbone.conv1.weight"], weights[0]["backbone.conv1.weight"]
    )


def test_prefetching_changes_nothing(workspace, monkeypatch):
    config, losses, weights = load_config(workspace / "config.py", {"total_epochs": 2, "threads": 2}), [], []
    for name in ("in line", "worker"):
        with monkeypatch.context() as patch:
            if name == "in line":
                patch.setattr(prefetch, "concurrent_kernels", lambda: False)
            elif not prefetch.concurrent_kernels():
                pytest.skip("numba's threading layer runs one parallel kernel at a time")
            run_training(config, workspace / name)
        lines = (workspace / name / "metrics.jsonl").read_text().splitlines()
        losses.append([e["loss"] for e in map(json.loads, lines) if e["kind"] == "train"])
        weights.append(load_model(workspace / name).state_dict())
    assert len(losses[0]) == 8
    assert losses[0] == losses[1]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.long
def test_training_lowers_the_loss_of_both_recipes(workspace):
    recipes = {
        "published": {
            "model.kwargs.init": "xavier",
            "optimizer.type": "SGD",
            "optimizer.lr": 0.1,
            "lr_config": {"policy": "step"},
        },
        "metric": {"optimizer.lr": 5e-3},
    }
    for name, overrides in recipes.items():
        overrides = {"validation.source": "none", "sampling.subgraphs_per_epoch": 40, **overrides}
        run_training(load_config(workspace / "config.py", overrides), workspace / name)
        lines = (workspace / name / "metrics.jsonl").read_text().splitlines()
        loss = [json.loads(line)["loss"] for line in lines]
        assert np.mean(loss[-5:]) < 0.8 * np.mean(loss[:5]), name


def test_validation_on_the_test_split_and_tensorboard(workspace):
    hooks = [{"type": "TensorboardLoggerHook"}]
    run_training(load_config(workspace / "config.py", {"log_config": {"hooks": hooks}}), workspace / "run")
    assert list((workspace / "run" / "tensorboard").glob("events*"))
    assert '"kind": "validation"' in (workspace / "run" / "metrics.jsonl").read_text()
    assert (workspace / "data" / "knns" / "part1_test" / "exact_k_10" / "manifest.json").is_file()


@pytest.mark.long
def test_thresholds_come_from_the_held_back_part_whatever_validates(workspace):
    surfaces = []
    for source in ("holdout", "test", "none"):
        overrides = {"validation.source": source, "validation.holdout_share": 0.3}
        run_training(load_config(workspace / "config.py", overrides), workspace / source)
        surfaces.append((workspace / source / "threshold_surface.csv").read_text())
    assert surfaces[0] == surfaces[1] == surfaces[2]
    assert "held out of part0_train" in (workspace / "test" / "thresholds.json").read_text()


def test_subgraphs_of_the_wrong_size_are_skipped_and_said(workspace, caplog):
    overrides = {"sampling.max_nodes": 20, "validation.source": "none"}
    with caplog.at_level("INFO", "starfc"):
        run_training(load_config(workspace / "config.py", overrides), workspace / "run")
    assert "skipped: 78 instances" in caplog.text
    assert (workspace / "run" / "metrics.jsonl").read_text() == ""


def test_training_needs_two_identities(workspace):
    (workspace / "data" / "labels" / "part0_train.meta").write_text("0\n" * 180)
    with pytest.raises(InputError, match="at least 2 identities"):
        run_training(load_config(workspace / "config.py"), workspace / "run")
