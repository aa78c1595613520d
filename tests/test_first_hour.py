"""What a person meets in the first hour: few rows, odd inputs, published configs, words of the interface."""

from __future__ import annotations

import numpy as np
import pytest

from starfc import StarFC


def _orthogonal(n: int = 300) -> np.ndarray:
    return np.eye(n, dtype=np.float32)[np.random.default_rng(0).permutation(n)]


def _simplex(n: int = 200) -> np.ndarray:
    """Rows that are all equally similar, at about 0.5."""
    return np.eye(n, dtype=np.float32) * np.float32(np.sqrt(n)) + 1


@pytest.mark.parametrize("rows", [_orthogonal(), _simplex()], ids=["orthogonal", "simplex"])
def test_similarities_that_are_all_tied_join_nothing(rows):
    model = StarFC().fit(rows)
    assert model.labels_.tolist() == list(range(len(rows)))
    assert any("clusters of one" in doubt for doubt in model.doubts_)


def test_what_stands_out_of_tied_similarities_is_joined():
    rng, identities = np.random.default_rng(0), np.repeat(np.arange(40), 8)
    rows = np.zeros((320, 240), np.float32)
    rows[np.arange(320), identities] = 1
    rows[np.arange(320), rng.integers(40, 240, 320)] = 0.5
    labels = StarFC().fit_predict(rows)
    assert len({*zip(labels.tolist(), identities.tolist(), strict=True)}) == 40 == labels.max() + 1


def test_rows_added_to_tied_ones_stay_alone():
    rows = _orthogonal()
    model = StarFC().fit(rows[:280])
    model.partial_fit(rows[280:])
    assert np.unique(model.labels_).size == 300
