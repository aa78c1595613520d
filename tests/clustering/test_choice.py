"""Test the agreement with samples and its effect on the estimate (tests/models/test_contextual.py tests the rest)."""

import numpy as np
import pytest

from starfc.clustering.choice import Estimate, agreement, doubted
from starfc.evaluation.metrics import evaluate


@pytest.mark.parametrize("seed", range(5))
def test_agreement_is_that_of_the_metrics(seed):
    rng = np.random.default_rng(seed)
    one, other = rng.integers(0, 9, 60), rng.integers(0, 5, 60)
    found = evaluate(one, other, ("pairwise", "bcubed"))
    expected = [found["pairwise"]["fscore"], found["bcubed"]["fscore"]]
    np.testing.assert_allclose(agreement(one, other), expected, rtol=1e-12)
    np.testing.assert_allclose(agreement(other, one), expected, rtol=1e-12)


def test_agreement_of_rows_alone():
    np.testing.assert_array_equal(agreement(np.arange(5), np.arange(5)), [1, 1])


def test_an_estimate_is_lowered_to_the_agreement_and_never_raised():
    expected = Estimate(0.9, 0.8, 2 * 0.9 * 0.8 / 1.7, 0.85)
    lower = doubted(expected, np.array([0.5, 0.95]))
    assert lower.fscore == pytest.approx(0.5)
    assert 2 * lower.precision * lower.recall / (lower.precision + lower.recall) == pytest.approx(0.5)
    assert (lower.bcubed, lower.agreement) == (0.85, 0.5)
    same = doubted(expected, np.array([0.97, 0.7]))
    assert same == Estimate(0.9, 0.8, expected.fscore, 0.7, 0.97)
