"""Test runs on shards: lists, edges and labels are those of the run in memory, whatever dies or is damaged."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from helpers.paths import ROOT
from helpers.s3 import s3_server
from helpers.shards import cluster_command, killed_and_continued
from starfc.clustering.arrays import Settings, cluster_features
from starfc.config.config import load_config
from starfc.data.dataset import Features
from starfc.data.synthetic import Population, Synthetic, sample
from starfc.errors import InputError
from starfc.graph import approximate
from starfc.graph.knn import build_knn
from starfc.graph.opening import Search
from starfc.models.checkpoint import PRETRAINED, load_model
from starfc.models.gcn import StarFCModel
from starfc.models.judge import first_round_judge
from starfc.runs.cluster import run_inference
from starfc.runs.on_shards import ShardOptions
from starfc.runs.on_shards import on_shards as run_on_shards
from starfc.shards import store as store_module
from starfc.shards.driver import Shards
from starfc.shards.engine import LocalEngine, engine_of
from starfc.shards.run import ShardRun
from starfc.shards.status import status_of, status_text
from starfc.shards.store import DamagedError, Store
from starfc.shards.tasks import run_task
from starfc.storage.commit import locked

EXACT = Search("exact", judge=first_round_judge)
CHOSEN = Search("ivf", judge=first_round_judge)
GIVEN = Search("ivf", {"nprobe": 3, "partitions": 2, "sweeps": 2}, judge=first_round_judge)


@pytest.fixture(scope="module")
def rows():
    return sample(3000, seed=4, dim=32)[0]


@pytest.fixture(scope="module")
def expected(rows):
    return in_memory(rows)


def settings(search=EXACT):
    return Settings(partition="infomap", search=search)


def in_memory(rows, search=EXACT, model=None):
    return cluster_features(Features(rows, "x"), model or load_model(PRETRAINED), settings(search), keep_edges=True)


def on_shards(rows, store, engine=None, search=EXACT, shard_rows=1024, model=None, keep_edges=True):
    shards = Shards(store, engine or LocalEngine(0), model or load_model(PRETRAINED), search, shard_rows)
    how = {"make_graph": shards.graph, "make_parser": shards.parser}
    return cluster_features(Features(rows, "x"), shards.model, settings(search), keep_edges=keep_edges, **how)


def assert_same(found, expected):
    every = np.arange(len(expected.prepared.features))
    ours, theirs = found.prepared.graph, expected.prepared.graph
    np.testing.assert_array_equal(ours.ids[every], theirs.ids)
    np.testing.assert_array_equal(ours.sims[every], theirs.sims)
    assert {key: ours.info[key] for key in theirs.info} == theirs.info
    ours, theirs = found.result.parsed, expected.result.parsed
    np.testing.assert_array_equal(ours.logits, theirs.logits)
    for name in ("indptr", "cols", "scores"):
        np.testing.assert_array_equal(getattr(ours.edges, name), getattr(theirs.edges, name))
    for name, array in theirs.context.arrays().items():
        np.testing.assert_array_equal(ours.context.arrays()[name], array)
    assert_same_result(found, expected)


def assert_same_result(found, expected):
    ours, theirs = found.result, expected.result
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    np.testing.assert_array_equal(ours.confidence, theirs.confidence)
    for name in ("estimate", "rounds", "choice", "reached"):
        assert getattr(ours, name) == getattr(theirs, name)
    for name in ("candidates", "parsed", "refined"):
        assert getattr(ours.summary, name) == getattr(theirs.summary, name)
    for name in ("cluster_edges", "cluster_scores"):
        np.testing.assert_array_equal(getattr(ours.summary, name), getattr(theirs.summary, name))


def some_slow(first, *others):
    return [first, *(pytest.param(other, marks=pytest.mark.slow) for other in others)]


@pytest.mark.long
@pytest.mark.parametrize("shard_rows", some_slow(1024, 128, 4096))
def test_exact_lists_give_the_labels_of_the_run_in_memory(tmp_path, rows, expected, shard_rows):
    assert_same(on_shards(rows, Store(str(tmp_path)), shard_rows=shard_rows), expected)


def test_dynamic_thresholds(tmp_path, rows):
    given = Features(rows[:500], "x"), load_model(PRETRAINED), Settings(0.5, 0.7, "dynamic")
    shards = Shards(Store(str(tmp_path)), LocalEngine(0), given[1], EXACT, 256)
    found = cluster_features(*given, keep_edges=True, make_graph=shards.graph, make_parser=shards.parser)
    assert_same(found, cluster_features(*given, keep_edges=True))


@pytest.mark.slow
def test_samples_join_and_take_apart_as_in_memory(tmp_path, monkeypatch):
    for name, value in (
        ("adaptation.MANY", 1000),
        ("reach.MANY", 1000),
        ("reach.LARGEST", 700),
        ("samples.SCATTERED", 10),
        ("samples.SCATTER", 1),
    ):
        monkeypatch.setattr(f"starfc.clustering.{name}", value)
    monkeypatch.setattr("starfc.clustering.samples._AT_ONCE", 100)
    parameters = Synthetic(mean_size=300, size_sigma=0.6, max_size=1000, modes=4, noise_weight=1.2)
    rows = Population(4000, parameters, 5, 64).rows(0, 4000)[0].astype(np.float32)
    expected = in_memory(rows)
    assert expected.result.reached.apart > 0
    assert len(expected.result.rounds) > 2, "rounds of adaptation are kept, in a part of the set"
    store = Store(str(tmp_path))
    for keep_edges in (False, True):
        found = on_shards(rows, store, keep_edges=keep_edges)
        assert_same_result(found, expected)
    assert_same(found, expected)


@pytest.mark.long
@pytest.mark.parametrize("products", some_slow(torch.bfloat16, torch.float32))
def test_lists_of_larger_sets_are_equal_too(tmp_path, monkeypatch, products):
    """In both number types of products; some rows are searched again in float32, others on shards than in memory."""
    rows = sample(3000, seed=4, dim=256)[0]
    monkeypatch.setattr("starfc.graph.exact.MOST_KEPT", 1)  # then few rows are certain, and shards search others again
    for name in ("starfc.graph.exact", "starfc.shards.search"):
        monkeypatch.setattr(f"{name}.SMALL", 0)
    for name in ("starfc.graph.exact", "starfc.shards.driver"):
        monkeypatch.setattr(f"{name}.product_dtype", lambda: products)
    ours = Shards(Store(str(tmp_path)), LocalEngine(0), load_model(PRETRAINED), EXACT, 512).graph(Features(rows), 40)
    theirs = build_knn(Features(rows), 40)
    np.testing.assert_array_equal(ours.ids[np.arange(len(rows))], theirs.ids)
    np.testing.assert_array_equal(ours.sims[np.arange(len(rows))], theirs.sims)


@pytest.mark.slow
@pytest.mark.parametrize("search", [CHOSEN, GIVEN], ids=["chosen", "given"])
def test_approximate_lists_give_the_labels_of_the_run_in_memory(tmp_path, rows, monkeypatch, search):
    monkeypatch.setattr(approximate, "_CHUNKS", (500, 1 << 18))  # six chunks
    monkeypatch.setattr("starfc.graph.knn._FEW", 0)
    expected = in_memory(rows, search)
    assert expected.prepared.graph.info["backend"] == "ivf"
    assert_same(on_shards(rows, Store(str(tmp_path)), search=search), expected)


@pytest.mark.slow
def test_copies_invalid_rows_and_strangers_that_tie(tmp_path):
    rows, rng = np.repeat(np.eye(300, dtype=np.float32), 2, axis=0), np.random.default_rng(0)
    rows[::2] += 0.1 * rng.normal(size=(300, 300)).astype(np.float32)
    rows = np.concatenate([rows, rows[:40], np.zeros((2, 300), np.float32)])
    given = Settings(partition="infomap", invalid_rows="singleton")
    model = load_model(PRETRAINED)
    expected = cluster_features(Features(rows, "x"), model, given, keep_edges=True)
    shards = Shards(Store(str(tmp_path)), LocalEngine(0), model, given.search, 128)
    how = {"make_graph": shards.graph, "make_parser": shards.parser}
    assert_same(cluster_features(Features(rows, "x"), model, given, keep_edges=True, **how), expected)


@pytest.mark.long
@pytest.mark.parametrize("name", ["local", "ray"])
def test_every_engine_gives_the_same(tmp_path, rows, expected, name, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # a cluster that was not asked for
    if name == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    published = load_model(ROOT / "pretrained_model" / "glyph")
    other = Features(sample(700, seed=4, dim=256)[0]), published, Settings(0.7, 0.7, "dynamic", k=20)
    with engine_of(name, 2, None) as engine:  # without the edges in this process
        assert_same_result(on_shards(rows, Store(str(tmp_path / "store")), engine, keep_edges=False), expected)
        shards = Shards(Store(str(tmp_path / "other")), engine, published, EXACT, 256)
        found = cluster_features(*other, make_graph=shards.graph, make_parser=shards.parser)
    assert_same_result(found, cluster_features(*other))


STAGES = ("exact", "second-0", "near", "smooth", "first", "codes", "edges-0", "forest-0", "modules-0", "second-1")


@pytest.mark.slow
@pytest.mark.parametrize("stage", some_slow(*STAGES))
def test_a_damaged_array_is_made_again(tmp_path, rows, expected, stage):
    """Whatever was made of it before is kept; what still needs it finds the damage."""
    store = Store(str(tmp_path))
    on_shards(rows, store)
    order = ("exact", "near", "smooth", "first", "codes", "second-0", "edges-0", "forest-0", "modules-0", "second-1")
    assert store.finished(stage)
    for later in order[order.index(stage) + 1 :]:
        store.remove_stage(later)
    for path in sorted(tmp_path.glob(f"{stage}/00000.*.npy")):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))
    again = Store(str(tmp_path))
    assert_same(on_shards(rows, again), expected)


@pytest.mark.slow
@pytest.mark.parametrize("stage", some_slow("rows", "first-given"))
def test_a_damaged_array_of_the_driver_is_named_and_made_again(tmp_path, rows, expected, stage):
    store = Store(str(tmp_path))
    on_shards(rows, store)
    store.remove_stage("first")
    path = tmp_path / stage / ("00000.names.npy" if stage == "rows" else "00000.0-shift.npy")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    if stage == "rows":
        with pytest.raises(InputError, match=r"rows/00000: .* differs from its digest; start the same command again"):
            on_shards(rows, Store(str(tmp_path)))
    assert_same(on_shards(rows, Store(str(tmp_path))), expected)


@pytest.mark.slow
def test_a_store_that_fails_one_write_in_ten(rows, expected, monkeypatch):
    class Flaky(MemoryFileSystem):
        protocol = "flaky"
        count = 0

        def pipe_file(self, path, value, **more):
            type(self).count += 1
            if type(self).count % 10 == 0:
                raise OSError("try again")
            super().pipe_file(path, value, **more)

    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(store_module, "_PAUSE", 0)
    store = Store("flaky://run")
    assert_same(on_shards(rows, store), expected)
    assert Flaky.count > 50
    store.remove()
    assert store.stages() == []


@pytest.mark.slow
def test_a_run_on_s3(rows, expected):
    with s3_server():
        store = Store("s3://bucket/run")
        assert_same(on_shards(rows, store), expected)
        store.remove()


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    some_slow(
        "first", "rows", "exact", "smooth", "second-0", "edges-0", "forest-0", "modules-0", "joined-0", "within-2"
    ),
)
def test_a_killed_driver_continues(tmp_path, rows, expected, stage):
    np.testing.assert_array_equal(killed_and_continued(tmp_path, rows, stage), expected.result.labels)


@pytest.mark.slow
def test_a_killed_worker_is_replaced(tmp_path, rows, expected):
    np.save(tmp_path / "x.npy", rows)
    driver = subprocess.Popen(
        cluster_command(tmp_path, "--engine", "local", "--workers", "1"), stderr=subprocess.PIPE, text=True
    )
    while not list((tmp_path / "store" / "exact").glob("*.json")):
        time.sleep(0.005)
    children = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()
    workers = [child for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
    assert workers
    for worker in workers:
        os.kill(int(worker), signal.SIGKILL)
    _, messages = driver.communicate()
    assert driver.returncode == 0, messages
    assert "its worker died; it starts again" in messages
    np.testing.assert_array_equal(np.load(tmp_path / "run" / "labels.npy"), expected.result.labels)


@pytest.mark.slow
def test_tasks_that_others_run(tmp_path, rows, expected):
    np.save(tmp_path / "x.npy", rows)
    driver = subprocess.Popen(cluster_command(tmp_path, "--engine", "wait", "-q"))
    while driver.poll() is None:
        with contextlib.suppress(FileNotFoundError):  # as long as no stage waits
            asked = json.loads((tmp_path / "store" / "waiting.json").read_text())["content"]
            run = ShardRun.open(Store(str(tmp_path / "store")))
            for index in set(range(asked["tasks"])) - run.store.finished(asked["stage"]):
                run_task(run, asked["stage"], index)
        time.sleep(0.05)
    assert driver.returncode == 0
    assert not (tmp_path / "store" / "waiting.json").exists()
    np.testing.assert_array_equal(np.load(tmp_path / "run" / "labels.npy"), expected.result.labels)
    text = status_text(status_of(Store(str(tmp_path / "store"))))
    assert "3,000 rows in shards of 512" in text
    assert "6/6" in text


@pytest.mark.parametrize("how", ["float64", "long", "fortran"])
def test_rows_that_kernels_do_not_read_as_they_are(tmp_path, how):
    rows = sample(600, seed=4, dim=32)[0].astype(np.float64 if how == "float64" else np.float32)
    if how == "float64":
        rows *= 1 + 1e-9 * np.random.default_rng(0).normal(size=rows.shape)
    elif how == "long":
        rows[::3] *= np.float32(1e20)
    else:
        rows = np.asfortranarray(rows)
    assert_same(on_shards(rows, Store(str(tmp_path)), shard_rows=128), in_memory(rows))


def test_what_cannot_run_on_shards(tmp_path):
    rows = sample(600, seed=4, dim=32)[0].astype(np.float32)
    store = Store(str(tmp_path / "store"))
    with pytest.raises(InputError, match="engine: needs a model that was loaded from a folder; found one in memory"):
        on_shards(rows, store, model=StarFCModel(16, 32))
    on_shards(rows, store)
    with pytest.raises(InputError, match=r"holds a run with other shard_rows \(1024 instead of 256\)"):
        on_shards(rows, store, shard_rows=256)
    manifest = store.read_json("manifest.json")
    for name, message in (("version", "a run of starfc 0.0; this is"), ("processor", "use machines of one kind")):
        store.write_json("manifest.json", manifest | {name: "0.0"})
        with pytest.raises(InputError, match=message):
            ShardRun.open(store)
    with pytest.raises(InputError, match="no run on shards found"):
        ShardRun.open(Store(str(tmp_path / "none")))
    with pytest.raises(InputError, match="cannot be opened as a store"):
        Store("nowhere://x")
    with pytest.raises(InputError, match="shard_rows: a multiple of 128 needed; found 1,000"):
        ShardOptions(shard_rows=1000)
    with pytest.raises(InputError, match="address: needs engine ray; found local"):
        ShardOptions(address="auto")
    with pytest.raises(InputError, match="workers: at least 1 needed; found 0"):
        ShardOptions(workers=0)
    for given in ({"engine": "wait"}, {"engine": "ray", "address": "auto"}):
        with pytest.raises(InputError, match="store: name a folder or URL that all machines see"):
            ShardOptions(**given)
    for out in ("s3://bucket", "s3://bucket/"):
        with pytest.raises(InputError, match=f"store: name a URL; the results at {out} leave no place beside them"):
            ShardOptions(out)
    assert ShardOptions("s3://bucket/x").url == "s3://bucket/x.shards"


def test_a_model_that_cannot_run_on_shards_is_refused_before_a_folder_is_made(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"engine: works with models .* found a model of type 'hierarchical'"):
        run_inference(
            load_config(ROOT / "configs/cfg_gcn_ms1m_hierarchical.py"), out=out, shards=ShardOptions(str(out))
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "store", "message"),
    [
        ("memory://a/b", "memory://a", "memory://a: store must not be, or contain, the folder of the results"),
        ("memory://a/b", "memory://a/b", "memory://a/b: store must not be, or contain, the folder of the results"),
        ("file:///tmp/a", "/tmp", "/tmp: store must not be, or contain, the folder of the results"),
        ("memory://a", "/proc/x", r"/proc/x: cannot be written \(No such file or directory\)"),
    ],
)
def test_stores_that_are_refused_before_any_work(tmp_path, out, store, message):
    options = ShardOptions(out, store=store)
    model = load_model(PRETRAINED)
    with pytest.raises(InputError, match=message), run_on_shards(options, model, EXACT, tmp_path, 1, keep_graph=False):
        pass


def test_tasks_that_do_not_exist(tmp_path):
    store = Store(str(tmp_path))
    on_shards(sample(600, seed=4, dim=32)[0].astype(np.float32), store)
    run = ShardRun.open(store)
    with pytest.raises(InputError, match=r"stage: one of exact, cells, .* found 'third'"):
        run_task(run, "third", 0)
    for stage in ("exact-0", "second", "near-1", "cells-0-0"):
        with pytest.raises(InputError, match="stage: one of"):
            run_task(run, stage, 0)
    with pytest.raises(InputError, match="task: a number from 0 to 0 needed; found 1"):
        run_task(run, "near", 1)
    with pytest.raises(InputError, match="the stage 'sweep-7' has not begun"):
        run_task(run, "sweep-7", 0)
    store.forget("near", 0)
    with pytest.raises(DamagedError, match="near/00000"):
        store.load("near", 0, "starts")


@pytest.mark.slow
def test_a_store_of_other_weights_is_refused(tmp_path, rows):
    """Also if the folder of the weights is the same."""
    folder = tmp_path / "weights"
    shutil.copytree(PRETRAINED, folder)
    store = Store(str(tmp_path / "store"))
    on_shards(rows[:500], store, model=load_model(folder))
    other = load_model(folder)
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    with pytest.raises(InputError, match="holds a run with other weights"):
        on_shards(rows[:500], store, model=other)


def test_the_result_of_a_task_that_was_asked_something_else_does_not_count(tmp_path):
    store = Store(str(tmp_path))
    on_shards(sample(600, seed=4, dim=32)[0].astype(np.float32), store)
    run = ShardRun.open(store)
    assert run.finished("first") == {0}
    old = run.asked("first")
    run.ask("first", old | {"more": 1})
    store.save("first", 0, {"array": np.arange(3)}, input="of before")
    assert store.finished("first") == {0}
    assert ShardRun.open(store).finished("first") == set()


def test_files_of_others_are_neither_used_nor_removed(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "photo.jpg").write_text("mine")
    store = Store(str(tmp_path / "store"))
    with pytest.raises(InputError, match="a new or empty folder needed for the shards; found other files there"):
        on_shards(sample(600, seed=4, dim=32)[0].astype(np.float32), store)
    store.remove()
    assert (tmp_path / "store" / "photo.jpg").read_text() == "mine"


class Lossy(LocalEngine):
    """An engine whose worker dies in one task, always."""

    def submit(self, run, stage, index, needs):
        if (stage, index) == ("smooth", 1):
            lost = Future()
            lost.set_exception(BrokenProcessPool("killed"))
            return lost
        return super().submit(run, stage, index, needs)


def test_a_task_that_kills_its_worker_ends_the_run(tmp_path, rows):
    with pytest.raises(InputError, match="smooth/00001: its worker died 4 times; most often the memory is too small"):
        on_shards(rows[:700], Store(str(tmp_path)), Lossy(0), shard_rows=256)


def test_two_commands_do_not_share_a_store(tmp_path, rows):
    np.save(tmp_path / "x.npy", rows[:300])
    (tmp_path / "store").mkdir()
    with locked(tmp_path / "store", "cluster"):
        done = subprocess.run(
            cluster_command(tmp_path, "--engine", "local", "--workers", "1"), capture_output=True, text=True
        )
    assert done.returncode == 2
    assert "is writing to this folder" in done.stderr


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("x.npy", "a folder needed for the shards; found a file"),
        ("run", "--store must not be, or contain, the folder of the results"),
        ("s3://bucket/x", "cannot be read"),
    ],
)
def test_stores_that_cannot_be_used(tmp_path, monkeypatch, rows, store, message):
    if store.startswith("s3"):
        pytest.importorskip("s3fs", reason="s3fs is not installed")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    np.save(tmp_path / "x.npy", rows[:100])
    command = cluster_command(tmp_path, "--engine", "local")
    command[command.index("--store") + 1] = store if "://" in store else str(tmp_path / store)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.slow
def test_workers_end_with_a_killed_command(tmp_path, rows):
    np.save(tmp_path / "x.npy", rows)
    driver = subprocess.Popen(cluster_command(tmp_path, "--engine", "local", "--workers", "2", "-q"))
    while not list((tmp_path / "store" / "exact").glob("*.json")):
        time.sleep(0.005)
    children = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()
    workers = [child for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
    assert len(workers) == 2
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 20
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
