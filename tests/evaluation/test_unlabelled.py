"""Check that metrics, choices and training leave out instances of label -1, and that counts do not overflow."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from helpers.samples import blobs, unit
from starfc.commands import app
from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.evaluation.metrics import contingency, evaluate, fscore_error, nmi, pairwise, require_pairs
from starfc.evaluation.thresholds import sweep_thresholds
from starfc.graph.knn import build_knn
from starfc.models.gcn import StarFCModel
from starfc.scoring.projections import parse_graph, project_nodes
from starfc.training.kinds import Real


def test_metrics_are_of_those_that_are_known(caplog):
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 20, 500), rng.integers(0, 30, 500)
    known = rng.random(500) < 0.6
    half = np.where(known, truth, -1)
    with caplog.at_level(logging.WARNING, logger="starfc"):
        assert evaluate(half, predicted) == evaluate(truth[known], predicted[known])
    assert f"{np.count_nonzero(~known)} of 500 instances have no label (-1)" in caplog.text
    with pytest.raises(InputError, match="same length >= 1 needed"):
        evaluate(np.full(4, -1), np.arange(4))


def test_a_sweep_scores_those_that_are_known():
    features, labels = blobs(noise=0.8)
    features = unit(features)
    model = StarFCModel(16, 32, init="metric", generator=torch.Generator().manual_seed(0))
    edges = parse_graph(project_nodes(model, features, build_knn(features, 12)), 0.1)
    half = np.where(np.arange(len(labels)) % 3 == 0, -1, labels)
    grid = ((0.3,), (0.0, 0.5))
    members = {}
    for point in sweep_thresholds(edges, half, "fixed", grid):
        assert 0 < point.num_clusters <= np.count_nonzero(half >= 0)
        members[point.tau2] = point
    renamed = np.where(half == -1, 10**6 + np.arange(len(half)), half)  # singletons would lower the precision
    for point in sweep_thresholds(edges, renamed, "fixed", grid):
        assert point.precision < members[point.tau2].precision
        assert point.recall == pytest.approx(members[point.tau2].recall)
    scored = np.ones(len(labels), bool)
    assert sweep_thresholds(edges, half, "fixed", grid, scored) == list(members.values())


def test_labels_that_cannot_choose():
    for labels in (np.zeros(9, int), np.arange(9), np.full(9, -1), np.array([-1, -1, 0, 0]), np.empty(0, int)):
        with pytest.raises(InputError, match="at least 2 identities"):
            require_pairs(labels, "l.meta", "training")
    require_pairs(np.array([-1, 0, 0, 1]), "l.meta", "training")


def test_real_data_of_kinds_has_no_identity_of_unknown_rows():
    labels = np.array([-1, 3, 3, -1, 5, -1])
    real = Real(Features(np.eye(6, dtype=np.float32)), labels)
    assert [rows.tolist() for rows in real.members] == [[1, 2], [4]]


def test_products_of_counts_do_not_overflow():
    truth, predicted = np.repeat(np.arange(40000), 2), np.arange(80000)
    predicted[::4] = predicted[1::4]  # 40,000 identities x 60,000 clusters
    assert fscore_error(truth, predicted, np.ones(80000, bool)) == pytest.approx(0.0022222222222222374, rel=1e-12)
    one = np.zeros(100_000, np.int64)  # 10^10 pairs
    table = contingency(one, one)
    assert pairwise(table).fscore == 1
    assert nmi(table) == 1


def test_a_label_of_any_size_costs_nothing():
    truth = np.array([2_000_000_000, 0, 0, 2_000_000_000, -(2**62), 2**62])
    assert evaluate(truth, truth)["pairwise"]["fscore"] == 1
    assert evaluate(truth, np.unique(truth, return_inverse=True)[1])["bcubed"]["fscore"] == 1


def starfc(*arguments):
    found = CliRunner().invoke(app, list(map(str, arguments)))
    return found.exit_code, found.output


def test_the_command_says_what_it_left_out(tmp_path):
    truth, predicted = np.array([0, 0, 1, 1, -1, -1, 2]), np.array([0, 0, 1, 2, 0, 1, 3])
    np.save(tmp_path / "truth.npy", truth)
    np.save(tmp_path / "predicted.npy", predicted)
    code, out = starfc("evaluate", tmp_path / "truth.npy", tmp_path / "predicted.npy", "--json")
    assert code == 0
    found = json.loads(out[out.index("{") :])
    assert found["metrics"] == evaluate(truth[truth >= 0], predicted[truth >= 0])
    assert (found["num_identities"], found["num_unlabelled"], found["num_removed"]) == (3, 2, 0)
    folder = tmp_path / "run"
    folder.mkdir()
    np.save(folder / "labels.npy", np.array([0, 0, 1, -1, 0, 1, -1]))
    (folder / "run.json").write_text(json.dumps({"steps": [{"removed": [3]}, {"removed": [6]}]}))
    code, out = starfc("evaluate", tmp_path / "truth.npy", folder, "--json")
    found = json.loads(out[out.index("{") :])
    assert found["metrics"] == evaluate([0, 0, 1], [0, 0, 1])
    assert (found["num_instances"], found["num_removed"]) == (5, 2)
    (folder / "run.json").write_text(json.dumps({"steps": [{"removed": [70]}]}))
    code, out = starfc("evaluate", tmp_path / "truth.npy", folder)
    assert code == 2
    assert "removed rows must be 0.." in out


@pytest.mark.long
def test_choosing_and_training_need_pairs(tmp_path):
    features, _ = blobs()
    np.save(tmp_path / "x.npy", features)
    for name, labels in (("none", np.full(180, -1)), ("one", np.zeros(180, int)), ("apart", np.arange(180))):
        np.save(tmp_path / f"{name}.npy", labels)
        for command in ("tune", "train"):
            code, out = starfc(command, tmp_path / "x.npy", tmp_path / f"{name}.npy", "-o", tmp_path / "o", "-q")
            assert code == 2
            assert "every label is -1" in out if name == "none" else "needs at least 2 identities" in out
