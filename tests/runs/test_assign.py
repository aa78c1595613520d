"""Test adding to the folder of a run and removing from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from helpers.paths import ROOT
from helpers.samples import same_partition, unit
from helpers.steps import clustering, state_of
from starfc.clustering.components import components
from starfc.clustering.refinement import node_intimacy
from starfc.commands import app
from starfc.config.config import load_config
from starfc.data.dataset import Features
from starfc.errors import InputError, MissingFileError
from starfc.models.checkpoint import save_model
from starfc.review.measures import COLUMNS, instance_columns
from starfc.runs import assign as folder_module
from starfc.runs.assign import assign
from starfc.runs.cluster import run_inference
from starfc.runs.folder import Run
from starfc.runs.state import read_state
from starfc.storage.commit import NEXT, changing
from starfc.storage.owners import ASSIGN


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of 200 instances in ``run``, 24 more and their labels beside it."""
    place = tmp_path_factory.mktemp("assign")
    features, labels, _, _, _ = clustering("structural")
    np.save(place / "old.npy", features[:200])
    np.save(place / "new.npy", features[200:].astype(np.float64))
    np.save(place / "labels.npy", labels)
    config = load_config(
        ROOT / "configs" / "cfg_gcn_structural_ms1m.py",
        {"invalid_rows": "singleton", "model.kwargs.feature_dim": 16},
    )
    run_inference(config, tau1=0.8, tau2=0.7, features=place / "old.npy", out=place / "run", keep_edges=True)
    return place


@pytest.mark.long
def test_a_folder_after_two_steps_is_whole(run):
    new = np.load(run.parent / "new.npy")
    new[5] = np.nan
    before = Run.open(run)
    first = assign(run, new[:10].astype(np.float32))
    (run.parent / "old.npy").unlink()  # it is no longer needed
    shutil.rmtree(run / "knn")
    second = assign(run, new[10:], remove=[1, 205], labels=run.parent / "labels.npy")
    after = Run.open(run)
    assert len(after.labels) == len(after.features()) == 224
    stay = np.setdiff1d(np.arange(200), [1])
    np.testing.assert_array_equal(after.labels[stay], before.labels[stay])
    np.testing.assert_array_equal(after.labels[210:], second.labels)
    assert after.labels[1] == after.labels[205] == -1
    assert first.labels[5] in first.created  # the row of NaN is on its own
    assert (run / "labels.meta").read_text().split() == list(map(str, after.labels.tolist()))
    assert [step["added"] for step in after.record["steps"]] == [10, 14]
    assert after.record["metrics"]["pairwise"]["fscore"] > 0.5
    history = json.loads((run / "assign.json").read_text())
    assert [step["removed"] for step in history] == [[], [1, 205]]
    np.testing.assert_allclose(after.features().rows(slice(210, 224)), unit(new[10:]), atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("small", [1, 30])
def test_measures_after_steps_are_those_of_everything_measured_anew(tmp_path, small):
    features, _, _, _, _ = clustering("structural")
    features[[150, 205]] = features[[10, 40]]  # duplicates: many cuts are equal
    np.save(tmp_path / "old.npy", features[:190])
    config = load_config(ROOT / "configs" / "cfg_gcn_structural_ms1m.py", {"model.kwargs.feature_dim": 16})
    run_inference(
        config,
        tau1=0.6,
        tau2=0.75,
        features=tmp_path / "old.npy",
        out=tmp_path,
        keep_edges=True,
        min_cluster_size=small,
    )
    splits, merges, bridges = 0, 0, set()
    steps = [((190, 200), [], False), ((200, 204), [3, 30, 31, 77], False), ((204, 204), [60, 191], False)]
    steps += [((204, 204), [], True), ((204, 212), [], False), ((212, 216), [*range(100, 180, 4)], False)]
    steps += [((216, 216), [], small == 1), ((216, 224), [5], True)]
    for at, (rows, remove, apply) in enumerate(steps):
        if at == 6 and small > 1:
            (tmp_path / "state" / "sims.npy").unlink()  # the state is made anew, and with it ids of small clusters
        assigned = assign(tmp_path, features[slice(*rows)], remove=remove, apply_merges=apply)
        splits, merges = splits + len(assigned.splits), merges + len(assigned.merges)
        found = pq.read_table(tmp_path / "clusters.parquet")
        expected = instance_columns(Run.open(tmp_path).parsed, np.load(tmp_path / "state" / "clusters.npy"))
        for name in COLUMNS:
            assert found[name].to_pylist() == expected[name].to_pylist(), (at, name)
        bridges |= {bridge for bridge in found["weakest_bridge_a"].to_pylist() if bridge is not None}
    assert splits > 0
    assert merges > 0
    assert len(bridges) > 5


@pytest.mark.long
def test_a_run_with_rows_without_direction_is_added_to(tmp_path):
    features, _, _, _, _ = clustering("structural")
    features[[3, 70]] = np.nan
    np.save(tmp_path / "old.npy", features[:200].astype(np.float16))
    config = load_config(
        ROOT / "configs" / "cfg_gcn_structural_ms1m.py",
        {"invalid_rows": "singleton", "model.kwargs.feature_dim": 16},
    )
    run_inference(config, tau1=0.8, tau2=0.7, features=tmp_path / "old.npy", out=tmp_path / "run", keep_edges=True)
    before = Run.open(tmp_path / "run").labels
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    (tmp_path / "other" / "edges" / "logits.npy").unlink()  # of a run that kept none: they are computed where needed
    (tmp_path / "other" / "files.json").unlink()
    for folder in ("run", "other"):
        assign(tmp_path / folder, 1e6 * features[200:])  # above what float16 holds; its direction is kept
        after = Run.open(tmp_path / folder)
        np.testing.assert_array_equal(after.labels[:200], before)
        alive, ids = (
            np.load(tmp_path / folder / "state" / "alive.npy"),
            np.load(tmp_path / folder / "state" / "ids.npy"),
        )
        assert np.flatnonzero(~alive).tolist() == [3, 70]
        assert not np.isin(ids, [3, 70]).any()
        assert (ids[[3, 70]] == -1).all()
        assert (after.parsed.edges.cols >= 200).any()
        np.testing.assert_array_equal(after.parsed.intimacy, node_intimacy(after.parsed.edges))


def test_steps_in_the_folder_are_those_in_memory(run):
    features, _, model, k, taus = clustering("structural")
    state = state_of(features, 200, model, k, taus)
    for stop, remove in ((212, [7]), (224, [])):
        state.step(Features(features[:stop]), remove=remove)
        assign(run, features[len(Run.open(run).labels) : stop], remove=remove)
    there = Run.open(run)
    np.testing.assert_array_equal(there.labels, state.labels)
    np.testing.assert_array_equal(there.parsed.edges.cols, state.parsed.edges.cols)
    np.testing.assert_array_equal(there.parsed.kept, state.clustered.kept)
    assert 0 < len(state.across) < state.parsed.kept.sum()
    edges = there.parsed.edges.select(there.parsed.kept)
    assert (there.labels[edges.rows] == there.labels[edges.cols]).all()
    merged = assign(run, apply_merges=True).merges
    assert sum(2 * merge.edges for merge in merged) == len(state.across)
    there, stay = Run.open(run), state.labels >= 0
    assert same_partition(there.labels[stay], components(there.parsed.edges.select(there.parsed.kept))[stay])


@pytest.mark.long
def test_lists_kept_as_steps_are_those_written_whole(run, monkeypatch):
    new, whole = np.load(run.parent / "new.npy"), run.parent / "written-whole"
    shutil.copytree(run, whole)
    for folder, share in ((whole, np.inf), (run, 0)):
        monkeypatch.setattr(folder_module, "_SHARE", share)
        for rows, remove in ((slice(0, 8), []), (slice(8, 9), [3, 201]), (slice(9, 9), [11]), (slice(9, None), [])):
            assign(folder, new[rows], remove=remove)
    assert sorted(path.name for path in (run / "state").glob("step-*")) == [f"step-{at}.npz" for at in (2, 3, 4)]
    assert not list((whole / "state").glob("step-*"))
    one, other = (read_state(Run.open(folder))[0].lists.grown(np.ones(2, bool)) for folder in (run, whole))
    for name in ("ids", "sims", "alive", "codes", "known"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(Run.open(run).labels, Run.open(whole).labels)
    monkeypatch.setattr(folder_module, "_STEPS", 4)
    left = []
    for row in range(4):
        assign(run, new[row : row + 1])
        left.append(len(list((run / "state").glob("step-*"))))
    assert left == [4, 0, 1, 2]
    monkeypatch.setattr(folder_module, "_SHARE", np.inf)
    assign(run, new[:1])
    assert not list((run / "state").glob("step-*"))


def test_a_state_of_format_1_is_read(run, caplog):
    caplog.set_level("INFO", logger="starfc")
    new, old = np.load(run.parent / "new.npy"), run.parent / "format-1"
    assign(run, new[:8])
    shutil.copytree(run, old)
    np.save(old / "state" / "scale.npy", np.full(5, 7, np.float32))  # it had none; another program's is of other rows
    manifest = json.loads((old / "state" / "manifest.json").read_text())
    assert manifest.pop("steps") == []
    (old / "state" / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    (old / "files.json").unlink()  # there was none then
    for folder in (run, old):
        assign(folder, new[8:])
    assert "anew" not in caplog.text
    np.testing.assert_array_equal(Run.open(run).labels, Run.open(old).labels)


@pytest.mark.long
def test_lost_parts_of_the_state_are_made_anew(run, caplog):
    caplog.set_level("INFO", logger="starfc")
    shutil.rmtree(run / "knn")
    new = np.load(run.parent / "new.npy")
    assign(run, new[:10], remove=[4])
    assert "it is built again" in caplog.text
    whole = run.parent / "whole"
    shutil.copytree(run, whole)
    (run / "state" / "sims.npy").write_bytes(b"")
    assert "it is computed again" not in caplog.text
    for folder in (run, whole):
        assign(folder, new[10:])
    assert "it is computed again" in caplog.text
    np.testing.assert_array_equal(Run.open(run).labels, Run.open(whole).labels)


@pytest.mark.long
@pytest.mark.parametrize("how", ["empty", "cut short", "flipped", "gone"])
@pytest.mark.parametrize("name", ["step-2.npz", "scale.npy", "ids.npy", "alive.npy"])
def test_damaged_parts_of_the_state_are_made_anew(run, caplog, monkeypatch, name, how):
    caplog.set_level("INFO", logger="starfc")
    monkeypatch.setattr(folder_module, "_SHARE", 0)
    new, whole = np.load(run.parent / "new.npy"), run.parent / "whole"
    for rows in (slice(0, 8), slice(8, 12)):
        assign(run, new[rows])
    shutil.copytree(run, whole)
    damaged = run / "state" / name
    held = damaged.read_bytes()
    half = len(held) // 2
    damaged.unlink()
    if how != "gone":
        kept = {"empty": b"", "cut short": held[:half], "flipped": bytes([255 ^ held[0]]) + held[1:]}
        damaged.write_bytes(kept[how])
    for folder in (run, whole):
        assign(folder, new[12:])
    assert ("it is computed again" in caplog.text) == (name != "scale.npy")
    np.testing.assert_array_equal(Run.open(run).labels, Run.open(whole).labels)


def test_a_step_that_fails_anywhere_leaves_the_run_as_it_was(run, monkeypatch):
    new = np.load(run.parent / "new.npy")
    with pytest.raises(InputError, match=r"\(m, 16\)"):
        assign(run, new[:, :8])
    with pytest.raises(InputError, match="labels"):
        assign(run, new, labels=np.zeros(3, int))
    with pytest.raises(MissingFileError):
        assign(run.parent / "none", new)
    assert not (run / NEXT).exists()
    assert "steps" not in Run.open(run).record
    (run / "edges" / "manifest.json").unlink()
    with pytest.raises(MissingFileError, match=r"is missing, but files\.json lists it"):
        assign(run, new)
    (run / "files.json").unlink()
    with pytest.raises(MissingFileError, match="stored no edges"):
        assign(run, new)


KILLED = """
import itertools, json, os, shutil, signal, sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from starfc.runs import assign as folder_module
from starfc.runs.assign import assign
from starfc.runs.folder import Run
from starfc.runs.state import read_state
from starfc.storage.commit import NEXT, changing
from starfc.storage.owners import ASSIGN

base, new = Path(sys.argv[1]), np.load(sys.argv[2])
folder_module._SHARE = 0
for row in range(8):  # the first makes the state, and everything is compiled then
    assign(base, new[row : row + 1], remove=[2 * row])
old = Run.open(base).labels.copy()
folder_module._SHARE = float(sys.argv[3])  # the steps so far are kept beside the lists, or these written anew

def on(name, *rows):
    for some in rows:
        assign(base.with_name(name), new[some])
    run = Run.open(base.with_name(name))
    return run.labels.copy(), read_state(run)[0].lists.grown(np.zeros(0, bool)).ids

shutil.copytree(base, base.with_name("done"))
wanted, _ = on("done", slice(8, 16))
after, lists = on("done", slice(16, None))
outcomes, stale = [], 0
for at in range(1000):
    folder = base.with_name(f"killed{at}")
    shutil.copytree(base, folder)
    pid = os.fork()
    if pid == 0:
        calls = itertools.count()  # from two threads
        def dying(step):
            def call(*arguments, **options):
                if next(calls) == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(*arguments, **options)
            return call
        os.replace, np.save, shutil.rmtree = dying(os.replace), dying(np.save), dying(shutil.rmtree)
        np.savez, os.unlink = dying(np.savez), dying(os.unlink)
        assign(folder, new[8:16])
        os._exit(7)
    code = os.waitpid(pid, 0)[1]
    with changing(folder, ASSIGN):
        pass  # finishes what was committed
    found = Run.open(folder)
    assert len(found.features()) == len(found.labels) == found.record["num_instances"]
    outcomes.append(len(found.labels) == len(wanted))
    assert (found.labels == (wanted if outcomes[-1] else old)).all()
    named = json.loads((folder / "state" / "manifest.json").read_text())["steps"]
    stale += {path.name for path in (folder / "state").glob("step-*")} > set(named)
    if at % 3 == 0 or outcomes[-1]:
        labels, ids = on(folder.name, *([] if outcomes[-1] else [slice(8, 16)]), slice(16, None))
        assert (labels == after).all() and (ids == lists).all()
        files, expected = (len(list((place / "state").glob("step-*"))) for place in (folder, base.with_name("done")))
        assert files == expected
    shutil.rmtree(folder)
    if os.WIFEXITED(code):
        assert os.WEXITSTATUS(code) == 7
        break
assert outcomes == sorted(outcomes) and False in outcomes and len(outcomes) > 25, outcomes
assert stale == 0, stale
"""


@pytest.mark.long
@pytest.mark.parametrize("share", ["0", pytest.param("inf", marks=pytest.mark.slow)])
def test_a_kill_at_any_write_leaves_the_old_run_or_the_new_one(run, share):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(run), str(run.parent / "new.npy"), share],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_writers_at_once_are_one_too_many(run):
    with changing(run, ASSIGN), pytest.raises(InputError, match=rf"process {os.getpid()} \('assign', since .*"):
        assign(run, np.load(run.parent / "new.npy"))


def test_small_clusters_left_out_have_ids_all_the_same(run):
    record = json.loads((run / "run.json").read_text())
    labels = np.load(run / "labels.npy")
    small = np.bincount(labels)[labels] < 20
    assert small.any()
    np.save(run / "labels.npy", np.where(small, -1, labels))
    (run / "run.json").write_text(json.dumps({**record, "min_cluster_size": 20}))
    (run / "files.json").unlink()
    assign(run, np.load(run.parent / "new.npy"))
    after, clusters = Run.open(run), np.load(run / "state" / "clusters.npy")
    assert (clusters >= 0).all()
    sizes = np.bincount(clusters)
    np.testing.assert_array_equal(after.labels, np.where(sizes[clusters] < 20, -1, clusters))
    np.testing.assert_array_equal(after.labels[:200][~small], labels[~small])


def test_a_run_that_calls_exact_search_faiss_is_added_to(run, caplog):
    record = json.loads((run / "run.json").read_text())
    record["config"]["knn_method"] = "faiss"
    (run / "run.json").write_text(json.dumps(record))
    (run / "files.json").unlink()
    (graph,) = (run / "knn").glob("*_exact_k_*")
    graph.rename(graph.with_name(graph.name.replace("exact", "faiss")))
    assign(run, np.load(run.parent / "new.npy"))
    assert "it is built again" not in caplog.text
    assert json.loads((run / "run.json").read_text())["config"]["knn_method"] == "exact"


@pytest.mark.long
def test_a_published_model_is_added_to_as_well(tmp_path):
    features, _, model, _, _ = clustering("gcn")
    save_model(model, tmp_path / "model")
    np.save(tmp_path / "old.npy", features[:200])
    config = load_config(
        ROOT / "configs" / "cfg_gcn_ms1m.py",
        {"knn": 20, "tau1": 0.6, "tau2": 0.6, "model.kwargs.feature_dim": 16, "model.kwargs.nhid": 32},
    )
    run_inference(
        config, features=tmp_path / "old.npy", model_folder=tmp_path / "model", out=tmp_path / "run", keep_edges=True
    )
    assign(tmp_path / "run", features[200:])
    run = Run.open(tmp_path / "run")
    assert len(run.labels) == 224
    np.testing.assert_array_equal(run.parsed.intimacy, node_intimacy(run.parsed.edges))


def test_the_command_adds_and_removes(run, capsys):
    pytest.importorskip("typer")
    from starfc.commands.assign import assign as command

    (run.parent / "gone.txt").write_text("3\n4\n")
    command(run, run.parent / "new.npy", remove=str(run.parent / "gone.txt"), labels=run.parent / "labels.npy")
    assert "24 instances added from row 200" in capsys.readouterr().out
    command(run, remove="7, 9", as_json=True, quiet=True)
    assert json.loads(capsys.readouterr().out)["removed"] == [7, 9]
    assert np.flatnonzero(Run.open(run).labels < 0).tolist() == [3, 4, 7, 9]
    with pytest.raises(InputError, match="--remove"):
        command(run, remove="seven")


def test_explain_and_report_after_adding_removing_and_merging(run, tmp_path):
    assign(run, apply_merges=True, remove=[0, 5])
    there = Run.open(run)
    assert there.removed == [0, 5]
    rows = np.flatnonzero(there.labels == np.bincount(there.labels[there.labels >= 0]).argmax())[:2]
    done = CliRunner().invoke(app, ["explain", str(run), *map(str, rows)])
    assert done.exit_code == 0, done.stderr
    assert f"both in cluster {there.labels[rows[0]]}" in done.stdout
    done = CliRunner().invoke(app, ["explain", str(run), "0", "1"])
    assert done.exit_code == 2
    assert "row 0: was removed" in done.stderr
    done = CliRunner().invoke(app, ["report", str(run), "-o", str(tmp_path / "page"), "--json"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["instances"] == len(there.labels) - 2
    assert found["clusters"] == len(np.unique(there.labels[there.labels >= 0]))
