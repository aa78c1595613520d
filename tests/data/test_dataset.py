"""Test features and labels on disk and in memory."""

from __future__ import annotations

import numpy as np
import pytest

from starfc.data.dataset import Features, open_split
from starfc.data.files import read_features, read_labels, write_labels
from starfc.errors import InputError, MissingFileError
from starfc.storage.atomic import replacing


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_numpy_features_come_back(tmp_path, dtype, suffix):
    x = np.random.default_rng(0).normal(size=(9, 4)).astype(dtype)
    path = tmp_path / f"f{suffix}"
    np.save(path, x) if suffix == ".npy" else np.savez(path, features=x, other=np.arange(3))
    back = read_features(path, 4)
    assert isinstance(back, np.memmap) == (suffix == ".npy")
    np.testing.assert_array_equal(back, x)
    norms = np.linalg.norm(Features(back).all(), axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-5)


def test_raw_features_are_memory_mapped(tmp_path):
    x = np.random.default_rng(0).normal(size=(9, 4)).astype("<f4")
    x.tofile(tmp_path / "f.bin")
    back = read_features(tmp_path / "f.bin", 4)
    assert isinstance(back, np.memmap)
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("suffix", [".npy", ".meta", ".txt"])
def test_labels_come_back(tmp_path, suffix):
    labels = np.array([5, -1, 2**40, 0])
    write_labels(tmp_path / f"l{suffix}", labels)
    np.testing.assert_array_equal(read_labels(tmp_path / f"l{suffix}", 4), labels)


def test_bad_files_say_what_is_wrong(tmp_path):
    (tmp_path / "f.bin").write_bytes(b"\0" * 1003)
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01")
    np.save(tmp_path / "ints.npy", np.arange(4))
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    np.save(tmp_path / "wide.npy", np.ones((3, 5), np.float32))
    (tmp_path / "l.meta").write_text("1\n2\nx\n")
    cases = [
        (lambda: read_features(tmp_path / "none.bin", 4), "no such features file"),
        (lambda: read_features(tmp_path / "f.bin", 256), "1,003 bytes are not a whole number of 256-d"),
        (lambda: read_features(tmp_path / "f.bin"), "feature_dim"),
        (lambda: read_features(tmp_path / "cut.npy", 4), "not a readable NumPy file"),
        (lambda: read_features(tmp_path / "objects.npy", 4), "holds? objects"),
        (lambda: read_features(tmp_path / "ints.npy", 4), "two-dimensional"),
        (lambda: read_features(tmp_path / "wide.npy", 4), "has 5-d features, but 4-d features are needed"),
        (lambda: read_features(tmp_path / "l.meta", 4), "the suffix of features must be one of .bin"),
        (lambda: read_labels(tmp_path / "l.meta"), "one integer per line"),
        (lambda: read_labels(tmp_path / "wide.npy"), "one-dimensional integer"),
        (lambda: read_labels(tmp_path / "none.meta"), "no such labels file"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message):
            call()


def test_invalid_rows_are_named():
    x = np.ones((10, 3), np.float32)
    x[3, 1], x[4, 0], x[7] = np.nan, np.inf, 0
    features = Features(x, "mine.npy")
    np.testing.assert_array_equal(features.invalid_rows, [3, 4, 7])
    with pytest.raises(InputError, match=r"mine.npy: 2 of 10 rows have NaN or infinite values, first rows \[3, 4\]"):
        features.require_valid()
    with pytest.raises(InputError, match=r"1 of 3 rows have zero norm.*first rows \[2\]"):
        features.subset(np.array([0, 1, 7])).require_valid()


def test_features_taken_as_they_are_must_be_of_unit_length():
    Features(np.eye(3, dtype=np.float32), normalise=False).require_valid()
    with pytest.raises(InputError, match="is_norm_feat"):
        Features(2 * np.eye(3, dtype=np.float32), normalise=False).require_valid()


def test_fingerprint_hangs_on_every_byte_and_not_on_blocks(monkeypatch):
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    whole = Features(x).check.fingerprint
    monkeypatch.setattr("starfc.data.dataset.BLOCK_BYTES", 64)
    assert Features(x).check.fingerprint == whole
    y = x.copy()
    y[31, 2] = np.nextafter(y[31, 2], 9)
    assert Features(y).check.fingerprint != whole


def test_splits_find_their_files(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((3, 4), np.float16))
    assert open_split(tmp_path / "a", tmp_path / "none", feature_dim=4, labels_needed=False).labels is None
    write_labels(tmp_path / "a.meta", np.arange(3))
    np.testing.assert_array_equal(open_split(tmp_path / "a", tmp_path / "a.meta", feature_dim=4).labels, [0, 1, 2])
    assert open_split(tmp_path / "features" / "a", tmp_path / "labels" / "a.meta", feature_dim=4).labels is not None
    with pytest.raises(MissingFileError, match=r"looked for b.bin, b.npy, b.npz"):
        open_split(tmp_path / "b", None, feature_dim=4)
    with pytest.raises(MissingFileError, match=r"c.meta: no such labels file"):
        open_split(tmp_path / "a", tmp_path / "c.meta", feature_dim=4)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "labels.npy"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["labels.npy"]
    assert path.read_text() == "old"


def test_the_order_in_memory_does_not_change_a_bit(tmp_path, monkeypatch):
    rows = np.random.default_rng(0).normal(size=(300, 70)).astype(np.float32)
    expected = Features(rows)
    np.save(tmp_path / "columns.npy", np.asfortranarray(rows))
    wide = np.concatenate([rows, rows], axis=1)
    opened = read_features(tmp_path / "columns.npy")
    assert not opened.flags.c_contiguous
    for limit in (1 << 28, 0):  # copied to memory, and to a file
        monkeypatch.setattr("starfc.storage.scratch.IN_MEMORY", limit)
        for array in (np.asfortranarray(rows), wide[:, :70], opened):
            found = Features(array)
            assert found.check.fingerprint == expected.check.fingerprint
            np.testing.assert_array_equal(found.all(), expected.all())
            for ours, theirs in zip(found.scaled, expected.scaled, strict=True):
                np.testing.assert_array_equal(ours, theirs)
