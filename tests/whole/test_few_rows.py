"""Sets of few rows, in which a neighbour list holds many or all of the rows."""

from pathlib import Path

import numpy as np
import pytest

from starfc import StarFC
from starfc.data.files import read_labels
from starfc.evaluation.metrics import evaluate

DATA = Path(__file__).parents[2] / "data" / "glyph"


@pytest.fixture(scope="module")
def sample():
    """The bundled embeddings, their identities, and the rows in the order of the identities with their starts."""
    features, labels = np.load(DATA / "features" / "sample.npy"), read_labels(DATA / "labels" / "sample.meta")
    order = np.argsort(labels, kind="stable")
    return np.asarray(features, np.float32), labels, order, np.flatnonzero(np.diff(labels[order], prepend=-1))


def rows_of_each(sample, identities, most):
    """Return the embeddings and identities of the first ``most`` rows of some identities."""
    features, labels, order, starts = sample
    kept = np.sort(np.concatenate([order[start : start + most] for start in starts[:identities]]))
    return features[kept], labels[kept]


@pytest.mark.parametrize(("n", "dim"), [(40, 128), (100, 64), (150, 32), (200, 128)])
def test_random_rows_stay_alone_and_that_is_said(n, dim):
    found = StarFC().fit(np.random.default_rng(10).normal(size=(n, dim)).astype(np.float32))
    assert len(set(found.labels_.tolist())) == n
    assert found.estimate_["fscore"] == 0
    assert any(f"all {n} instances are clusters of one" in doubt for doubt in found.doubts_)


def test_random_rows_that_become_one_cluster_are_doubted():
    """One identity, and rows of which no two have the same one, look the same in a set of few rows."""
    found = StarFC().fit(np.random.default_rng([1, 80, 32]).normal(size=(80, 32)).astype(np.float32))
    assert found.labels_.max() == 0
    assert found.estimate_["fscore"] < 0.85
    assert any("many pairs are uncertain" in doubt for doubt in found.doubts_)


@pytest.mark.parametrize(("identities", "most", "bcubed"), [(100, 1, 0.9), (75, 2, 0.9), (75, 3, 0.9), (12, 10, 0.95)])
def test_small_identities_are_not_joined(sample, identities, most, bcubed):
    rows, labels = rows_of_each(sample, identities, most)
    found = StarFC().fit(rows)
    assert evaluate(labels, found.labels_, ("bcubed",))["bcubed"]["fscore"] > bcubed


def test_a_set_of_few_rows_grows(sample):
    rows, _ = rows_of_each(sample, 75, 2)
    grown = StarFC().fit(rows[:60]).partial_fit(rows[60:])
    assert len(grown.labels_) == len(rows)
    assert grown.edge_scores_.edges.num_nodes == len(rows)
