"""Test training of the structural model: its training data, whole small runs, and refused starts."""

from __future__ import annotations

import copy
import csv
import json

import numpy as np
import pytest
import torch

from helpers.samples import blobs
from starfc.config.config import load_config
from starfc.errors import InputError
from starfc.evaluation.calibration import labelled_logits
from starfc.graph.structure import NO_LOGIT, encode
from starfc.models.checkpoint import load_model
from starfc.models.structural import StructuralModel
from starfc.training.data import held_back_graph, read_training_data, whole_graph
from starfc.training.structural import StructuralTraining
from starfc.training.trainer import edge_accuracy, make_method, run_training

CPU = torch.device("cpu")
STRUCTURAL = {
    "model.type": "gcn_structural",
    "model.kwargs.nhid": 16,
    "structural.candidates": 6,
    "validation": {"source": "holdout", "holdout_share": 0.3, "holdout_group": 2},
    "cluster_num": 4,
    "tau1": None,
    "tau2": None,
    "dynamic": {"tau1": None, "tau2": None},
}


@pytest.fixture
def config(workspace):
    features, labels = blobs(noise=0.8, seed=1)
    features.tofile(workspace / "data" / "features" / "part0_train.bin")
    (workspace / "data" / "labels" / "part0_train.meta").write_text("\n".join(map(str, labels)) + "\n")
    return lambda **more: load_config(workspace / "config.py", copy.deepcopy(STRUCTURAL | more))


@pytest.fixture
def method(config) -> StructuralTraining:
    return make_method(config(), CPU, whole_graph(config(), read_training_data(config())))


def journal(folder, kind):
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == kind]


@pytest.mark.long
@pytest.mark.parametrize("rounds", [1, 2])
def test_a_run_leaves_its_record_and_repeats(workspace, config, rounds):
    for name in ("a", "b"):
        run_training(config(**{"structural.rounds": rounds}), workspace / name)
    first, again = (load_model(workspace / name, 16, 16) for name in ("a", "b"))
    assert isinstance(first, StructuralModel)
    assert (first.rounds, first.columns, first.candidates) == (rounds, 9, 6)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in first.state_dict().items())
    terms = {"loss_first", "loss_second", "loss_folds"} if rounds == 2 else {"loss_first"}
    entries = journal(workspace / "a", "train")
    assert len(entries) == 4
    for entry in entries:
        assert {key for key in entry if key.startswith("loss_")} == terms
        assert sum(entry[key] for key in terms) == pytest.approx(entry["loss"], rel=1e-5)
    assert (workspace / "a" / "threshold_surface.csv").is_file()
    chosen = json.loads((workspace / "a" / "thresholds.json").read_text())
    assert set(chosen) == {"fixed", "dynamic", "chosen_on"}
    record = json.loads((workspace / "a" / "run.json").read_text())
    calibration = record["calibration"]
    assert calibration["temperature"] == pytest.approx(first.temperature.item())
    assert 0 <= calibration["error_after"] <= 1
    assert {"calibration", "thresholds"} <= {stage["name"] for stage in record["stages"]}
    rows = list(csv.DictReader((workspace / "a" / "reliability.csv").read_text().splitlines()))
    tables = {row["name"] for row in rows}
    assert tables == {"T = 1.000", f"T = {calibration['temperature']:.3f}"}
    for table in tables:
        assert sum(int(row["edges"]) for row in rows if row["name"] == table) == calibration["edges"]
    assert (workspace / "a" / "reliability.png").is_file()
    run_training(config(seed=1, **{"structural.rounds": rounds}), workspace / "c")
    assert not torch.equal(load_model(workspace / "c").first.layers[0].weight, first.first.layers[0].weight)


@pytest.mark.long
def test_training_lowers_the_loss_and_tells_edges_apart(workspace, config):
    long = config(**{"sampling.subgraphs_per_epoch": 40, "optimizer.lr": 1e-2})
    run_training(long, workspace / "run")
    loss = [entry["loss"] for entry in journal(workspace / "run", "train")]
    assert np.mean(loss[-5:]) < 0.8 * np.mean(loss[:5])
    held = held_back_graph(long, read_training_data(long))
    model = load_model(workspace / "run")
    accuracy = edge_accuracy(model, held, 0.0, CPU)
    assert accuracy == pytest.approx(journal(workspace / "run", "validation")[-1]["edge_accuracy"])
    logits, same = labelled_logits(model, held.features, held.graph, held.labels, held.held)
    assert accuracy == ((logits > 0) == same).mean()
    logits, same = labelled_logits(model, held.features, held.graph, held.labels, ~held.held)
    assert ((logits > 0) == same).mean() > max(same.mean(), 1 - same.mean())  # better than one answer for all


def test_held_back_instances_are_in_the_graph_behind_the_others(config):
    data = read_training_data(config())
    whole = held_back_graph(config(), data)
    n = len(data.train.labels)
    np.testing.assert_array_equal(whole.features[:n], data.train.features)
    np.testing.assert_array_equal(whole.labels[:n], data.train.labels)
    np.testing.assert_array_equal(whole.held, np.arange(len(whole.labels)) >= n)
    assert not set(whole.labels[:n]) & set(whole.labels[n:])
    assert (whole.held[whole.graph.ids[:n]]).any()
    alone = held_back_graph(config(**{"model.type": "gcn"}), data)
    assert len(alone.labels) == len(data.held.labels)
    assert alone.held.all()
    everything = read_training_data(config(**{"validation": {"source": "none", "holdout_share": 0.0}}))
    assert held_back_graph(config(), everything) is None
    assert not whole_graph(config(), everything).held.any()


def test_a_subgraph_without_edges_to_learn_from_takes_no_step_and_carries_nothing(config):
    data = read_training_data(config())
    method = make_method(config(), CPU, whole_graph(config(), data))
    method._labels[:] = -1
    edges = method.start(method.build(data.train, np.arange(40)), np.random.default_rng(0), CPU)
    assert method.num_steps(edges) == 0
    assert method.carried() == {}


@pytest.mark.parametrize("rounds", [1, 2])
def test_edges_with_a_held_back_end_are_not_learnt_from(config, rounds):
    chosen = config(**{"structural.rounds": rounds})
    data = read_training_data(chosen)
    whole = whole_graph(chosen, data)
    method = make_method(chosen, CPU, whole)
    nodes = np.random.default_rng(0).permutation(len(data.train.labels))[:60]
    edges = method.start(method.build(data.train, nodes), np.random.default_rng(0), CPU)
    pairs, left_out = method._structure.first_round(np.sort(nodes)), 0
    expected = []
    for at, (i, slot) in enumerate(zip(pairs.rows, pairs.slots, strict=True)):
        j = whole.graph.ids[i, slot]
        if whole.held[j]:
            left_out += 1
        else:
            expected.append((at, whole.labels[i] == whole.labels[j], whole.labels[min(i, j)] % rounds))
    assert left_out > 0
    assert edges.features.shape == (len(expected), 20 if rounds == 1 else 30)
    at, targets, folds = (np.array(column) for column in zip(*expected, strict=True))
    np.testing.assert_array_equal(edges.features[:, :20].numpy(), pairs.features[at])
    np.testing.assert_array_equal(edges.targets.numpy(), targets)
    np.testing.assert_array_equal(edges.folds.numpy(), folds)
    assert 0 < targets.mean() < 1
    parts = method.deal(edges, method.num_steps(edges), np.random.default_rng(1))
    assert len(parts) == 3
    np.testing.assert_array_equal(np.sort(torch.cat(parts).numpy()), np.arange(len(expected)))


def test_an_edge_around_a_subgraph_is_scored_by_the_half_that_it_is_not_of(config, method):
    """One half's scorer always says -2, the other's always 3."""
    says = (-2.0, 3.0)
    with torch.no_grad():
        for scorer, value in zip(method.model.folds, says, strict=True):
            scorer.layers[2].weight.zero_()
            scorer.layers[2].bias.fill_(value)
    data = read_training_data(config())
    whole = whole_graph(config(), data)
    nodes = np.arange(0, len(data.train.labels), 4)
    around = method.build(data.train, nodes)
    edges = method.start(around, np.random.default_rng(0), CPU)
    codes, ids = method._before.codes, whole.graph.ids
    listed = {int(j) for i in nodes for j in ids[i, :6]} | set(nodes.tolist())
    seen = set()
    for i in listed:
        for slot in range(6):
            lower = min(i, ids[i, slot])
            if not whole.held[lower]:
                fold = whole.labels[lower] % 2
                assert codes[i, slot] == encode(np.float32(says[1 - fold]))
                seen.add(fold)
    assert seen == {0, 1}
    assert (codes[:, 6:] == NO_LOGIT).all()
    logits = torch.where(edges.folds == 0, says[1], says[0])
    torch.testing.assert_close(edges.features[:, 20], logits)
    np.testing.assert_array_equal(method.carried()["codes"].numpy(), method._codes)
    method.finish()
    assert method.carried() == {}


def test_either_halfs_scorer_learns_from_its_own_half(config, method):
    data = read_training_data(config())
    edges = method.start(method.build(data.train, np.arange(60)), np.random.default_rng(0), CPU)
    for fold, (own, other) in enumerate((method.model.folds, method.model.folds[::-1])):
        method.model.zero_grad()
        patch = torch.from_numpy(np.flatnonzero(edges.folds.numpy() == fold))
        loss, terms = method.loss(edges, patch, torch.Generator())
        loss.backward()
        assert loss.item() == pytest.approx(sum(terms.values()))
        assert own.layers[0].weight.grad.abs().max() > 0
        assert other.layers[0].weight.grad.abs().max() == 0
        assert all(scorer.layers[0].weight.grad.abs().max() > 0 for scorer in (method.model.first, method.model.second))


def test_configs_that_cannot_be_are_refused(config):
    with pytest.raises(
        InputError, match=r"th_sim: must be 0 for structural models, which compare whole lists; found 0\.2"
    ):
        config(th_sim=0.2)
    config(knn=254)
    with pytest.raises(
        InputError, match=r"knn: must be at most 254 for the packaged model and other .* models; found 255"
    ):
        config(knn=255)
    with pytest.raises(InputError, match=r"structural\.rounds"):
        config(**{"structural.rounds": 3})


@pytest.mark.long
def test_lists_longer_than_the_split_are_cut(workspace, config, caplog):
    run_training(config(knn=200), workspace / "run")
    assert "lists of" in caplog.text


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:pairwise precision")  # so small a model may keep no edge
def test_a_run_clusters_and_takes_other_lists(workspace, config, command):
    run_training(config(), workspace / "run")
    for script, refinement in (("test_final.py", "fixed"), ("test_dynamic.py", "dynamic")):
        code, out, err = command(script, "--run", workspace / "run", "--out", workspace / "out")
        assert code == 0, err
        record = json.loads((workspace / "out" / "run.json").read_text())
        stored = json.loads((workspace / "run" / "thresholds.json").read_text())[refinement]
        assert record["thresholds"] == {"tau1": stored["tau1"], "tau2": stored["tau2"]}
        assert record["refinement"] == refinement
        assert record["num_clusters"] == len(np.unique(np.load(workspace / "out" / "labels.npy")))
        assert "pairwise" in out
    for k, said in ((12, False), (6, True)):
        code, _, err = command(
            "test_final.py", "--run", workspace / "run", "--out", workspace / "out", "--cfg-options", f"knn={k}"
        )
        assert code == 0, err
        assert (f"lists of at most {k - 1} neighbours instead of 9; clusters may be less certain" in err) == said
    code, _, err = command(
        "test_final.py", "--config", workspace / "config.py", "--model", workspace / "run", "--out", workspace / "out",
        "--cfg-options", "model.kwargs.nhid=16",
    )  # fmt: skip
    assert code != 0
    assert "configs/cfg_gcn_structural_ms1m.py" in err
