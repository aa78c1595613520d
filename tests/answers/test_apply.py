"""Test marks and names in the folder of a run: apply, undo, ask, name, and assign afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from helpers.paths import ROOT
from helpers.samples import blobs, unit
from starfc import Marks, StarFC
from starfc.answers.constraints import cluster_of
from starfc.answers.evidence import evidence_of
from starfc.answers.expected import expected
from starfc.answers.marks import Answer
from starfc.commands import app
from starfc.commands.apply import applied_text
from starfc.config.config import load_config
from starfc.config.recipes import model_config
from starfc.errors import InputError
from starfc.models.checkpoint import PRETRAINED, load_model
from starfc.review.measures import COLUMNS, instance_columns
from starfc.runs.apply import Marked
from starfc.runs.assign import assign
from starfc.runs.cluster import run_inference
from starfc.runs.folder import Run
from starfc.runtime.words import counted
from starfc.storage import commit
from starfc.storage.commit import LIST, NEXT

ROWS = 200


@pytest.fixture(scope="module", params=["components", "infomap"])
def finished(request, tmp_path_factory) -> Path:
    """A run of 200 instances, by a model of components or by the packaged one, and 24 new instances beside it."""
    place = tmp_path_factory.mktemp("apply")
    features, labels = blobs(identities=14, size=16, noise=0.9, seed=3)
    np.save(place / "old.npy", features[:ROWS])
    np.save(place / "new.npy", features[ROWS:])
    np.save(place / "labels.npy", labels)
    if request.param == "components":
        kwargs = {"invalid_rows": "singleton", "model.kwargs.feature_dim": 16}
        config = load_config(ROOT / "configs" / "cfg_gcn_structural_ms1m.py", kwargs)
        run_inference(config, tau1=0.8, tau2=0.7, features=place / "old.npy", out=place / "run", keep_edges=True)
    else:
        config = model_config(load_model(PRETRAINED), {"adapt": "off", "model": {"kwargs": {"feature_dim": 16}}})
        run_inference(config, model_folder=PRETRAINED, features=place / "old.npy", out=place / "run", keep_edges=True)
    return place


@pytest.fixture
def starfc():
    def call(*arguments):
        done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        return done.exit_code, done.stdout, done.stderr

    return call


def marks_for(labels: np.ndarray) -> Marks:
    """A cannot-link in the largest cluster, and a must-link between the next two."""
    sizes = np.bincount(labels[labels >= 0])
    first, second, third = np.argsort(-sizes, kind="stable")[:3]
    inside = np.flatnonzero(labels == first)
    ends = [np.flatnonzero(labels == label)[0] for label in (second, third)]
    return Marks.of(len(labels), must_link=[ends], cannot_link=[[inside[0], inside[-1]]])


def hold(labels: np.ndarray, marks: Marks) -> bool:
    must, cannot = labels[marks.must], labels[marks.cannot]
    return bool((must[:, 0] == must[:, 1]).all() and (cannot[:, 0] != cannot[:, 1]).all())


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def check(folder: Path) -> None:
    """What holds after every step: kept edges lie within clusters, and the table has what a new one would have."""
    run, marked = Run.open(folder), Marked(folder)
    edges = run.parsed.edges
    ends = marked.labels[edges.rows], marked.labels[edges.cols]
    assert (ends[0] == ends[1])[run.parsed.kept].all()
    table = pq.read_table(folder / "clusters.parquet")
    slow = instance_columns(run.parsed, np.unique(marked.labels, return_inverse=True)[1])
    for name in ("cohesion", "suspicion"):
        np.testing.assert_allclose(table[name].to_numpy(), slow[name].to_numpy(), atol=1e-6)
    assert set(COLUMNS) <= set(table.column_names)
    np.testing.assert_array_equal(table["label"].to_numpy(), run.labels)
    assert run.record["num_clusters"] == len(np.unique(marked.labels[marked.labels >= 0]))


def test_marks_hold_and_only_their_clusters_change(run):
    before = Run.open(run).labels
    marks = marks_for(before)
    applied = Marked(run).apply(marks)
    after = Run.open(run).labels
    assert hold(after, marks)
    assert len(applied.joined) == len(applied.divided) == 1
    touched = {*before[marks.must.ravel()], *before[marks.cannot.ravel()]}
    others = ~np.isin(before, list(touched))
    assert others.any()
    np.testing.assert_array_equal(after[others], before[others])
    np.testing.assert_array_equal(np.flatnonzero(before != after), applied.rows)
    slow = (before[:, None] == before) != (after[:, None] == after)
    assert applied.pairs == slow.sum() // 2
    check(run)


def test_undo_gives_the_same_files_back(run):
    before = files(run)
    marked = Marked(run)
    marked.apply(marks_for(marked.labels))
    middle = files(run)
    marked.apply(Marks.of(ROWS, cannot_link=[[0, 1]], must_link=[[5, 6]]))
    Marked(run).undo()
    same = {name for name in middle if not name.endswith((".json", ".meta"))}
    assert {name: files(run)[name] for name in same if name != "clusters.parquet"} == {
        name: middle[name] for name in same if name != "clusters.parquet"
    }
    undone = Marked(run).undo()
    after = files(run)
    for name in ("labels.npy", "labels.meta", "edges/kept.npy"):
        assert after[name] == before[name], name
    assert undone.steps == 0
    assert not [name for name in after if "step-" in name]
    check(run)
    with pytest.raises(InputError, match="nothing to undo"):
        Marked(run).undo()


def test_the_same_marks_twice_are_one_step(run):
    marked = Marked(run)
    marks = marks_for(marked.labels)
    first = marked.apply(marks)
    before = files(run)
    second = marked.apply(marks)
    assert (first.steps, second.steps) == (1, 1)
    assert files(run) == before


@pytest.mark.long
def test_marks_names_and_ids_stay_through_ten_steps_of_assign(run):
    marked, new = Marked(run), np.load(run.parent / "new.npy")
    marks = marks_for(marked.labels)
    marked.apply(marks)
    named = int(marked.labels[marks.must[0, 0]])
    marked.name({named: "Ada L."})
    before = marked.labels.copy()
    for step in range(10):
        gone = [100 + step] if step % 4 == 1 else []
        assign(run, new[2 * step : 2 * step + 2], apply_merges=step % 3 == 2, remove=gone)
        after = Marked(run)
        assert hold(after.labels, marks)
        assert "Ada L." in after.names.values()
        assert len(after.marks) == 2
        check(run)
    final = Marked(run)
    assert final.names[int(final.labels[marks.must[0, 0]])] == "Ada L."
    there = (final.labels[:ROWS] >= 0) & np.isin(before, before[marks.cannot[0]])
    assert there.any()
    # apply and undo go on after assign
    assert hold(final.labels, marks)
    final.apply(Marks.of(len(final.labels), cannot_link=[[ROWS, ROWS + 5]]))
    final.undo()
    check(run)
    undone = final.undo()
    assert undone.steps == 0
    check(run)


def test_a_merge_of_assign_does_not_break_a_cannot_link(run):
    marked = Marked(run)
    inside = np.flatnonzero(marked.labels == np.bincount(marked.labels).argmax())
    marks = Marks.of(ROWS, cannot_link=[[inside[0], inside[-1]]])
    marked.apply(marks)
    before = Run.open(run).labels
    assign(run, np.load(run.parent / "new.npy"), apply_merges=True)
    after = Marked(run).labels
    assert hold(after, marks)
    assert {*after[[inside[0], inside[-1]]]} <= {*before}


def test_assign_lists_no_merge_that_marks_forbid_and_does_those_it_lists(run):
    marked = Marked(run)
    one, two = (np.flatnonzero(marked.labels == label) for label in np.argsort(-np.bincount(marked.labels))[:2])
    halves = Answer(tuple(one[::2].tolist()), tuple(one[1::2].tolist()), same=False, kind="split")
    marked.apply(Marks.of(ROWS, cannot_link=[[two[0], two[-1]]], answers=[halves]))
    labels, new = marked.labels, np.load(run.parent / "new.npy")
    kept_apart = [{cluster_of(labels, halves.a), cluster_of(labels, halves.b)}, {*labels[[two[0], two[-1]]].tolist()}]
    assert [len(pair) for pair in kept_apart] == [2, 2]
    listed = assign(run, new[:4]).merges
    assert not [merge for merge in listed if {*merge.clusters} in kept_apart]
    before = Marked(run).labels
    done = assign(run, new[4:], apply_merges=True).merges
    after = Marked(run).labels
    now = {int(cluster): cluster_of(after, np.flatnonzero(before == cluster)) for cluster in np.unique(before)}
    for merge in done:  # a cluster that is not in `now` is a piece that the same step split off
        assert len({now[cluster] for cluster in merge.clusters if cluster in now}) <= 1
    assert all(len({now[cluster] for cluster in pair}) == 2 for pair in kept_apart)
    check(run)


def test_contradictions_are_refused_and_nothing_changes(run):
    marked = Marked(run)
    marked.apply(Marks.of(ROWS, must_link=[[0, 1], [1, 2]]))
    before = files(run)
    with pytest.raises(InputError, match="1 contradiction: cannot_link 0 and 2, but must_link 0 and 1, 1 and 2"):
        marked.apply(Marks.of(ROWS, cannot_link=[[0, 2]]))
    assert files(run) == before


def test_a_run_that_changed_since_it_was_opened_is_refused(run):
    one, other = Marked(run), Marked(run)
    one.apply(marks_for(one.labels))
    with pytest.raises(InputError, match="another command changed the run since it was opened"):
        other.apply(marks_for(other.labels))


def test_a_killed_commit_is_completed(run, monkeypatch):
    marked = Marked(run)
    marks = marks_for(marked.labels)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(commit, "_roll_forward", lambda folder: stop() if (folder / NEXT / LIST).exists() else None)
        with pytest.raises(KeyboardInterrupt):
            marked.apply(marks)
    assert (run / NEXT / LIST).exists()
    assert hold(Run.open(run).labels, marks)
    assert len(Marked(run).marks) == 2
    Marked(run).undo()
    assert not (run / NEXT).exists()


def test_small_clusters_that_a_run_leaves_out_can_be_joined(finished, tmp_path):
    config = model_config(load_model(PRETRAINED), {"adapt": "off", "model": {"kwargs": {"feature_dim": 16}}})
    place = tmp_path / "run"
    run_inference(
        config, model_folder=PRETRAINED, features=finished / "old.npy", out=place, keep_edges=True, min_cluster_size=20
    )
    left_out = np.flatnonzero(Run.open(place).labels < 0)
    assert len(left_out) > 1
    marked = Marked(place)
    assert (marked.labels >= 0).all()
    marked.apply(Marks.of(ROWS, must_link=[[left_out[0], row] for row in left_out[1:]]))
    labels = Run.open(place).labels
    if len(left_out) >= 20:
        assert len(set(labels[left_out])) == 1
    np.testing.assert_array_equal(Marked(place).labels, marked.labels)
    marked.undo()
    np.testing.assert_array_equal(np.flatnonzero(Run.open(place).labels < 0), left_out)


def test_the_commands(run, starfc, tmp_path):
    code, out, err = starfc("ask", run, "-n", 5, "-o", tmp_path / "q.json")
    assert starfc("ask", run, "-n", 5, "-o", tmp_path / "q.json", "-q") == (0, out, "")
    assert code == 0
    assert "one person?" in out or "no questions" in out
    written = (tmp_path / "q.json").read_text()
    questions = json.loads(written)
    total = len(questions["answers"])
    many = starfc("ask", run, "-n", 5000)[1].splitlines()[-1]
    assert "instead of 5,000: all other doubts are about clusters of these questions" in many or not total
    assert (f"to see the rows: starfc review {run} --images FOLDER" in err) == bool(total)
    for entry in questions["answers"]:
        assert "  " + " | ".join(" ".join(map(str, side)) for side in entry["shown"]) in out
    assert f"{tmp_path / 'q.json'}: {counted(total, 'question')} written" in out
    assert all(next(iter(entry.items())) == ("same", None) for entry in questions["answers"])
    assert written.count('"same": null,\n') == total
    keys = sum(map(len, questions["answers"]))
    assert len(written.splitlines()) == 7 + keys + 2 * total  # a line for each key, and two brackets
    if total:
        assert f'Set "same" to true or false in its entries, then: starfc apply {run} {tmp_path / "q.json"}' in out
        questions["answers"][0]["same"] = True
        half = tmp_path / "half.json"
        half.write_text(json.dumps(questions))
        found = Marked(run).apply(half)
        assert found.given.counts() == {"answers": 1, "must_link": 0, "cannot_link": 0, "unanswered": total - 1}
        text = applied_text(found, run)
        assert text.startswith("1 answer, 0 must-links and 0 cannot-links read")
        if total > 1:
            assert f"; {total - 1} of {total} questions unanswered\n" in text
        Marked(run).undo()
    for entry in questions["answers"]:
        entry["same"] = entry["kind"] == "split"
    labels = Run.open(run).labels
    marks = marks_for(labels)
    content = questions | {"must_link": marks.must.tolist(), "cannot_link": marks.cannot.tolist()}
    (tmp_path / "m.json").write_text(json.dumps(content))
    code, out, _ = starfc("apply", run, tmp_path / "m.json")
    assert code == 0
    assert "1 step can be undone" in out
    assert starfc("name", run, labels[0], "Ada")[0] == 0
    assert starfc("name", run)[1].split() == [str(labels[0]), "Ada"]
    names = pq.read_table(run / "clusters.parquet")["name"].to_pylist()
    assert names[0] == "Ada"
    assert None in names
    code, out, _ = starfc("undo", run, "--json")
    assert json.loads(out)["steps"] == 0
    assert starfc("name", run, labels[0])[:2] == (0, f"{labels[0]:>8}  Ada\n")
    assert json.loads((run / "names.json").read_text()) == {"names": {str(labels[0]): "Ada"}}
    other = int(labels[labels != labels[0]][0])
    code, _, err = starfc("name", run, other, "Ada")
    assert code == 0
    assert f"cluster {other}: cluster {labels[0]} has the name 'Ada', too; if they are one person" in err
    assert starfc("name", run, other, "Bob")[2] == ""
    starfc("name", run, other, "--remove")
    removed = starfc("name", run, labels[0], "--remove")
    assert removed[:2] == (0, f"cluster {labels[0]}: the name 'Ada' was removed\n")
    assert starfc("name", run, labels[0])[1] == f"cluster {labels[0]} has no name\n"
    assert json.loads((run / "names.json").read_text()) == {"names": {}}
    assert "name" not in pq.read_table(run / "clusters.parquet").column_names
    for wrong, said in (
        (("undo", run), "nothing to undo"),
        (("name", run, 10**6, "x"), "has no cluster 1000000"),
        (("name", run, 10**6), "has no cluster 1000000"),
        (("name", run, labels[0], "--remove"), "has no name to remove"),
        (("name", run, labels[0], "Ada", "--remove"), "--remove: needs CLUSTER and no NAME; found 'Ada'"),
        (("name", run, "--remove"), "--remove: needs CLUSTER and no NAME; found no CLUSTER"),
        (("apply", run, run / "run.json"), 'format: "starfc-marks" needed; found nothing'),
        (("apply", run, run / "nothing.json"), "nothing.json"),
        (("ask", tmp_path), "no finished run there"),
    ):
        code, out, err = starfc(*wrong)
        assert code == 2, wrong
        assert err.startswith("error: ")
        assert said in err, wrong
        assert len(err.strip().splitlines()) == 1


def test_apply_takes_pairs_as_options_alone_and_beside_a_file(run, starfc, tmp_path):
    labels = Run.open(run).labels
    marks = marks_for(labels)
    (same,), (different,) = marks.must.tolist(), marks.cannot.tolist()
    given = ("--same", "{},{}".format(*same), "--different", "{},{}".format(*different))
    code, out, _ = starfc("apply", run, *given)
    assert code == 0
    assert out.startswith("0 answers, 1 must-link and 1 cannot-link read")
    assert hold(Run.open(run).labels, marks)
    assert "1 step can be undone" in out
    assert starfc("undo", run)[0] == 0
    content = Marks.of(ROWS, cannot_link=[same, [0, 1]]).record(ROWS)
    (tmp_path / "m.json").write_text(json.dumps(content))
    assert starfc("apply", run, tmp_path / "m.json", *given)[0] == 0
    found = Marked(run).marks  # the pair of the option replaces the opposite one of the file
    assert found.must.tolist() == [same]
    assert found.cannot.tolist() == [[0, 1], different]
    for wrong, said in (
        ((), "MARKS: nothing to apply; give a file of marks, --same A,B or --different A,B"),
        (("--same", "3;8"), "--same: two row ids such as 3,8 needed; found '3;8'"),
        (("--different", "3,3"), "--different: cannot_link: pairs of two different rows from 0 to 199 needed"),
        (("--same", "3,8", "--different", "8,3"), "1 pair in both must_link and cannot_link (3 and 8)"),
    ):
        code, _, err = starfc("apply", run, *wrong)
        assert code == 2
        assert said in err


def test_undo_says_which_added_rows_stay_in_clusters_that_the_step_made(run, starfc):
    labels, new = Run.open(run).labels, np.load(run.parent / "new.npy")
    inside = np.flatnonzero(labels == np.bincount(labels).argmax())
    marked = Marked(run)
    ((_, made),) = marked.apply(Marks.of(ROWS, cannot_link=[[inside[0], inside[-1]]])).divided
    old = np.load(run.parent / "old.npy")[marked.labels == made]
    assign(run, np.concatenate([old + np.float32(1e-4), new[:2]]))
    stay = int(np.count_nonzero(Marked(run).labels[ROWS:] == made))
    assert stay > 0
    code, out, _ = starfc("undo", run)
    assert code == 0
    assert f"{counted(stay, 'instance')} added or moved since then: still in cluster {made}, which the step made" in out
    np.testing.assert_array_equal(Run.open(run).labels[:ROWS], labels)


def test_clustering_again_does_not_lose_marks(run, starfc, command):
    marked = Marked(run)
    marked.apply(marks_for(marked.labels))
    marked.name({0: "Anna"})
    before = files(run)
    code, _, err = starfc("cluster", run.parent / "old.npy", "-o", run, "-q")
    assert code == 2
    assert "marks or names were given to this run" in err
    for listed in (True, False):  # without files.json as well
        given = ("--features", run.parent / "old.npy", "--out", run)
        code, _, err = command("test_final.py", *given, "--cfg-options", "threads=1", "model.kwargs.feature_dim=16")
        assert code == 2
        assert err.count("\n") == 1
        assert "marks or names were given to this run; clustering again would lose them; name another folder" in err
        assert files(run) == before
        if listed:
            (run / "files.json").rename(run.parent / "files.json")
            del before["files.json"]
    (run.parent / "files.json").rename(run / "files.json")
    code, _, err = starfc("cluster", run.parent / "old.npy", "-o", run, "-q", "--overwrite", "--adapt", "off")
    assert code == 0
    assert "removed with the former run: marks.json, names.json" in err
    assert not (run / "marks.json").exists()
    assert not (run / "answers").exists()


def test_cluster_takes_marks(finished, starfc, tmp_path):
    labels = np.load(finished / "run" / "labels.npy")
    marks = marks_for(labels)
    (tmp_path / "m.json").write_text(json.dumps(marks.record(ROWS)))
    code, out, _ = starfc(
        "cluster", finished / "old.npy", "-o", tmp_path / "out", "--adapt", "off", "--marks", tmp_path / "m.json"
    )
    assert code == 0
    assert "1 step can be undone" in out
    assert hold(Run.open(tmp_path / "out").labels, marks)
    assert len(Marked(tmp_path / "out").marks) == 2
    (tmp_path / "m.json").write_text(json.dumps(marks.record(7)))
    code, _, err = starfc("cluster", finished / "old.npy", "-o", tmp_path / "other", "--marks", tmp_path / "m.json")
    assert code == 2
    assert not (tmp_path / "other").exists()
    assert "marks of a run with 7 rows" in err
    assert starfc("cluster", finished / "old.npy", "-o", "-", "--marks", tmp_path / "m.json")[0] == 2


def test_lost_measures_are_computed_again(run):
    (run / "clusters.parquet").write_bytes(b"damaged")
    Marked(run).apply(marks_for(Run.open(run).labels))
    check(run)


def test_the_estimator_takes_marks_and_asks():
    features, truth = blobs(identities=14, size=16, noise=0.9, seed=3)
    model = StarFC(adapt="off")
    plain = model.fit(features[:ROWS]).labels_
    marks = marks_for(plain)
    fitted = StarFC(adapt="off").fit(features[:ROWS], must_link=marks.must, cannot_link=marks.cannot)
    assert hold(fitted.labels_, marks)
    assert np.unique(fitted.labels_).tolist() == list(range(fitted.labels_.max() + 1))
    ends = fitted.labels_[fitted.edge_scores_.edges.rows], fitted.labels_[fitted.edge_scores_.edges.cols]
    np.testing.assert_array_equal(fitted.edge_scores_.kept, ends[0] == ends[1])
    fitted.partial_fit(features[ROWS : ROWS + 10])
    assert hold(fitted.labels_, marks)
    questions, before, labels = fitted.questions(5), fitted.estimate_, fitted.labels_.copy()
    answers = tuple(q.answer(bool(truth[q.a[0]] == truth[q.b[0]])) for q in questions)
    fitted.apply(Marks(answers=answers))
    after, marks_before = fitted.estimate_, Marks.of(len(fitted.labels_), marks.must, marks.cannot)
    evidence = evidence_of(fitted._present())
    was, now = expected(evidence, labels, marks_before), expected(evidence, fitted.labels_, fitted.marks_)
    assert after["fscore"] == pytest.approx(before["fscore"] * now.fscore / was.fscore) != before["fscore"]
    for question, answer in zip(questions, answers, strict=True):
        a, b = (np.bincount(fitted.labels_[list(side)]).argmax() for side in (question.a, question.b))
        assert (a == b) == answer.same
    assert hold(fitted.labels_, marks)
    fitted.partial_fit(features[ROWS + 10 :])
    assert hold(fitted.labels_, marks)
    with pytest.raises(InputError, match="contradiction"):
        StarFC().fit(features, must_link=[[0, 1], [1, 2]], cannot_link=[[0, 2]])


def test_copies_go_with_their_row_and_can_be_taken_apart():
    features, _ = blobs(identities=6, size=12, noise=0.5, seed=1)
    features = np.concatenate([unit(features), unit(features[:4])])
    n = len(features)
    model = StarFC(adapt="off").fit(features)
    row = 0
    other = int(np.flatnonzero((model.labels_ == model.labels_[row]) & (np.arange(n) != n - 4))[1])
    model.apply(Marks.of(n, cannot_link=[[row, other]]))
    assert model.labels_[row] == model.labels_[n - 4] != model.labels_[other]
    model.apply(Marks.of(n, cannot_link=[[row, n - 4]]))
    model.partial_fit(features[5:6] + 0.01)
    assert model.labels_[row] != model.labels_[n - 4]
    edges = model.edge_scores_.edges
    assert (model.labels_[edges.rows] == model.labels_[edges.cols])[model.edge_scores_.kept].all()


def test_an_answer_of_python_equals_one_of_the_file(run):
    marked = Marked(run)
    inside = np.flatnonzero(marked.labels == np.bincount(marked.labels).argmax())
    half = len(inside) // 2
    sides = tuple(map(int, inside[:half])), tuple(map(int, inside[half:]))
    marked.apply(Marks(answers=(Answer(*sides, False, 0.6, "split"),)))
    assert len(np.unique(marked.labels[inside])) == 2
    assert Marked(run).marks.answers == marked.marks.answers
    assert marked.labels[inside[0]] != marked.labels[inside[-1]]


def test_a_corrected_answer_counts_and_undo_brings_the_first_one_back(run):
    marked = Marked(run)
    inside = np.flatnonzero(marked.labels == np.bincount(marked.labels).argmax()).tolist()
    first = Answer(tuple(inside[:3]), tuple(inside[3:]), True, 0.6, "split")
    marked.apply(Marks(answers=(first,)))
    marked.apply(Marks(answers=(Answer(first.b, first.a, False, 0.6, "split"),)))
    assert len(np.unique(marked.labels[inside])) == 2
    assert [answer.same for answer in marked.marks.answers] == [False]
    undone = Marked(run)
    undone.undo()
    assert undone.marks.answers == (first,)
    assert Marked(run).marks.answers == (first,)
    assert len(np.unique(undone.labels[inside])) == 1


WRONG = [
    Marks(answers=(Answer((), (1,), True),)),
    Marks(answers=(Answer((-1,), (1,), True),)),
    Marks(answers=(Answer((1, 2), (2, 3), True),)),
    Marks(answers=(Answer((1,), (ROWS,), True),)),
    Marks(answers=(Answer((1.5,), (2,), True),)),
    Marks(answers=(Answer((1,), (2,), "yes"),)),
    Marks(answers=(Answer((1,), (2,), True, 1.5),)),
    Marks(answers=(Answer((1,), (2,), True, float("nan")),)),
    Marks(answers=(Answer((1,), (2,), True, 0.5, "both"),)),
    Marks(answers=(Answer((1,), (2,), True, 0.5, "join", -1),)),
    Marks(answers=((1,), (2,))),
    Marks(answers=3),
    Marks(must=np.array([[0, ROWS]])),
    [[1, 2]],
    None,
]


def test_wrong_marks_of_python_are_refused_before_anything_is_written(run):
    marked, before = Marked(run), files(run)
    model = StarFC(adapt="off").fit(np.load(run.parent / "old.npy"))
    for wrong in WRONG:
        for one in (marked, model):
            with pytest.raises(InputError, match=r"^marks: "):
                one.apply(wrong)
    assert files(run) == before
    assert not len(model.marks_)


def test_numbers_of_numpy_become_those_of_python(run):
    answer = Answer(np.array([0]), (np.int32(1), np.int64(2)), np.True_, np.float32(0.5), "join", np.int64(0))
    Marked(run).apply(Marks(answers=(answer,)))
    assert Marked(run).marks.answers == (Answer((0,), (1, 2), True),)


def test_undo_brings_the_names_of_joined_clusters_back(run):
    marked = Marked(run)
    labels, sizes = marked.labels, np.bincount(marked.labels)
    large, small, other = np.argsort(-sizes, kind="stable")[[0, 1, 2]].tolist()
    ends = [int(np.flatnonzero(labels == label)[0]) for label in (large, small, other)]
    marked.name({large: "Ada", small: "Bob"})
    applied = marked.apply(Marks.of(ROWS, must_link=[ends[:2]]))
    assert [one.name for one in applied.lost] == ["Bob"]
    assert marked.names == {large: "Ada"}
    other_run = Marked(run)
    other_run.undo()
    assert other_run.names == Marked(run).names == {large: "Ada", small: "Bob"}
    # the name of a small cluster goes to a large one without a name, and comes back
    other_run.name({large: None})
    other_run.apply(Marks.of(ROWS, must_link=[ends[:2]]))
    assert other_run.names == {large: "Bob"}
    other_run.undo()
    assert other_run.names == {small: "Bob"}
    # a name that was given after the step stays
    other_run.apply(Marks.of(ROWS, must_link=[ends[:2]]))
    other_run.name({large: "Eva", other: "Zoe"})
    other_run.undo()
    assert other_run.names == {large: "Eva", small: "Bob", other: "Zoe"}


def test_a_chain_of_must_links_leads_through_a_removed_row(run):
    labels = Run.open(run).labels
    by_size = np.argsort(-np.bincount(labels), kind="stable")
    one, gone, other = (int(np.flatnonzero(labels == label)[0]) for label in by_size[:3])
    assign(run, np.load(run.parent / "new.npy")[:1], remove=[gone])
    marked = Marked(run)
    marked.apply(Marks.of(len(marked.labels), must_link=[[one, gone], [gone, other]]))
    assert marked.labels[one] == marked.labels[other] >= 0 > marked.labels[gone]
    with pytest.raises(InputError, match="contradiction"):
        marked.apply(Marks.of(len(marked.labels), cannot_link=[[one, other]]))
    check(run)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"replaced_must": [[1]]}, "replaced_must.0"),
        ({"must_link": [[1, 2, 3]]}, "must_link.0"),
        ({"replaced_cannot": [[1, ROWS]]}, "cannot_link: pairs of two different rows from 0 to 199"),
        ({"replaced_answers": [{"a": [1], "b": [ROWS], "same": True}]}, "two sides of rows from 0 to 199"),
        ({"renamed": {"00": [None, "Ada"]}}, "keys must be cluster ids"),
        ({"renamed": {"0": [None, "\ud800"]}}, "one line of 1 to 200 characters"),
        ({"renamed": {"0": ["Ada"]}}, "renamed.0"),
    ],
)
def test_a_changed_step_ends_in_one_message(run, starfc, changed, said):
    Marked(run).apply(marks_for(Run.open(run).labels))
    record = json.loads((run / "marks.json").read_text())
    record["steps"][-1] |= changed
    (run / "marks.json").write_text(json.dumps(record))
    (run / "files.json").unlink()  # else the digest refuses the file
    code, _, err = starfc("undo", run)
    assert code == 2
    assert err.startswith("error: ")
    assert "marks.json" in err
    assert said in err


def test_ask_shows_the_files_that_a_run_knows(finished, starfc, tmp_path):
    names = [f"pictures/{row:03}.jpg" if row % 2 else "" for row in range(ROWS)]
    (tmp_path / "list.txt").write_text("\n".join(names) + "\n")
    done = starfc(
        "cluster", finished / "old.npy", "-o", tmp_path / "out", "--adapt", "off", "--files", tmp_path / "list.txt"
    )
    assert done[0] == 0
    code, out, err = starfc("ask", tmp_path / "out", "-n", 3)
    assert code == 0
    assert "to see the rows" not in err
    record = json.loads(starfc("ask", tmp_path / "out", "-n", 3, "--json")[1])
    assert record["answers"]
    for entry in record["answers"]:
        assert entry["files"] == [
            [str(tmp_path / names[row]) if names[row] else None for row in side] for side in entry["shown"]
        ]
        sides = (" ".join(f"{row:03}.jpg" if row % 2 else "-" for row in side) for side in entry["shown"])
        assert f"files: {' | '.join(sides)}\n" in out
