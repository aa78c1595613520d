"""Test features that are gathered from a URL or a folder of parts."""

from __future__ import annotations

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starfc.data.parts import files_of, gather, is_gathered
from starfc.errors import InputError


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, rows):
    """A folder of three parts, of which one is Parquet, and files that are no parts."""
    parts = tmp_path / "parts"
    parts.mkdir()
    np.save(parts / "a.npy", rows[:200])
    np.save(parts / "b.npy", rows[200:250])
    pq.write_table(pa.table({"features": list(rows[250:])}), parts / "c.parquet")
    np.save(parts / "_ignored.npy", rows)
    (parts / "SUCCESS").write_text("")
    return parts


def test_parts_are_joined_in_the_order_of_their_names(folder, rows, tmp_path):
    assert is_gathered(str(folder))
    assert not is_gathered(str(folder / "a.npy"))
    gather(str(folder), tmp_path / "x.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy", mmap_mode="r"), rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "x.npy"]


def test_features_of_a_url(folder, rows, tmp_path):
    fs = fsspec.filesystem("memory")
    fs.put(str(folder), "/features", recursive=True)
    try:
        gather("memory://features/", tmp_path / "x.npy")
        np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows)
        gather("memory://features/b.npy", tmp_path / "x.npy")
        np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows[200:250])
    finally:
        fs.rm("/features", recursive=True)


def test_what_cannot_be_gathered(folder, rows, tmp_path):
    np.save(folder / "d.npy", rows[:, :5])
    with pytest.raises(InputError, match=r"d\.npy: parts of the same dimension and dtype needed; found 5-d"):
        gather(str(folder), tmp_path / "x.npy")
    np.save(folder / "d.npy", rows.astype(np.float16))
    with pytest.raises(InputError, match=r"found 8-d float16, but 8-d float32 in .*a\.npy"):
        gather(str(folder), tmp_path / "x.npy")
    (folder / "d.npy").write_bytes((folder / "a.npy").read_bytes()[:-40])
    with pytest.raises(InputError, match=r"parts/d\.npy: "):
        gather(str(folder), tmp_path / "x.npy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"a \.npy or \.parquet needed, or a folder of them; found none"):
        gather(str(tmp_path / "empty"), tmp_path / "x.npy")
    with pytest.raises(InputError, match=r"memory://nothing/: cannot be read \(no such file or folder\)"):
        gather("memory://nothing/", tmp_path / "x.npy")
    with pytest.raises(InputError, match="nowhere://x: cannot be opened as features"):
        gather("nowhere://x", tmp_path / "x.npy")


def test_a_warning_names_the_files_that_are_not_read(folder, rows, tmp_path, caplog):
    gather(str(folder), tmp_path / "x.npy")
    assert not caplog.records
    for name in ("b.NPY", "d.npz", "e.txt", ".f.npz"):
        (folder / name).write_bytes(b"")
    (folder / "more.npy").mkdir()
    gather(str(folder), tmp_path / "x.npy")
    said = "only its .npy and .parquet files are read; not 'b.NPY', 'd.npz', 'more.npy'"
    assert caplog.messages == [f"{folder}: {said}"]
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows)


def test_files_that_the_parts_name(folder, rows, tmp_path):
    assert files_of(str(folder)) is None
    assert files_of("memory://features") is None
    names = [None if row % 7 == 0 else f"pictures/{row}.jpg" for row in range(50)]
    pq.write_table(pa.table({"features": list(rows[250:]), "file": names}), folder / "c.parquet")
    expected = [None if name is None else folder / name for name in names]
    assert files_of(str(folder)) == [None] * 250 + expected
