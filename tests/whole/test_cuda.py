"""Run every stage on a CUDA device that refuses tensors of the wrong place (helpers/fake_cuda.py), without a GPU."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from helpers.fake_cuda import fake_cuda
from helpers.samples import blobs, some_rows, unit
from helpers.training import METHODS, same_weights
from starfc import StarFC
from starfc.clustering import adaptation
from starfc.clustering.pipeline import cluster, cluster_dynamic
from starfc.commands import app
from starfc.config.config import Kinds, load_config
from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.graph.device_search import device_search
from starfc.graph.exact import exact_search
from starfc.graph.knn import build_knn
from starfc.graph.recall import Sample
from starfc.graph.store import read_graph
from starfc.models.checkpoint import PRETRAINED, load_model
from starfc.models.contextual import ContextScorer
from starfc.models.gcn import StarFCModel
from starfc.models.hierarchical import HierarchicalModel
from starfc.runs import cluster as cluster_run
from starfc.runtime.machine import choose_device
from starfc.training.contextual import fit
from starfc.training.trainer import run_training

CUDA = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def gpu():
    """64 MB of device memory: some stages work in several blocks."""
    with fake_cuda(64 << 20):
        yield


@pytest.fixture(scope="module")
def many():
    rows = unit(blobs(identities=20, dim=32, noise=0.9)[0])
    return rows, build_knn(rows, 30)


def test_the_device_refuses_what_cuda_refuses():
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    assert there.device == (2 * there + torch.tensor(1.0)).device == CUDA
    for mixed in (
        lambda: there + here,
        lambda: torch.cat([there, here]),
        lambda: here[there > 0],
        lambda: here.add_(there),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    assert there[torch.arange(2)].sum().item() == 2  # an index may be on the CPU
    with pytest.raises(RuntimeError, match="numpy"):
        np.asarray(there)
    with pytest.raises(RuntimeError, match="same device"):
        there[torch.arange(2)] = torch.zeros(2)
    with pytest.raises(RuntimeError, match="generator"):
        there.exponential_(generator=torch.Generator())
    assert not isinstance(there.cpu(), type(there))
    assert isinstance(here.to("cuda"), type(there))


def test_a_gpu_that_does_not_exist_is_a_mistake():
    assert choose_device("auto") == choose_device("cuda") == choose_device("cuda:0") == CUDA
    with pytest.raises(InputError, match=r"device: cuda:0 to cuda:0 needed; found 'cuda:3', but torch finds 1 GPU;"):
        choose_device("cuda:3")


def test_a_gpu_on_which_torch_cannot_compute_is_not_chosen(monkeypatch, caplog):
    def ones(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nMore text")

    monkeypatch.setattr(torch, "ones", ones)
    with pytest.raises(
        InputError, match=r"device: torch cannot compute on cuda:0 \(CUDA error: no kernel image .*device\); use"
    ):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"
    assert "the CPU is used" in caplog.text


@pytest.mark.parametrize(("dtype", "free"), [(torch.bfloat16, 160_000), (torch.float32, 64 << 20)])
def test_exact_lists(dtype, free):
    """The features are read in blocks, or are on the device."""
    features = Features(some_rows(30, 20, 128, 0.8)[0])
    with fake_cuda(free):
        found = device_search(features, 10, CUDA, dtype=dtype)
    for there, here in zip(found, exact_search(features, 10), strict=True):
        np.testing.assert_array_equal(there, here)


def test_approximate_lists():
    features = Features(some_rows(60, 20, 32, 0.8)[0])
    found = build_knn(features, 20, "ivf", {"nlist": 40, "nprobe": 4, "partitions": 2, "sweeps": 1}, device=CUDA)
    assert found.info["params"] == {"nlist": 40, "nprobe": 4, "partitions": 2, "sweeps": 1}
    assert found.info["recall"] > 0.99
    assert Sample.draw(features, 20, np.random.default_rng(0), device=CUDA).exact.k == 20


@pytest.mark.parametrize("kind", ["any", "structural", "gcn", "hierarchical"])
def test_clusters(many, monkeypatch, kind):
    monkeypatch.setattr(adaptation, "_STEPS", 5)
    monkeypatch.setattr(adaptation, "GAIN", -1.0)  # every round stays
    monkeypatch.setattr(adaptation, "_ROUNDS", 2)
    monkeypatch.setattr(adaptation, "_LEAST", 100)
    rows, graph = many
    features, generator, run = Features((3 * rows).astype(np.float16)), torch.Generator().manual_seed(0), cluster
    given = {"tau1": 0.5, "tau2": 0.4}
    if kind == "any":
        model, given = load_model(PRETRAINED), {"tau1": None, "tau2": None, "partition": "infomap", "keep_edges": True}
    elif kind == "structural":
        model = load_model(PRETRAINED.parent / "structural")
    elif kind == "gcn":
        model = StarFCModel(32, 24, init="metric", generator=generator)
    else:
        model = HierarchicalModel(32, 24, init="metric", scales=(8, 12, 20), generator=generator)
        run = cluster_dynamic
    here = run(features, graph, model, **given)
    there = run(features, graph, model, device=CUDA, **given)
    np.testing.assert_array_equal(there.labels, here.labels)
    assert len(there.rounds) == len(here.rounds)
    assert all(value.device.type == "cpu" for value in model.state_dict().values())


def test_the_estimator():
    features = blobs()[0]
    model = StarFCModel(16, 32, init="metric", generator=torch.Generator().manual_seed(0))
    ours, theirs = (StarFC(model, k=10, tau1=0.3, tau2=0.4, device=device) for device in ("cuda", "cpu"))
    for estimator in (ours, theirs):
        estimator.fit(features).partial_fit(features[:20] + np.float32(0.01))
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    assert all(value.device.type == "cpu" for value in model.state_dict().values())  # it can be saved without a GPU
    assert StarFC(device="cuda").fit(features).partial_fit(features[:20] + np.float32(0.01)).labels_.shape == (200,)


@pytest.mark.long
def test_commands(tmp_path):
    features = blobs()[0]
    for name, array in (("f", features), ("more", features[:20] + np.float32(0.01))):
        np.save(tmp_path / f"{name}.npy", array)

    def starfc(*arguments):
        done = CliRunner().invoke(app, [str(x) for x in arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        return done.stdout

    machine, out = ("--threads", 1, "--device", "cuda"), tmp_path / "out"
    starfc("cluster", tmp_path / "f.npy", "-o", out, *machine)
    assert '"gpu": "no GPU"' in (out / "run.json").read_text()
    assert "20 joined" in starfc("assign", out, tmp_path / "more.npy", "--threads", 1)
    starfc("knn", tmp_path / "f.npy", "-o", tmp_path / "k.npz", "--k", 10, *machine)
    assert read_graph(tmp_path / "k.npz", Features(features), 10).k == 10


def test_tasks_do_not_use_the_device(tmp_path, monkeypatch, caplog):
    class Reached(Exception):
        pass

    def stop(*_, **__):
        raise Reached

    np.save(tmp_path / "f.npy", blobs()[0])
    monkeypatch.setattr(cluster_run, "on_shards", stop)
    command = ["cluster", tmp_path / "f.npy", "-o", tmp_path / "out", "--engine", "local", "--threads", 1]
    with caplog.at_level(logging.INFO, "starfc"):
        for device, level in (("cuda", "WARNING"), ("auto", "INFO")):
            found = CliRunner().invoke(app, [*map(str, command), "--device", device])
            assert isinstance(found.exception, Reached)
            said = [r for r in caplog.records if "cuda:0 is not used, because tasks compute on the CPU" in r.message]
            assert said[-1].levelname == level


@pytest.mark.long
@pytest.mark.parametrize("kind", METHODS)
def test_training(workspace, tmp_path, kind):
    given = METHODS[kind] | {"device": "cuda", "sampling.subgraphs_per_epoch": 2}
    given |= {"checkpoint_config": {"interval": 1, "keep": 100}}
    if kind == "hierarchical":
        given["hierarchical"] = given["hierarchical"] | {"selector_precision": "bfloat16"}
    config = load_config(workspace / "config.py", given)
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert run_training(config, whole)["machine"]["gpu"] == "no GPU"
    run_training(config, part, resume=str(whole / "checkpoints" / "subgraph_000001.pt"))
    assert same_weights(part, whole)


def test_a_scorer_of_kinds_is_trained():
    rng = np.random.default_rng(0)
    samples = [
        (
            rng.normal(size=(90, 6)).astype(np.float16),
            rng.integers(0, 2, 90).astype(np.uint8),
            rng.normal(size=4).astype(np.float32),
            "a",
        )
        for _ in range(20)
    ]
    generator = torch.Generator().manual_seed(0)
    scorer = ContextScorer(6, 4, 8, generator).to(CUDA)
    found = fit(scorer, samples, Kinds(steps=10, batch=128), generator)
    assert 0 < found["held_back"] < 2
    assert scorer.of(samples[0][2]).shift.device == CUDA
