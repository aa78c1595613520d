"""Test what is kept of questions in a run's folder: the same ones with it and without it, and never stale."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import starfc
from helpers.samples import blobs
from helpers.serving import ROWS, make_run
from starfc.answers.marks import Marks
from starfc.config.recipes import model_config
from starfc.models.checkpoint import PRETRAINED
from starfc.runs import asked
from starfc.runs.apply import Marked
from starfc.runs.assign import assign
from starfc.runs.cluster import run_inference
from starfc.storage.commit import locked

FEATURES = {"adapt": "off", "threads": 1, "model": {"kwargs": {"feature_dim": 16}}}
FILES = ["indptr.npy", "cols.npy", "scores.npy", "divisions.npz", "manifest.json", "files.json"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of 200 instances that was asked once, and new instances beside it."""
    place = tmp_path_factory.mktemp("asked")
    run = make_run(place)
    np.save(place / "new.npy", blobs(identities=14, size=16, noise=0.9, seed=3)[0][ROWS:])
    assert not (run / "asked").exists()
    assert Marked(run).questions(20)
    assert sorted(path.name for path in (run / "asked").iterdir()) == sorted(FILES)
    return place


@pytest.fixture
def scored(monkeypatch) -> list[int]:
    """A list that grows with each call that scores the candidate edges."""
    calls = []

    def counted(state, *rest):
        calls.append(len(state.labels))
        return evidence_of(state, *rest)

    evidence_of = asked.evidence_of
    monkeypatch.setattr(asked, "evidence_of", counted)
    return calls


def fresh(run: Path) -> list[dict]:
    """The questions without what is kept."""
    copy = run.parent / "fresh"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("asked"))
    found = [question.record() for question in Marked(copy).questions(20)]
    shutil.rmtree(copy)
    return found


def ask(run: Path) -> list[dict]:
    return [question.record() for question in Marked(run).questions(20)]


def apart(labels: np.ndarray) -> Marks:
    """A cannot-link in the largest cluster."""
    rows = np.flatnonzero(labels == np.bincount(labels[labels >= 0]).argmax())
    return Marks.of(len(labels), cannot_link=[[rows[0], rows[-1]]])


def test_the_second_call_scores_nothing_and_asks_the_same(run, scored):
    listed = (run / "files.json").read_bytes()
    assert ask(run) == ask(run)
    assert scored == []
    assert fresh(run) == ask(run)
    assert len(scored) == 1
    assert (run / "files.json").read_bytes() == listed  # a run that is held open elsewhere has not changed


def test_after_marks_the_questions_are_those_of_the_new_clusters(run, scored):
    marked = Marked(run)
    kept = asked._manifest(marked._at)
    marked.apply(apart(marked.labels))
    found = ask(run)
    assert scored == []
    assert found == fresh(run)
    assert asked._manifest(Marked(run)._at).labels != kept.labels  # the measures of the new clusters
    assert ask(run) == found
    Marked(run).undo()
    assert ask(run) == fresh(run)
    question = Marked(run).questions(1)[0]  # an answer that changes no cluster changes the questions, too
    Marked(run).apply(Marks(answers=(question.answer(question.kind == "split"),)))
    assert ask(run) == fresh(run)


def test_a_held_run_keeps_only_what_belongs_to_its_clusters(run, scored):
    marked = Marked(run)
    marked.questions(5)
    marked.apply(apart(marked.labels))
    marked.questions(5)  # measures of clusters that did not change are those from before here
    assert ask(run) == fresh(run)


def test_new_rows_another_version_and_other_weights_are_scored_again(run, scored, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(starfc, "__version__", "0.0.1")
        assert ask(run) == fresh(run)
    assert len(scored) == 2
    with monkeypatch.context() as patch:
        patch.setattr(asked, "digest", lambda path, follow: "other")
        ask(run)
    assert len(scored) == 3
    assign(run, np.load(run.parent / "new.npy")[:6], remove=[3])
    scored.clear()
    assert ask(run) == fresh(run) == ask(run)
    assert scored == [ROWS + 6] * 2
    marked = Marked(run)
    marked.apply(apart(marked.labels))
    scored.clear()
    assert ask(run) == fresh(run)
    assert len(scored) == 1


def test_a_run_that_changed_meanwhile_keeps_nothing(run, scored):
    shutil.rmtree(run / "asked")
    marked = Marked(run)
    assign(run, np.load(run.parent / "new.npy")[:2])
    asked.keep(marked.run, marked._at, asked.asker_of(Marked(run).run, Marked(run)._at, marked.labels), marked.labels)
    assert not (run / "asked").exists()


def test_clustering_again_removes_what_was_kept(run):
    (run / "asked" / "note.txt").write_text("of the user")
    features, config = run.parent / "features.npy", model_config(PRETRAINED, FEATURES)
    run_inference(config, features=features, out=run)
    assert [path.name for path in (run / "asked").iterdir()] == ["note.txt"]
    assert not (run / "edges").exists()
    (run / "asked" / "note.txt").replace(run / "note.txt")
    (run / "asked").rmdir()
    (run / "asked").symlink_to(run)
    run_inference(config, features=features, out=run)
    assert (run / "asked").is_symlink()


@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_and_mended(run, scored, name):
    before, path = ask(run), run / "asked" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert ask(run) == before == ask(run)
    assert len(scored) == 1  # the second call finds it mended
    path.unlink()
    assert ask(run) == before == ask(run)
    assert len(scored) <= 2  # without files.json, the other files are used as they are


def test_damage_that_no_digest_shows_is_found(run):
    marked, place = Marked(run), run / "asked"
    (place / "files.json").unlink()
    key = asked._key(marked.run, marked._at)

    def read():
        return asked._read(marked.run, marked._at, key, marked.labels)

    arrays = {name: np.load(place / f"{name}.npy") for name in ("indptr", "cols", "scores")}
    divided = dict(np.load(place / "divisions.npz"))
    assert read() is not None
    for name, wrong in [
        ("cols", arrays["cols"] + 1),
        ("cols", np.roll(arrays["cols"], 1)),
        ("indptr", arrays["indptr"] + 1),
        ("indptr", arrays["indptr"][:-1]),
        ("scores", arrays["scores"] + 1),
        ("scores", arrays["scores"][:-1]),
        ("scores", np.where(np.arange(len(arrays["scores"])) == 0, 0.5, arrays["scores"]).astype(np.float32)),
    ]:
        np.save(place / f"{name}.npy", wrong)
        assert read() is None, name
        np.save(place / f"{name}.npy", arrays[name])
    for name, wrong in [
        ("rows", divided["rows"] - ROWS),
        ("sizes", divided["sizes"][::-1] * 2),
        ("counts", divided["counts"] - 1),
        ("masks", np.ones_like(divided["masks"])),
        ("masks", divided["masks"][:-1]),
        ("measures", divided["measures"] * np.nan),
        ("measures", divided["measures"][:, 1:]),
    ]:
        np.savez(place / "divisions.npz", **{**divided, name: wrong})
        assert read() is None, name
    np.savez(place / "divisions.npz", **divided)
    assert read() is not None


def test_questions_are_asked_where_nothing_can_be_kept(run, scored):
    before = ask(run)
    shutil.rmtree(run / "asked")
    (run / "asked").write_text("a file of the user")
    assert ask(run) == before
    assert (run / "asked").read_text() == "a file of the user"
    (run / "asked").unlink()
    (run / "elsewhere").mkdir()
    (run / "asked").symlink_to(run / "elsewhere")
    assert ask(run) == before
    assert not [*(run / "elsewhere").iterdir()]
    (run / "asked").unlink()
    (run / "asked").mkdir()
    with locked(run / "asked", "ask"):
        assert ask(run) == before
    assert len(scored) == 3
