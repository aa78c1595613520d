"""Test results that are uploaded to a URL."""

from __future__ import annotations

import json
from fnmatch import fnmatch

import fsspec
import numpy as np
import pytest

from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.graph.opening import Search, graph_name
from starfc.storage.owners import GRAPHS
from starfc.storage.remote import Upload, is_same, is_within


@pytest.fixture
def fs():
    system = fsspec.filesystem("memory")
    yield system
    if system.exists("/results"):
        system.rm("/results", recursive=True)


def results(folder, **files):
    """A folder of results with these files, and their list."""
    folder.mkdir()
    listed = {name: {"bytes": len(content), "digest": None} for name, content in files.items() if "knn/" not in name}
    record = {"format": 1, "id": "0", "command": "cluster", "files": listed}
    for name, content in (files | {"files.json": json.dumps(record)}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / ".lock").write_text("")
    return folder


def test_the_list_of_files_comes_last(fs, tmp_path, monkeypatch):
    written = []
    put = type(fs).put_file
    monkeypatch.setattr(type(fs), "put_file", lambda self, one, other: (written.append(other), put(self, one, other)))
    folder = results(tmp_path / "one", **{"a.txt": "1", "edges/b.txt": "2"})
    Upload("memory://results", overwrite=False).send(folder)
    assert written == ["/results/a.txt", "/results/edges/b.txt", "/results/files.json"]
    assert fs.cat_file("/results/edges/b.txt") == b"2"


def test_results_are_replaced_only_if_the_user_says_so(fs, tmp_path):
    Upload("memory://results", overwrite=False).send(results(tmp_path / "one", **{"a.txt": "1", "edges/b.txt": "2"}))
    fs.pipe_file("/results/mine.txt", b"mine")
    with pytest.raises(InputError, match="memory://results: a new or empty folder needed for the results; found files"):
        Upload("memory://results", overwrite=False)
    Upload("memory://results", overwrite=True).send(results(tmp_path / "two", **{"a.txt": "3"}))
    assert sorted(fs.find("/results")) == ["/results/a.txt", "/results/files.json", "/results/mine.txt"]
    assert fs.cat_file("/results/a.txt") == b"3"


def test_an_upload_that_is_cut_short_has_no_list(fs, tmp_path, monkeypatch):
    Upload("memory://results", overwrite=False).send(results(tmp_path / "one", **{"a.txt": "1", "b.txt": "2"}))

    def put(self, one, other):
        if other.endswith("b.txt"):
            raise OSError("no network")

    monkeypatch.setattr(type(fs), "put_file", put)
    with pytest.raises(InputError, match=r"the results cannot be written there \(no network\)"):
        Upload("memory://results", overwrite=True).send(tmp_path / "one")
    assert not fs.exists("/results/files.json")


GRAPH = "knn/0123456789ab_exact_k_80"


def test_other_runs_below_the_url_stay(fs, tmp_path):
    run = results(tmp_path / "one", **{"labels.npy": "1", f"{GRAPH}/ids.npy": "1", f"{GRAPH}/files.json": "{}"})
    for place in ("results/exp/one", "results/edges/two", "results/knn/three"):
        Upload(f"memory://{place}", overwrite=False).send(run)
    before = fs.find("/results")
    Upload("memory://results", overwrite=True).send(results(tmp_path / "two", **{"labels.npy": "2"}))
    assert set(fs.find("/results")) == {*before, "/results/labels.npy", "/results/files.json"}


@pytest.mark.parametrize("left", [None, b"{", b'{"files": {}}', b"\xff", b"[" * 100_000])
def test_files_of_a_run_without_a_list_are_removed(fs, tmp_path, left):
    """An upload that was cut short has no list, or somebody damaged it."""
    names = ("edges/scores.npy", f"{GRAPH}/ids.npy", f"{GRAPH}/files.json", "state/step-1.npz", "answers/step-2.npz")
    Upload("memory://results", overwrite=False).send(results(tmp_path / "one", **dict.fromkeys(names, "1")))
    kept = ["/results/edges/mine.npy", "/results/knn/mine/ids.npy", "/results/mine.txt"]
    for name in kept:
        fs.pipe_file(name, b"mine")
    fs.rm_file("/results/files.json")
    if left is not None:
        fs.pipe_file("/results/files.json", left)
    Upload("memory://results", overwrite=True).send(results(tmp_path / "two", **{"labels.npy": "2"}))
    assert sorted(fs.find("/results")) == sorted([*kept, "/results/files.json", "/results/labels.npy"])


def test_names_of_graphs():
    assert fnmatch(graph_name(Features(np.eye(4, dtype=np.float32), "x"), 3, Search()), GRAPHS)
    assert fnmatch(GRAPH, f"knn/{GRAPHS}")


def test_an_input_at_the_url_is_refused(fs, tmp_path):
    fs.pipe_file("/results/feat/features.npy", b"mine")
    for name in ("memory://results/feat", "memory://results/feat/features.npy", "memory:///results/feat/"):
        with pytest.raises(
            InputError, match=f"{name}: this command reads it, and the results in memory://results/feat"
        ):
            Upload("memory://results/feat", overwrite=True, inputs=[name])
    Upload("memory://results/feature", overwrite=True, inputs=["memory://results/feat"])
    Upload("memory://results/feat/run", overwrite=True, inputs=["memory://results/feat"])
    assert fs.cat_file("/results/feat/features.npy") == b"mine"


def test_a_path_and_a_url_of_one_place(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert is_within("ff", f"file://{tmp_path}/ff")
    assert is_within("link/ff/x.npy", f"file://{tmp_path}/ff/")
    assert is_within("ff", "file:///")
    assert is_same("link/ff", f"file://{tmp_path}/ff/")
    assert not is_same("link/ff/x.npy", f"file://{tmp_path}/ff/")
    assert not is_within("ff2", f"file://{tmp_path}/ff")
    assert not is_within("ff", f"memory://{tmp_path}/ff")


def test_a_url_that_cannot_be_written_to_is_found_at_the_start(fs, tmp_path, monkeypatch):
    Upload("memory://results", overwrite=False)
    assert fs.find("/results") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run: cannot be written to \(.*\); name another URL"):
        Upload(f"file://{tmp_path}/file/run", overwrite=True)

    def refuse(*_):
        raise PermissionError("Access denied")

    monkeypatch.setattr(type(fs), "pipe_file", refuse)
    with pytest.raises(InputError, match=r"memory://results: cannot be written to \(Access denied\); name another"):
        Upload("memory://results", overwrite=False)
