"""Test the simulated person and the bound of benchmarks/answers.py."""

from __future__ import annotations

import numpy as np
import pytest

import answers
from starfc.answers.questions import Question
from starfc.evaluation.metrics import contingency, pairwise


def test_the_person_says_what_most_of_the_shown_rows_say_and_errs_as_often_as_told():
    truth = np.array([0, 0, 1, 1, 1])
    question = Question("join", (0, 1, 2), (3, 4), (0, 1), (3, 2), 0.5, 1.0)
    assert not answers.person(truth, 0.0)(question)
    wrong = answers.person(truth, 0.3)
    assert np.mean([wrong(question) for _ in range(2000)]) == pytest.approx(0.3, abs=0.05)


def test_the_bound_is_the_best_of_all_first_steps_and_ends_at_one():
    rng = np.random.default_rng(0)
    truth = np.sort(rng.integers(0, 4, 24))
    labels = truth + 4 * rng.integers(0, 2, 24)
    labels[rng.integers(0, 24, 5)] = 0
    found = answers.oracle(labels, truth, [0, 1, 100])
    assert found[0] == pytest.approx(pairwise(contingency(truth, labels)).fscore)
    best = found[0]
    for a in np.unique(labels):
        for b in np.unique(labels):
            best = max(best, pairwise(contingency(truth, np.where(labels == b, a, labels))).fscore)
        for identity in np.unique(truth):
            apart = np.where((labels == a) & (truth == identity), 99, labels)
            best = max(best, pairwise(contingency(truth, np.unique(apart, return_inverse=True)[1])).fscore)
    assert found[1] <= best + 1e-12
    assert found[1] > found[0]
    assert found[100] == pytest.approx(1)
