"""Kill commands that write, and fill their disk: a small part of ``python -m tests.kills``."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from typer.testing import CliRunner

from helpers.paths import ROOT
from starfc.commands import app
from starfc.config.config import LogConfig
from starfc.errors import InputError
from starfc.storage.commit import LIST, LOCK, NEXT
from starfc.training.journal import Journal


@pytest.mark.long
@pytest.mark.parametrize(
    ("kills", "only"),
    [
        ("8", ["knn", "convert"]),
        pytest.param("48", ["cluster", "report", "assign", "tune", "train"], marks=pytest.mark.slow),
    ],
)
def test_a_kill_leaves_the_old_result_or_the_new_one(kills, only):
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", "--kills", kills, "--rows", "240", "--only", *only],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "mixed 0  lost 0  left 0" in done.stdout.splitlines()[-1]


@pytest.mark.long
def test_a_killed_search_whose_graph_is_there_leaves_nothing(tmp_path):
    """The graph was committed and the process killed: the next run reads it, and finishes and clears what was left."""
    np.save(tmp_path / "x.npy", np.repeat(np.eye(8, dtype=np.float32), 5, axis=0) + np.float32(0.01))
    arguments = ["cluster", str(tmp_path / "x.npy"), "-o", str(tmp_path / "run"), "--adapt", "off", "-q"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    (graph,) = (tmp_path / "run" / "knn").iterdir()
    before = {path.name: path.read_bytes() for path in graph.iterdir()}
    for renamed in ([], ["ids.npy"], sorted(before)):
        waiting, partial = graph / NEXT, graph.with_name(f"{graph.name}.partial")
        waiting.mkdir()
        partial.mkdir()
        (partial / "search.json").write_text("{}")
        (graph / LOCK).write_text("")
        (waiting / LIST).write_text(json.dumps(sorted(before)))
        for name in set(before) - set(renamed):
            (graph / name).rename(waiting / name)
        assert CliRunner().invoke(app, arguments).exit_code == 0
        assert {path.name: path.read_bytes() for path in graph.iterdir()} == before
        assert [path.name for path in (tmp_path / "run" / "knn").iterdir()] == [graph.name]
    kept = {path: path.stat().st_mtime_ns for path in (graph, *graph.iterdir())}
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (graph, *graph.iterdir())} == kept


@contextmanager
def full():
    """Meanwhile no file may grow. It ends within the test: a file that pytest reports to has to grow again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    def log() -> None:
        with Journal(tmp_path, LogConfig(hooks=[])) as journal, full():
            journal.write("train", 1, {"loss": 0.5})

    with pytest.raises(InputError, match=r"metrics\.jsonl: cannot be written"):
        log()


@pytest.mark.long
def test_weights_that_cannot_be_copied_are_named_where_they_go(tmp_path, monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("starfc.runs.tune.shutil.copyfileobj", no_room)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 6)
    np.save(tmp_path / "x.npy", rng.normal(size=(12, 16))[labels] + 0.3 * rng.normal(size=(72, 16)))
    np.save(tmp_path / "y.npy", labels)
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["tune", str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), "-o", str(out), "-q"])
    assert done.exit_code == 2
    assert f"error: {out}" in done.stderr
    assert "Contextual.pth: cannot be written (No space left on device); free space there" in done.stderr
    assert not out.exists()
