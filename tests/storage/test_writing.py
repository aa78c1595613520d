"""Test complete writing: changes of folders, files that may be replaced, locks, leftovers, full disks."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from helpers.paths import ROOT
from helpers.samples import blobs
from starfc.commands import app
from starfc.commands.assign import _rows
from starfc.errors import InputError
from starfc.models.checkpoint import save_model, write_checkpoint
from starfc.models.gcn import StarFCModel
from starfc.runtime.machine import set_threads
from starfc.storage import atomic, scratch
from starfc.storage.atomic import mark, replacing, save_array, sweep, temporary_folder, write_json
from starfc.storage.commit import FILES, LIST, LOCK, NEXT, REMOVE, changing, is_ours
from starfc.storage.owners import ASSIGN, CLUSTER, KNN, REPORT, TRAIN, TUNE
from starfc.storage.safe import digest
from starfc.storage.scratch import ScratchRows, allocate, create_npy, scratch_array


def files(folder: Path) -> dict:
    return json.loads((folder / FILES).read_text())["files"]


def write(folder: Path, kind=CLUSTER, value=1, names=("run.json", "labels.npy"), **more) -> None:
    with changing(folder, kind, **more) as change:
        for name in names:
            write_json(change.place / name, value)


def fail(folder: Path) -> None:
    with changing(folder, CLUSTER) as change:
        write_json(change.place / "run.json", 2)
        raise ZeroDivisionError


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def dead() -> str:
    """What temporary names of a process begin with that has ended."""
    done = subprocess.run(
        [sys.executable, "-c", "from starfc.storage.atomic import mark; print(mark())"],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture(scope="module")
def clustered(tmp_path_factory):
    """Features, their labels, and a run of them."""
    folder = tmp_path_factory.mktemp("clustered")
    features, labels = blobs(10, 20)
    np.save(folder / "x.npy", features)
    np.save(folder / "y.npy", labels)
    assert CliRunner().invoke(app, ["cluster", str(folder / "x.npy"), "-o", str(folder / "run"), "-q"]).exit_code == 0
    return folder


def refused(*arguments: object) -> str:
    """The message of a command that ends with exit code 2."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 2, done.output
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return message


class TestAChange:
    def test_lists_what_it_wrote(self, tmp_path):
        write(tmp_path)
        listed = files(tmp_path)
        assert listed.keys() == {"run.json", "labels.npy"}
        assert listed["run.json"] == {"bytes": 2, "digest": digest(tmp_path / "run.json"), "by": "cluster"}
        first = json.loads((tmp_path / FILES).read_text())
        assert (first["format"], first["command"], len(first["id"])) == (1, "cluster", 32)
        write(tmp_path)
        assert json.loads((tmp_path / FILES).read_text())["id"] != first["id"]
        assert names(tmp_path) == {"run.json", "labels.npy", FILES}

    def test_takes_the_files_of_the_run_before_away_and_no_others(self, tmp_path):
        (tmp_path / "edges").mkdir()
        (tmp_path / "edges" / "mine.txt").write_text("mine")
        edges = ("edges/cols.npy", "edges/manifest.json")
        write(tmp_path, names=("run.json", "labels.npy", *edges))
        write(tmp_path, TUNE, names=("thresholds.json",))
        assert set(files(tmp_path)) == {
            "run.json",
            "labels.npy",
            "edges/cols.npy",
            "edges/manifest.json",
            "thresholds.json",
        }
        write(tmp_path)
        assert names(tmp_path) == {"run.json", "labels.npy", "thresholds.json", "edges/mine.txt", FILES}
        assert set(files(tmp_path)) == {"run.json", "labels.npy", "thresholds.json"}

    def test_takes_no_file_away_that_was_changed_or_is_read(self, tmp_path):
        write(tmp_path, names=("run.json", "features.npy", "other.npy"))
        (tmp_path / "features.npy").write_text("edited by hand")
        write(tmp_path, names=("run.json",), inputs=[tmp_path / "other.npy"])
        assert names(tmp_path) == {"run.json", "features.npy", "other.npy", FILES}

    def test_that_fails_changes_nothing_and_leaves_nothing(self, tmp_path):
        folder = tmp_path / "new"
        with pytest.raises(ZeroDivisionError):
            fail(folder)
        assert not folder.exists()
        write(folder)
        before = (folder / FILES).read_bytes()
        with pytest.raises(ZeroDivisionError):
            fail(folder)
        assert (folder / FILES).read_bytes() == before
        assert names(folder) == {"run.json", "labels.npy", FILES}

    def test_that_was_committed_is_finished_by_the_next_that_writes(self, tmp_path):
        write(tmp_path, names=("run.json", "labels.npy", "edges/cols.npy"))
        place = tmp_path / NEXT
        write_json(place / "run.json", 2)
        with changing(tmp_path, CLUSTER):
            pass  # nothing says that it was whole
        assert (tmp_path / "run.json").read_text() == "1\n"
        write_json(place / "run.json", 2)
        write_json(place / REMOVE, ["edges/cols.npy", "gone.npy"])
        write_json(place / LIST, ["run.json", "renamed-before.npy"])
        with changing(tmp_path, CLUSTER):
            assert (tmp_path / "run.json").read_text() == "2\n"
        assert names(tmp_path) == {"run.json", "labels.npy", FILES}
        assert not (tmp_path / "edges").exists()

    @pytest.mark.parametrize(
        "name", ["../precious.txt", "/etc/precious.txt", "out/precious.txt", "a/../../precious.txt"]
    )
    @pytest.mark.parametrize("which", [LIST, REMOVE])
    def test_of_a_hostile_folder_reaches_nothing_outside(self, tmp_path, name, which):
        folder, victim = tmp_path / "hostile", tmp_path / "victim"
        (folder / NEXT / "out").mkdir(parents=True)
        victim.mkdir()
        for place in (tmp_path, victim):
            (place / "precious.txt").write_text("precious")
        (folder / "out").symlink_to(victim)
        for place in (folder / NEXT, folder / NEXT / "out", folder):
            (place / "precious.txt").write_text("evil")
        write_json(folder / NEXT / LIST, [name] if which == LIST else [])
        write_json(folder / NEXT / REMOVE, [name] if which == REMOVE else [])
        with pytest.raises(InputError), changing(folder, CLUSTER):
            pass
        assert (tmp_path / "precious.txt").read_text() == (victim / "precious.txt").read_text() == "precious"

    @pytest.mark.parametrize("link", [NEXT, LOCK, "edges"])
    def test_writes_through_no_link(self, tmp_path, link):
        folder, victim = tmp_path / "run", tmp_path / "victim"
        folder.mkdir()
        victim.mkdir()
        (victim / "cols.npy").write_text("precious")
        (folder / link).symlink_to(victim / "cols.npy" if link == LOCK else victim)
        try:
            write(folder, names=("edges/cols.npy",))
        except InputError:
            pass
        assert (victim / "cols.npy").read_text() == "precious"
        assert names(victim) == {"cols.npy"}


class TestWhatMayBeReplaced:
    def test_not_what_no_run_wrote(self, tmp_path):
        (tmp_path / "labels.npy").write_text("mine")
        with pytest.raises(InputError, match=r"labels\.npy: no earlier run of 'cluster' wrote this file"):
            write(tmp_path)
        assert (tmp_path / "labels.npy").read_text() == "mine"
        write(tmp_path, overwrite=True)
        assert (tmp_path / "labels.npy").read_text() == "1\n"

    def test_not_what_appeared_meanwhile(self, tmp_path):
        def meanwhile() -> None:
            with changing(tmp_path, CLUSTER) as change:
                write_json(change.place / "run.json", 1)
                (tmp_path / "run.json").write_text("mine")

        with pytest.raises(InputError, match="no earlier run"):
            meanwhile()
        assert (tmp_path / "run.json").read_text() == "mine"

    def test_not_what_was_changed_since(self, tmp_path):
        write(tmp_path)
        (tmp_path / "labels.npy").write_text("edited by hand")
        with pytest.raises(InputError, match="changed since 'cluster' wrote it"):
            write(tmp_path)

    def test_not_the_files_of_other_commands(self, tmp_path):
        write(tmp_path, TRAIN, names=("run.json", "Head.pth"))
        with pytest.raises(InputError, match=r"run\.json: was written by 'train'"):
            write(tmp_path)
        write(tmp_path, TUNE, names=("thresholds.json",))  # those of a training are chosen anew
        assert {name: file["by"] for name, file in files(tmp_path).items()} == {
            "run.json": "train", "Head.pth": "train", "thresholds.json": "tune",
        }  # fmt: skip
        write(tmp_path, TRAIN, names=("run.json", "Backbone.pth"))  # thresholds are of the weights that went
        assert names(tmp_path) == {"run.json", "Backbone.pth", FILES}

    def test_not_a_run_that_was_added_to(self, tmp_path):
        write(tmp_path)
        write(tmp_path, ASSIGN, names=("run.json", "labels.npy", "state/ids.npy"))
        with pytest.raises(InputError, match="would lose its cluster ids"):
            write(tmp_path)
        write(tmp_path, overwrite=True)
        assert names(tmp_path) == {"run.json", "labels.npy", FILES}

    def test_never_an_input(self, tmp_path):
        write(tmp_path)
        (tmp_path / "link.npy").symlink_to(tmp_path / "labels.npy")
        for source in ("labels.npy", "link.npy"):
            for overwrite in (False, True):
                with pytest.raises(InputError, match="this command reads the file"):
                    write(tmp_path, inputs=[tmp_path / source], overwrite=overwrite)
        assert (tmp_path / "labels.npy").read_text() == "1\n"

    def test_no_folder(self, tmp_path):
        (tmp_path / "labels.npy").mkdir()
        with pytest.raises(InputError, match="is a folder, but a file must be written there"):
            write(tmp_path, overwrite=True)

    def test_runs_of_earlier_versions_are_known_by_their_records(self, tmp_path):
        for folder, kind, record, others in (
            ("run", CLUSTER, ("run.json", {"num_clusters": 3, "thresholds": {}}), ["labels.npy", "edges/cols.npy"]),
            ("knn", KNN, ("manifest.json", {"fingerprint": "a", "num_nodes": 3, "k": 2}), ["ids.npy"]),
            ("train", TRAIN, ("run.json", {"config": {}}), ["Head.pth"]),
            ("tune", TUNE, ("thresholds.json", {"chosen_on": "x"}), ["threshold_surface.csv"]),
        ):
            folder = tmp_path / folder
            write_json(folder / record[0], record[1])
            for name in (*others, "mine.txt"):
                save_array(folder / name, np.zeros(3)) if name.endswith(".npy") else write_json(folder / name, 0)
            write(folder, kind, names=(record[0],))
            kept = set() if kind.drops else set(others)
            assert names(folder) == {record[0], "mine.txt", FILES} | kept
        write_json(tmp_path / "added" / "run.json", {"num_clusters": 3, "thresholds": {}, "steps": []})
        with pytest.raises(InputError, match="cluster ids"):
            write(tmp_path / "added")
        write_json(tmp_path / "foreign" / "run.json", {"hello": 1})
        with pytest.raises(InputError, match="no earlier run"):
            write(tmp_path / "foreign")

    @pytest.mark.long
    def test_on_the_command_line(self, clustered, tmp_path):
        x, y, run = clustered / "x.npy", clustered / "y.npy", clustered / "run"
        mine = tmp_path / "labels.npy"
        mine.write_bytes(x.read_bytes())
        assert "this command reads the file" in refused("cluster", mine, "-o", tmp_path)
        mine.write_bytes(y.read_bytes())
        assert "this command reads the file" in refused("cluster", x, "--labels", mine, "-o", tmp_path)
        (tmp_path / "mine.npz").write_bytes(b"PK")
        assert "not a kNN graph" in refused("knn", x, "-o", tmp_path / "mine.npz")
        assert "is the file to read" in refused("convert", mine, mine)
        assert "belongs to the results of starfc cluster" in refused("convert", x, run / "labels.npy")
        write_json(tmp_path / "thresholds.json", {"fixed": 1})
        assert "no earlier run of starfc tune" in refused("tune", x, y, "-o", tmp_path)
        assert "is not empty and holds no report" in refused("report", run, "-o", run)
        assert "labels.npy: no earlier run of starfc cluster" in refused("cluster", x, "-o", tmp_path)

    @pytest.mark.long
    def test_a_run_over_itself_and_from_stdin(self, clustered, tmp_path):
        again = ["cluster", "-", "-o", str(tmp_path / "run"), "-q"]
        for _ in range(2):
            done = CliRunner().invoke(app, again, input=(clustered / "x.npy").read_bytes())
            assert done.exit_code == 0, done.output
        assert files(tmp_path / "run")["features.npy"]["by"] == "cluster"
        own = str(tmp_path / "run" / "features.npy")  # an input now, which stays
        assert CliRunner().invoke(app, ["cluster", own, "-o", str(tmp_path / "run"), "-q"]).exit_code == 0
        assert Path(own).read_bytes() == (clustered / "x.npy").read_bytes()
        assert "features.npy" in files(tmp_path / "run")


class TestWhoWrites:
    def test_a_second_one_is_told_of_the_first(self, tmp_path):
        with changing(tmp_path, CLUSTER), pytest.raises(InputError) as refusal:
            write(tmp_path)
        assert f"process {os.getpid()} ('cluster', since " in str(refusal.value)
        assert "wait until it has ended" in str(refusal.value)
        write(tmp_path)

    def test_a_lock_of_the_dead_is_taken_over(self, tmp_path):
        (tmp_path / LOCK).write_text('{"pid": 1, "started": "", "command": "starfc knn", "host": ""}')
        write(tmp_path)
        assert not (tmp_path / LOCK).exists()


class TestLeftovers:
    def test_only_those_of_the_dead_on_this_machine_go(self, tmp_path):
        gone, host = dead(), mark().split("-")[1]
        other = gone.replace(host, "0" * 8)
        reused = f"starfc-{host}-{os.getpid()}-1-"  # this process's number, and another one's start
        for begin in (gone, other, mark(), reused):
            (tmp_path / f".{begin}3.tmp.npy").write_text("part")
        (tmp_path / f"{gone}abc").mkdir()
        (tmp_path / f"{gone}abc" / "features.npy").write_text("part")
        (tmp_path / "starfc-notes.txt").write_text("mine")
        sweep(tmp_path)
        assert names(tmp_path) == {f".{other}3.tmp.npy", f".{mark()}3.tmp.npy", "starfc-notes.txt"}

    def test_the_next_write_sweeps(self, tmp_path, monkeypatch):
        gone = dead()
        (tmp_path / f".{gone}3.tmp.npy").write_text("part")
        save_array(tmp_path / "a.npy", np.zeros(2))
        assert names(tmp_path) == {"a.npy"}
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        (tmp_path / f"{gone}abc").mkdir()
        with temporary_folder() as folder:
            assert folder.parent == tmp_path
            assert folder.name.startswith(mark())
            assert list(tmp_path.glob("starfc-*")) == [folder]
        assert names(tmp_path) == {"a.npy"}


class TestWhatCannotBeWritten:
    def test_is_one_message(self, tmp_path):
        (tmp_path / "folder.npy").mkdir()
        with pytest.raises(InputError, match=r"folder\.npy: cannot be written \(it is a folder\)"):
            save_array(tmp_path / "folder.npy", np.zeros(2))
        with pytest.raises(InputError, match=r"cannot be written \(File name too long\); use a shorter name"):
            save_array(tmp_path / f"{'n' * 300}.npy", np.zeros(2))
        (tmp_path / "file").write_text("mine")
        with pytest.raises(InputError, match="cannot be written"):
            save_array(tmp_path / "file" / "a.npy", np.zeros(2))
        with pytest.raises(InputError, match="cannot be created"):
            write(tmp_path / "file" / "run")
        save_array(tmp_path / f"{'n' * 250}.npy", np.zeros(2))  # the longest that is a name: temporary names are short
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.npy", f"{'n' * 250}.npy"]

    def test_a_full_disk(self, tmp_path, monkeypatch):
        path = tmp_path / "a.npy"
        save_array(path, np.zeros(2))

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(atomic.os, "fsync", full)
        with pytest.raises(
            InputError, match=r"a\.npy: cannot be written \(No space left on device\); free space there"
        ):
            save_array(path, np.ones(2))
        assert np.load(path).tolist() == [0, 0]
        assert names(tmp_path) == {"a.npy"}

    def test_other_errors_of_the_block_are_left_as_they_are(self, tmp_path):
        with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.npy"):
            (tmp_path.parent / "none" / "x").read_text()

    def test_scratch_files_have_their_room_first(self, tmp_path, monkeypatch):
        array = scratch_array((100, 8), np.float32, tmp_path)
        array[:] = 1
        assert array.sum() == 800
        assert scratch_array((0, 8), np.float32, tmp_path).shape == (0, 8)
        create_npy(tmp_path / "a.npy", (5, 2), np.float16)
        assert np.load(tmp_path / "a.npy").tolist() == np.zeros((5, 2)).tolist()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
            for attempt in (
                lambda: scratch_array((1000, 8), np.float32, tmp_path),
                lambda: ScratchRows(8, np.float32, tmp_path).__setitem__(slice(0, 1000), np.zeros((1000, 8))),
                lambda: create_npy(tmp_path / "b.npy", (1000, 8), np.float32),
                lambda: save_array(tmp_path / "c.npy", np.zeros(1000)),
            ):
                with pytest.raises(InputError, match=r"cannot be written \(.*\); "):
                    attempt()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

        def unsupported(*_):
            raise OSError(errno.EOPNOTSUPP, "not supported")

        monkeypatch.setattr(scratch.os, "posix_fallocate", unsupported)
        with (tmp_path / "filled").open("w+b") as file:
            allocate(file.fileno(), 10_000)
        assert (tmp_path / "filled").read_bytes() == bytes(10_000)

    @pytest.mark.long
    @pytest.mark.parametrize("command", ["cluster", "knn", "convert", "report", "tune"])
    def test_a_limit_of_file_sizes_on_the_command_line(self, clustered, tmp_path, tmp_path_factory, command):
        x, name = clustered / "x.npy", "out.npy" if command == "convert" else "out"

        def arguments(out):
            return {
                "cluster": ["cluster", x, "-o", out],
                "knn": ["knn", x, "-o", out],
                "convert": ["convert", x, out],
                "report": ["report", clustered / "run", "-o", out],
                "tune": ["tune", x, clustered / "y.npy", "-o", out],
            }[command]

        warm = arguments(tmp_path_factory.mktemp("compiled") / name)  # compiled code is kept in files, too
        assert CliRunner().invoke(app, [*map(str, warm)]).exit_code == 0
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, before[1]))
            message = refused(*arguments(tmp_path / name))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "cannot be written (" in message
        assert str(tmp_path) in message or "a scratch file in " in message
        assert not any(tmp_path.iterdir())


def test_equal_weights_are_equal_bytes(tmp_path):
    model = StarFCModel(8, 16, generator=torch.Generator().manual_seed(0))
    for folder in ("a", "b"):
        save_model(model, tmp_path / folder)
        write_checkpoint(tmp_path / folder / f"{folder}.pt", model, {"position": 1})
    for a, b in (("Head.pth", "Head.pth"), ("Backbone.pth", "Backbone.pth"), ("a.pt", "b.pt")):
        assert (tmp_path / "a" / a).read_bytes() == (tmp_path / "b" / b).read_bytes()


def test_threads_are_at_most_the_cores(caplog):
    before, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    try:
        assert set_threads(100_000) == cores == torch.get_num_threads()
        assert f"100000 requested, but there are {cores} cores" in caplog.text
    finally:
        set_threads(before)


def test_a_long_list_of_rows_is_no_name(tmp_path):
    assert _rows(",".join(map(str, range(100, 170)))).tolist() == list(range(100, 170))
    for text in ("x" * 5000, "1,2,x", str(10**30), "a\0b"):
        with pytest.raises(InputError, match="--remove: needs row ids such as 3,17,20") as refusal:
            _rows(text)
        assert len(str(refusal.value)) < 200


@pytest.mark.long
def test_names_that_are_no_text(clustered, tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger("starfc"), "propagate", False)  # a report of pytest must be text
    place = Path(os.fsdecode(bytes(tmp_path) + b"/d_\xe4"))
    place.mkdir()
    (place / "x.npy").write_bytes((clustered / "x.npy").read_bytes())
    for arguments in (
        ["cluster", place / "x.npy", "-o", place / "run"],
        ["report", place / "run", "-o", place / "page"],
        ["convert", place / "x.npy", place / "x.parquet"],
        ["convert", place / "run" / "labels.npy", place / "y.csv"],
    ):
        done = CliRunner().invoke(app, [*map(str, arguments)])
        assert done.exit_code == 0, done.output
        assert "d_" in done.output  # its bytes as they are
    record = json.loads((place / "run" / "run.json").read_text())
    assert record["features"] == str(place / "x.npy")
    assert {"labels.npy", "labels.meta", "clusters.parquet", "run.json"} <= names(place / "run")


def test_a_file_of_a_run_is_known(clustered, tmp_path):
    assert is_ours(clustered / "run" / "labels.npy") == "cluster"
    assert is_ours(clustered / "x.npy") is None
    assert REPORT.drops == ("report",)
