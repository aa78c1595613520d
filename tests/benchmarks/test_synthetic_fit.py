"""Test the figures of benchmarks/synthetic_fit.py against obvious twins."""

from __future__ import annotations

import numpy as np
import pytest

import synthetic_fit
from starfc.data.synthetic_manifold import Manifold
from synthetic_fit import Matched, Rows, _until, dimension, nearest_others, neighbourhoods, prepared, tables


def test_the_dimension_of_a_flat_patch_is_found():
    rng = np.random.default_rng(0)
    for true in (2, 6):
        patch = np.concatenate([0.05 * rng.uniform(-1, 1, (4000, true)), np.ones((4000, 1))], axis=1)
        rows = prepared(patch, np.zeros(4000, np.int64), False).features
        assert dimension(nearest_others(rows, 20)) == pytest.approx(true, rel=0.15)


def test_neighbourhoods_are_those_of_a_slow_twin_in_any_blocks(monkeypatch):
    monkeypatch.setattr(synthetic_fit, "STRANGERS", 85)
    rng = np.random.default_rng(1)
    rows = prepared(rng.normal(size=(300, 8)), rng.integers(0, 40, 300), False)
    queries = np.array([3, 50, 299])
    asked = Rows(rows.features[queries], rows.labels[queries])
    found = neighbourhoods([(0, rows)], queries, asked)
    sims = rows.features @ rows.features.T
    strangers = [np.sort(sims[q][rows.labels != rows.labels[q]])[::-1][:85] for q in queries]
    assert found["stranger_1"] == pytest.approx(np.mean([one[0] for one in strangers]), abs=1e-6)
    assert found["stranger_80"] == pytest.approx(np.mean([one[79] for one in strangers]), abs=1e-6)
    assert found["dimension_of_strangers"] == pytest.approx(dimension(np.stack(strangers)), rel=1e-4)
    own = [sims[q][(rows.labels == rows.labels[q]) & (np.arange(300) != q)] for q in queries]
    pairs = sorted((sim, 1 / len(one)) for one in own for sim in one)
    total = np.cumsum([weight for _, weight in pairs])
    assert found["same_50"] == pytest.approx(pairs[np.searchsorted(total, total[-1] / 2)][0], abs=1e-6)
    cut = [(0, Rows(rows.features[:120], rows.labels[:120])), (120, Rows(rows.features[120:], rows.labels[120:]))]
    assert neighbourhoods(cut, queries, asked) == pytest.approx(found, rel=1e-5)


def test_probes_are_interpolated_between_cells():
    ranks = np.array([0] * 90 + [1] * 10)
    assert _until(ranks, 4) == pytest.approx(100 * 1.5 / 4)
    assert _until(np.zeros(10, np.int64), 4) == pytest.approx(100 * 0.95 / 4)


def test_synthetic_identities_have_the_sizes_of_the_real_ones():
    population = Matched(60, Manifold(), 1, 8, real_sizes=np.array([10, 45, 5]))
    np.testing.assert_array_equal(np.bincount(population.rows(0, 60)[1]), [10, 45, 5])


def test_tables_mark_what_was_not_measured():
    figures = dict.fromkeys(synthetic_fit.NAMES, 2.0)
    entry = {"set": "part1_test", "real": figures, "synthetic": figures, "ratio": figures}
    text = tables({"fit": {"glyph": entry}, "scale": {"glyph": {"1000": {"stranger_1": 0.5}}}})
    assert "| dimension of strangers | 2 | 2 | 2.00 |" in text
    assert "| single link, F | – | – | – |" in text
    assert "| `glyph` | 1,000 |\n|---|---|\n| similarity to stranger 1 | 0.5 |" in text
