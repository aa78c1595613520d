"""Test that edge scores are a function of the edge, whatever is scored with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.samples import blobs, unit
from starfc.graph.knn import build_knn
from starfc.models.checkpoint import PRETRAINED, load_model
from starfc.models.structural import logits_of
from starfc.runtime.machine import set_threads
from starfc.scoring import structural
from starfc.scoring.structural import Scoring


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_logit_does_not_depend_on_the_edges_beside_it(which):
    scorer = getattr(load_model(PRETRAINED), which)
    scorer = scorer.of(scorer.neutral)
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(5000, len(scorer.shift))).astype(np.float32))
    threads = torch.get_num_threads()
    try:
        set_threads(1)  # as in the threads of a run
        alone = logits_of(scorer, features)
        torch.testing.assert_close(alone, scorer(features).detach())
        for count in (1, 7, 63, 64, 65, 4999):
            some = torch.from_numpy(rng.permutation(len(features))[:count])
            assert torch.equal(logits_of(scorer, features[some]), alone[some])
    finally:
        set_threads(threads)


def test_edges_do_not_depend_on_blocks_and_order(monkeypatch):
    rows = unit(blobs()[0])
    graph, model, rng = build_knn(rows, 20), load_model(PRETRAINED), np.random.default_rng(0)
    expected, candidates, mass = Scoring(model, rows, graph).parse(0.1)
    assert len(expected)
    for block in (1, 50):
        monkeypatch.setattr(structural, "ROW_BLOCK", block)
        found = Scoring(model, rows, graph, rng.permutation(len(rows))).parse(0.1)
        assert found[1:] == (candidates, mass)
        np.testing.assert_array_equal(found[0].cols, expected.cols)
        np.testing.assert_array_equal(found[0].scores, expected.scores)
