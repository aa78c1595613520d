"""Test names of clusters through changes."""

from __future__ import annotations

import numpy as np
import pytest

from starfc.answers.names import carried, names_of, require_name
from starfc.errors import InputError


def test_names_stay_with_ids_and_follow_rows():
    before = np.array([0, 0, 0, 1, 1, 2])
    found, lost = carried({0: "Ada", 2: "Eva"}, before, np.array([0, 0, 3, 1, 1, 1]))
    assert found == {0: "Ada", 1: "Eva"}  # the larger part of 0 keeps its name; 2 became part of 1, without a name
    assert not lost


def test_of_two_names_that_of_the_remaining_cluster_stays_and_the_other_is_listed():
    found, (lost,) = carried({0: "Ada", 1: "Eva"}, np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0, 7]))
    assert found == {0: "Ada"}
    assert lost.text() == "cluster 1 ('Eva') is now part of cluster 0, which is called 'Ada'"


def test_a_name_goes_with_the_last_row_of_its_cluster():
    assert carried({1: "Eva"}, np.array([0, 1]), np.array([0, -1])) == ({}, [])


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 201, "\x1b[31m"])
def test_names_that_are_no_line_of_text_are_refused(name):
    with pytest.raises(InputError, match="one line of 1 to 200 characters"):
        require_name(name)


@pytest.mark.parametrize("name", ["\ud800", "a\u202eb", " ", "x" * 201])
def test_names_of_files_are_checked_like_those_of_the_command(name):
    with pytest.raises(InputError, match=r"names.json: names, 3: one line of 1 to 200 characters"):
        names_of({"3": name}, "names.json")


@pytest.mark.parametrize("key", ["-1", "00", "07", "٣", "", "1 ", "1\n", "9" * 19])
def test_keys_must_be_ids(key):
    with pytest.raises(InputError, match="cluster ids"):
        names_of({key: "Ada"}, "names.json")
