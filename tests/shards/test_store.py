"""Test the store of a run on shards: its local copies, open arrays, and errors of the disk."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from helpers.s3 import s3_server
from starfc.data.parts import gather
from starfc.errors import InputError
from starfc.shards import store as store_module
from starfc.shards.run import ShardRun
from starfc.shards.scores import width_of
from starfc.shards.store import Store
from starfc.storage.remote import Upload


def test_the_local_folder_stays_within_its_size(tmp_path):
    store = Store("memory://bounded", tmp_path, cache_bytes=5000)
    arrays = [np.full(250, at, np.int64) for at in range(4)]
    for at, array in enumerate(arrays):
        store.save("stage", at, {"array": array})
    for _ in range(2):
        for at, array in enumerate(arrays):
            store._close("stage", at)
            np.testing.assert_array_equal(store.load("stage", at), array)
            assert sum(path.stat().st_size for path in tmp_path.glob("*/*.npy")) <= 5000
    copy = next(iter(tmp_path.glob("*/*.npy")))
    copy.write_bytes(b"damaged")
    for at, array in enumerate(arrays):
        store._close("stage", at)
        np.testing.assert_array_equal(store.load("stage", at), array)


def test_few_arrays_stay_open(tmp_path, monkeypatch):
    """Large arrays are mapped, and the number of mappings is bounded; small ones are read, up to a size in all."""
    monkeypatch.setattr(store_module, "_SMALL", 2000)
    monkeypatch.setattr(store_module, "_MAPPED", 3)
    monkeypatch.setattr(store_module, "_HELD", 5000)
    store = Store(str(tmp_path))
    for at in range(12):
        store.save("stage", at, {"array": np.full(500 if at % 2 else 200, at, np.int64)})
    for at in (*range(12), *range(12)):
        array = store.load("stage", at)
        assert (array == at).all()
        mapped = [isinstance(known, np.memmap) for known in store._open.values()]
        assert sum(mapped) <= 3
        assert mapped.count(False) <= 3
        assert isinstance(array, np.memmap) == bool(at % 2)


def test_an_error_of_the_disk_is_not_damage(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.save("near", 0, {"array": np.arange(3)})
    monkeypatch.setattr(store_module, "_digest", lambda path: (_ for _ in ()).throw(OSError(24, "Too many open files")))
    with pytest.raises(OSError, match="Too many open files"):
        store.load("near", 0)
    assert store.finished("near") == {0}


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]", b"[" * 100_000, b'{"digest": "0", "content": {}}'])
@pytest.mark.parametrize("name", ["near/input.json", "strangers.json", "width.json", "lists.json", "manifest.json"])
def test_damaged_records_are_named_in_one_message(tmp_path, name, data):
    store = Store(str(tmp_path))
    store.write_json(name, {})
    (tmp_path / name).write_bytes(data)
    run = ShardRun(store, SimpleNamespace(products="float32"))
    read = {
        "near/input.json": lambda: run.finished("near"),
        "strangers.json": lambda: run._pairs,
        "width.json": lambda: width_of(run),
        "lists.json": lambda: run.lists_stage,
        "manifest.json": lambda: ShardRun.open(store),
    }
    with pytest.raises(InputError, match=rf"{name}: damaged \(.*\); remove the folder$"):
        read[name]()
    (tmp_path / name).unlink()
    if name not in ("near/input.json", "manifest.json"):
        with pytest.raises(InputError, match=f"{name}: is missing; start the run again"):
            read[name]()


@pytest.mark.long
def test_stores_of_two_processes_on_s3(tmp_path):
    """A process sees what another one wrote since it listed a folder; nothing is written to a missing bucket."""
    with s3_server():
        ours, theirs = Store("s3://bucket/run", tmp_path / "one"), Store("s3://bucket/run", tmp_path / "two")
        for at in range(3):
            theirs.save("near", at, {"array": np.arange(at)})
            assert ours.finished("near") == set(range(at + 1))
            theirs.save("near", at + 1, {"array": np.arange(at + 1)})
            np.testing.assert_array_equal(ours.load("near", at + 1), np.arange(at + 1))
            theirs.forget("near", at + 1)
            assert not ours.is_whole("near", at + 1)
        Upload("s3://bucket/results", overwrite=False)
        with pytest.raises(InputError, match=r"s3://none/x: cannot be written to \(none does not exist\)"):
            Upload("s3://none/x", overwrite=False)
        with pytest.raises(InputError, match=r"s3://none/x: cannot be read \(.*bucket does not exist"):
            gather("s3://none/x", tmp_path / "x.npy")
        with pytest.raises(InputError, match=r"s3://bucket/x: cannot be read \(no such file or folder\)"):
            gather("s3://bucket/x", tmp_path / "x.npy")
        with pytest.raises(InputError, match=r"s3://none/x: cannot be read \(none does not exist\)"):
            Store("s3://none/x").require_usable()
