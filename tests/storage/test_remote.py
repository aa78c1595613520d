"""Test results that are uploaded to a URL."""

from __future__ import annotations

import json

import fsspec
import pytest

from starfc.errors import InputError
from starfc.storage.remote import Upload


@pytest.fixture
def fs():
    system = fsspec.filesystem("memory")
    yield system
    if system.exists("/results"):
        system.rm("/results", recursive=True)


def results(folder, **files):
    """A folder of results with these files, and their list."""
    folder.mkdir()
    for name, content in (files | {"files.json": json.dumps({"files": dict.fromkeys(files)})}).items():
        (folder / name).parent.mkdir(exist_ok=True)
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
