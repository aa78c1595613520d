"""Test marks: reading, checking, contradictions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from starfc.answers.constraints import verdicts
from starfc.answers.marks import Answer, Marks, closures, contradictions, require_consistent
from starfc.answers.marks_file import read_marks
from starfc.errors import InputError

PAIR = {"a": [1], "b": [2]}


def written(path, **content):
    path.write_text(json.dumps({"format": "starfc-marks", "version": 1, "num_instances": 10} | content))
    return path


def test_the_export_of_the_page_is_read(tmp_path):
    marks = read_marks(
        written(
            tmp_path / "marks.json",
            report="0f3a",
            must_link=[[8, 3], [3, 8]],
            cannot_link=[[1, 2]],
            wrong_clusters=[{"cluster": 2, "size": 3, "medoid": 1}],
            marks=[],
        ),
        10,
    )
    assert marks.must.tolist() == [[3, 8]]
    assert marks.cannot.tolist() == [[1, 2]]


def test_questions_without_an_answer_are_left_out(tmp_path):
    entries = [{"a": [1], "b": [2]}, {"a": [3], "b": [4], "same": None}, {"a": [5], "b": [6], "same": False, "p": 0.3}]
    marks = read_marks(written(tmp_path / "m.json", answers=entries), 10)
    assert marks.answers == (Answer((5,), (6,), False, 0.3),)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"must_link": [[1, 10]]}, "must_link: pairs of two different rows from 0 to 9"),
        ({"must_link": [[4, 4]]}, "pairs of two different rows"),
        ({"must_link": [[1, 2, 3]]}, "must_link"),
        ({"must_link": [[1, 2]], "cannot_link": [[2, 1]]}, r"1 pair in both must_link and cannot_link \(1 and 2\)"),
        ({"num_instances": 11}, "marks of a run with 11 rows, but this run has 10"),
        ({"version": 2}, "version"),
        ({"format": "other"}, "format"),
        ({"answers": [{"a": [1], "b": [1], "same": True}]}, "no row in both"),
        ({"answers": [{"a": [], "b": [1], "same": True}]}, "answers"),
        ({"answers": [{"a": [1], "b": [12], "same": True}]}, "from 0 to 9"),
    ],
)
def test_mistakes_end_in_one_message(tmp_path, content, said):
    with pytest.raises(InputError, match=said):
        read_marks(written(tmp_path / "m.json", **content), 10)


def test_marks_of_an_earlier_number_of_rows_are_read(tmp_path):
    path = written(tmp_path / "m.json", num_instances=8, must_link=[[1, 2]])
    assert len(read_marks(path, 10, {8})) == 1


def test_contradictions_name_the_marks_that_cause_them():
    marks = Marks.of(9, [[0, 1], [1, 2], [2, 3], [5, 6]], [[0, 3], [5, 7]])
    (found,) = contradictions(marks, 9)
    assert found.cannot == (0, 3)
    assert found.must == ((0, 1), (1, 2), (2, 3))
    with pytest.raises(InputError, match="1 contradiction: cannot_link 0 and 3, but must_link 0 and 1, 1 and 2, 2 and"):
        require_consistent(marks, 9)


def test_closures_are_the_components_of_must_links():
    found = closures(Marks.of(6, [[0, 1], [1, 2], [4, 5]]), 6)
    assert found[0] == found[1] == found[2] != found[3]
    assert found[4] == found[5] != found[3]


def test_a_newer_pair_replaces_its_opposite_and_an_answer_counts_once():
    one = Marks.of(9, [[0, 1]], [[2, 3]], [Answer((4,), (5,), True)])
    both = one.added(Marks.of(9, [[2, 3]], [[0, 1]], [Answer((4,), (5,), True), Answer((4,), (5,), False, asked=1)]))
    assert both.must.tolist() == [[2, 3]]
    assert both.cannot.tolist() == [[0, 1]]
    assert [answer.same for answer in both.answers] == [True, False]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"answers": [PAIR | {"same": "yes"}]}, "answers, entry 1, same: true, false or null needed; found 'yes'"),
        (
            {"answers": [PAIR | {"Same": True}]},
            "answers, entry 1: unknown key 'Same'; the keys of an entry are a, b, same,",
        ),
        ({"must_links": [[1, 2]]}, "unknown key 'must_links'; the keys of the file are format, version, num_instances"),
        ({"answers": [{"a": [1], "b": [2]}, {"A": [1], "b": [2]}]}, "answers, entry 2: unknown key 'A'"),
        ({"answers": [{"a": [1]}]}, "answers, entry 1, b: a list of rows needed; found nothing"),
        ({"answers": [{"a": [1, "x"], "b": [2]}]}, "answers, entry 1, a, entry 2: a list of rows needed; found 'x'"),
        ({"answers": [PAIR | {"p": 7}]}, "answers, entry 1, p: a number from 0 to 1 needed; found 7"),
        ({"answers": [PAIR | {"kind": "both"}]}, 'answers, entry 1, kind: "join" or "split" needed'),
        ({"answers": [5]}, "answers, entry 1: an object needed; found 5"),
        ({"answers": {}}, "answers: a list of entries needed; found {}"),
        ({"must_link": [[1, 2], [3]]}, "must_link, entry 2: pairs [row, row] needed; found [3]"),
        ({"must_link": [[1, -2]]}, "must_link, entry 1, entry 2: pairs [row, row] needed; found -2"),
        ({"num_instances": None}, "num_instances: the number of rows of the run needed; found None"),
        ({"version": 2}, "version: 1 needed; found 2"),
    ],
)
def test_a_mistake_in_an_entry_is_named(tmp_path, content, said):
    with pytest.raises(InputError) as raised:
        read_marks(written(tmp_path / "m.json", **content), 10)
    assert str(raised.value).startswith(f"{tmp_path / 'm.json'}: {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": "starfc-marks"\n "version": 1}', "not JSON: Expecting ',' delimiter in line 2, column 2$"),
        ("[" * 100_000, "not JSON: "),
        ('{"a": "\xff"}', "not JSON: "),
        ("[]", "content: an object needed; found \\[\\]$"),
    ],
)
def test_a_file_that_is_no_object_is_refused(tmp_path, text, said):
    (tmp_path / "m.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=said):
        read_marks(tmp_path / "m.json", 10)


@pytest.mark.parametrize("sides", [((4, 6), (5,)), ((5,), (6, 4))])
def test_a_corrected_answer_takes_the_place_of_the_first_one(sides):
    one = Marks.of(
        9, answers=[Answer((4, 6), (5,), True), Answer((4, 6), (5,), True, asked=1), Answer((1,), (2,), True)]
    )
    both = one.added(Marks.of(9, answers=[Answer(*sides, False)]))
    assert [answer.same for answer in both.answers] == [False, True, True]
    assert [verdict.answers for verdict in verdicts(both.answers)] == [2, 1]
    assert both.added(both).answers == both.answers
    assert one.added(one).answers == one.answers


def test_of_two_opposite_entries_of_a_file_the_later_one_counts(tmp_path):
    entries = [{"a": [1], "b": [2], "same": True}, {"a": [2], "b": [1], "same": False}]
    (answer,) = read_marks(written(tmp_path / "m.json", answers=entries), 10).answers
    assert not answer.same


@pytest.mark.parametrize("pairs", [[[0.5, 1]], [["a", "b"]], [[0, 1], [2]], [0, 1]])
def test_pairs_of_python_are_checked(pairs):
    with pytest.raises(InputError, match="must_link"):
        Marks.of(5, must_link=pairs)


def test_marks_survive_being_written_and_read(tmp_path):
    marks = Marks.of(10, [[0, 1]], [[2, 3]], [Answer((4, 5), (6,), False, 0.25, "split", 2)])
    (tmp_path / "m.json").write_text(json.dumps(marks.record(10)))
    back = read_marks(tmp_path / "m.json", 10)
    assert back.answers == marks.answers
    np.testing.assert_array_equal(back.must, marks.must)
