"""Test the sets of places: compare them with sorted lists."""

from __future__ import annotations

import numpy as np
import pytest

from starfc.shards.places import Places, Some


@pytest.mark.parametrize("n", [1, 64, 1000])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_places_are_numbered_in_their_order(n, dtype):
    rng = np.random.default_rng(n)
    arrays = [rng.integers(-1, n, shape).astype(dtype) for shape in (0, 3, (20, 4))]
    rows = Places.of(n, *arrays)
    expected = sorted({int(place) for array in arrays for place in array.ravel()} - {-1})
    assert rows.places.tolist() == expected
    assert len(rows) == len(expected)
    asked = np.arange(-1, n, dtype=dtype).reshape(1, -1)
    numbers = [[expected.index(place) if place in expected else -1 for place in asked[0]]]
    assert rows.numbers(asked).tolist() == numbers

    names = np.random.default_rng(0).permutation(n)
    some = Some.of(rows, lambda places: names[places])
    order = sorted(expected, key=lambda place: names[place])
    assert some.places.tolist() == order
    assert some.names.tolist() == [names[place] for place in order]
    numbers = [[order.index(place) if place in order else -1 for place in asked[0]]]
    assert some.numbers(asked).tolist() == numbers


def test_no_places():
    rows = Places.of(5, np.array([-1]))
    assert len(rows) == 0
    assert rows.numbers(np.array([-1, 0, 4])).tolist() == [-1, -1, -1]
