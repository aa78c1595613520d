"""Test every format of features and labels: writing and reading back, pipes, and messages about broken files."""

from __future__ import annotations

import io
import itertools
import json
import threading

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.samples import unit
from starfc.data.convert import convert
from starfc.data.dataset import Features
from starfc.data.files import FEATURE_SUFFIXES, LABEL_SUFFIXES, feature_blocks, read_features, read_labels
from starfc.data.formats import parquet
from starfc.data.profile import profile_features, profile_labels
from starfc.errors import InputError

N, D = 37, 5
MAPPED = (".bin", ".npy", ".h5", ".hdf5", ".fvecs")
LABELS = [7, -1, 2**40, 0, 7, 3]


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few rows, so that every file has several."""
    monkeypatch.setattr("starfc.data.blocks.BLOCK_BYTES", 4 * D * 8)


class Pipe:
    """A process's stdin and stdout, binary."""

    def __init__(self, data: bytes = b"") -> None:
        self.buffer = io.BytesIO(data)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("first", "second"), list(itertools.product(FEATURE_SUFFIXES, repeat=2)))
def test_features_come_back_from_every_format(tmp_path, features, first, second):
    np.save(tmp_path / "f.npy", features)
    one, two = tmp_path / f"one{first}", tmp_path / f"two{second}"
    found = convert(str(tmp_path / "f.npy"), str(one))
    assert found == {"kind": "features", "rows": N, "dim": D, "dtype": "float32"}
    convert(str(one), str(two), feature_dim=D)
    back = read_features(two, D)
    assert isinstance(back, np.memmap) == (second in MAPPED)
    np.testing.assert_array_equal(back, features)
    assert Features(back).check.fingerprint == Features(features).check.fingerprint
    array, scale = Features(back).scaled  # a strided view is copied for it
    np.testing.assert_allclose(array * scale[:, None], unit(features), rtol=1e-6)
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".parquet"])
def test_half_precision_stays_where_a_format_holds_it(tmp_path, features, suffix):
    half = features.astype(np.float16)
    np.save(tmp_path / "f.npy", half)
    target = tmp_path / f"g{suffix}"
    assert convert(str(tmp_path / "f.npy"), str(target))["dtype"] == "float16"
    back = read_features(target)
    assert back.dtype == (np.float32 if suffix == ".parquet" else np.float16)
    np.testing.assert_array_equal(back, half)
    assert convert(str(target), str(tmp_path / "h.bin"))["dtype"] == "float32"
    np.save(tmp_path / "wide.npy", features.astype(np.float64))
    assert convert(str(tmp_path / "wide.npy"), str(target))["dtype"] == "float32"


@pytest.mark.parametrize(("first", "second"), list(itertools.product(LABEL_SUFFIXES, repeat=2)))
def test_labels_come_back_from_every_format(tmp_path, first, second):
    np.save(tmp_path / "l.npy", LABELS)
    one, two = tmp_path / f"one{first}", tmp_path / f"two{second}"
    assert convert(str(tmp_path / "l.npy"), str(one)) == {"kind": "labels", "rows": 6, "identities": 5}
    convert(str(one), str(two))
    np.testing.assert_array_equal(read_labels(two, 6), LABELS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3\n1\n3\n", [3, 1, 3]),
        ("label\n3\n1\n", [3, 1]),
        ("anything\n3\n1\n", [3, 1]),
        ("identity\nann\nbob\nann\n", [0, 1, 0]),
        ("bob\nann\nbob\n", [0, 1, 0]),
        ('file,Identity\na.jpg,"Ann, B."\n"b,c.jpg",x\nd.jpg,"Ann, B."\n', [0, 1, 0]),
        ("row,label,confidence\n0,4,0.5\n1,2,0.1\n", [4, 2]),
        ("\ufefflabel\r\n5\r\n6\r\n", [5, 6]),
        ("", []),
        ("label\n", []),
    ],
)
def test_labels_of_csv(tmp_path, text, expected):
    (tmp_path / "l.csv").write_text(text, encoding="utf-8")
    labels = read_labels(tmp_path / "l.csv")
    assert labels.dtype == np.int64
    assert labels.tolist() == expected


def test_columns_of_parquet(tmp_path, features):
    path = tmp_path / "t.parquet"
    ragged = pa.array(list(features.astype(float)), pa.list_(pa.float64()))
    pq.write_table(pa.table({"id": range(N), "vector": ragged, "identity": [f"p{i % 4}" for i in range(N)]}), path)
    np.testing.assert_array_equal(read_features(path, D), features)
    np.testing.assert_array_equal(read_labels(path, N), np.arange(N) % 4)
    assert convert(str(path), str(tmp_path / "a.npy"))["kind"] == "features"
    assert convert(str(path), str(tmp_path / "b.npy"), kind="labels")["kind"] == "labels"
    assert convert(str(path), str(tmp_path / "c.meta"))["identities"] == 4
    pq.write_table(pa.table({"a": ragged, "features": pa.array(list(-features), pa.list_(pa.float32()))}), path)
    np.testing.assert_array_equal(read_features(path), -features)
    pq.write_table(pa.table({"x": pa.array(["b", "a", "b"]).dictionary_encode()}), path)
    assert read_labels(path).tolist() == [0, 1, 0]


def test_parquet_is_read_in_one_thread(tmp_path, monkeypatch):
    """Threads of Arrow that hold a Python file abort a process that ends at that moment."""
    pq.write_table(pa.table({f"{at}": np.arange(4000) for at in range(8)}), tmp_path / "x.parquet", row_group_size=500)
    threads = set()

    class Watched(io.FileIO):
        def readinto(self, into):
            threads.add(threading.get_ident())
            return super().readinto(into)

        def read(self, size=-1):
            threads.add(threading.get_ident())
            return super().read(size)

    monkeypatch.setattr(parquet, "open_regular", lambda path, what: Watched(path))
    with parquet.opened_parquet(tmp_path / "x.parquet") as file:
        assert file.read(columns=["1", "2", "5"]).num_rows == 4000
        assert sum(len(batch) for batch in file.iter_batches(1000)) == 4000
    assert threads == {threading.get_ident()}


def test_datasets_of_hdf5(tmp_path, features):
    path = tmp_path / "f.h5"
    for layout in ({}, {"chunks": (10, 3), "compression": "gzip"}, {"chunks": (4, D)}):
        with h5py.File(path, "w", userblock_size=512) as file:
            file.create_dataset("group/embeddings", data=features, **layout)
        assert isinstance(read_features(path), np.memmap) == (not layout)
        np.testing.assert_array_equal(read_features(path), features)
    with h5py.File(path, "w") as file:
        file["other"], file["features"] = np.arange(3), features.astype(">f4")
    np.testing.assert_array_equal(read_features(path), features)
    array, scale = Features(read_features(path)).scaled
    np.testing.assert_allclose(array * scale[:, None], unit(features), rtol=1e-6)


def test_streams_are_npy(tmp_path, features, monkeypatch):
    np.save(tmp_path / "f.npy", features)
    out = Pipe()
    monkeypatch.setattr("sys.stdout", out)
    convert(str(tmp_path / "f.npy"), "-", dtype="float16")
    monkeypatch.setattr("sys.stdin", Pipe(out.buffer.getvalue()))
    assert convert("-", str(tmp_path / "g.fvecs"))["rows"] == N
    np.testing.assert_array_equal(read_features(tmp_path / "g.fvecs"), features.astype(np.float16))
    np.save(tmp_path / "l.npy", np.array(LABELS))
    monkeypatch.setattr("sys.stdin", Pipe((tmp_path / "l.npy").read_bytes()))
    assert convert("-", str(tmp_path / "l.csv"))["kind"] == "labels"
    assert read_labels(tmp_path / "l.csv").tolist() == LABELS
    monkeypatch.setattr("sys.stdin", Pipe((tmp_path / "f.npy").read_bytes()[:-3]))
    with pytest.raises(InputError, match="stdin: is cut short: its header says 37 rows"):
        convert("-", str(tmp_path / "cut.npy"))
    assert not (tmp_path / "cut.npy").exists()


def test_arrays_in_fortran_order(tmp_path, features):
    np.savez(tmp_path / "f.npz", np.asfortranarray(features))
    np.save(tmp_path / "f.npy", np.asfortranarray(features))
    for suffix in (".npz", ".npy"):
        np.testing.assert_array_equal(read_features(tmp_path / f"f{suffix}"), features)
        convert(str(tmp_path / f"f{suffix}"), str(tmp_path / "g.bin"))
        np.testing.assert_array_equal(read_features(tmp_path / "g.bin", D), features)


def test_no_rows(tmp_path):
    np.save(tmp_path / "f.npy", np.empty((0, D), np.float32))
    for suffix in (".npy", ".npz", ".bin", ".parquet", ".h5"):
        convert(str(tmp_path / "f.npy"), str(tmp_path / f"g{suffix}"))
        assert read_features(tmp_path / f"g{suffix}", D).shape == (0, D)
    assert profile_features(feature_blocks(tmp_path / "f.npy"))["duplicates"]["largest"] == 0


def test_broken_files_say_what_is_wrong(tmp_path, features):
    np.save(tmp_path / "f.npy", features)
    for suffix in (".npz", ".parquet", ".h5", ".fvecs"):
        convert(str(tmp_path / "f.npy"), str(tmp_path / f"whole{suffix}"))
        data = (tmp_path / f"whole{suffix}").read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(data[: len(data) // 2])
        (tmp_path / f"text{suffix}").write_text("these are no features, only words\n")
    lists = [list(range(D)), list(range(D - 1))]
    pq.write_table(pa.table({"features": pa.array(lists, pa.list_(pa.float32()))}), tmp_path / "ragged.parquet")
    pq.write_table(pa.table({"features": pa.array([lists[0], None])}), tmp_path / "null.parquet")
    pq.write_table(pa.table({"features": pa.array([[1.0, None], [1.0, 2.0]])}), tmp_path / "hole.parquet")
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"]}), tmp_path / "scalars.parquet")
    pq.write_table(pa.table({"label": [1, None]}), tmp_path / "missing.parquet")
    pq.write_table(pa.table({"label": [1.5, 2.0]}), tmp_path / "real.parquet")
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["a"], file["b"] = features, features
    with h5py.File(tmp_path / "ints.h5", "w") as file:
        file["a"] = np.arange(6)
    rows = np.ones((1100, D + 1), "<f4")
    rows.view("<i4")[:, 0] = D
    rows.view("<i4")[-1, 0] = D + 1
    rows.tofile(tmp_path / "mixed.fvecs")
    np.savez(tmp_path / "two.npz", a=features, b=features)
    for name, text in {
        "hole.csv": "label\n1\n,\n", "empty.csv": 'a,label\nx,1\ny,""\n', "none.csv": "a,b\n1,2\n",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.csv").write_bytes("Ren\xe9\nAnn\n".encode("latin-1"))
    of_features = {
        "cut.npz": "not a readable NumPy file",
        "cut.parquet": "not a readable Parquet file",
        "cut.h5": "not a readable HDF5 file",
        "cut.fvecs": "not a whole number of .fvecs rows of d = 5",
        "text.npz": "not a readable NumPy file",
        "text.parquet": "not a readable Parquet file",
        "text.h5": "not a readable HDF5 file",
        "text.fvecs": "not a whole number of .fvecs rows",
        "two.npz": "features, embeddings, X or data; found 'a', 'b'; name the one to use with key",
        "ragged.parquet": r"row 1 \(from 0\) has one of 4",
        "null.parquet": r"every row needs a list of 5 numbers; row 1 \(from 0\) has none",
        "hole.parquet": r"row 0 \(from 0\) has one with a missing number",
        "scalars.parquet": r"a column 'features' of lists of numbers.*found a \(int64\), b \(string\)",
        "two.h5": "one dataset, or one called features, embeddings, X or data; found",
        "ints.h5": r"two-dimensional array \(N, d\) of float16, float32 or float64",
        "mixed.fvecs": "row 1099 .* has d = 6, but the first row has d = 5",
        "whole.fvecs": "has 5-d features, but 4-d features are needed",
    }
    for name, message in of_features.items():
        with pytest.raises(InputError, match=message):
            read_features(tmp_path / name, 4 if name == "whole.fvecs" else None)
    of_labels = {
        "scalars.parquet": "one column 'label' or 'identity', or only one column",
        "missing.parquet": "row 1 .from 0. has no label",
        "real.parquet": "labels must be 64-bit integers or text; found double",
        "text.parquet": "not a readable Parquet file",
        "hole.csv": r"row 1 .from 0. has no label|not a readable table of labels",
        "empty.csv": "row 1 .from 0. has no label",
        "none.csv": "one column 'label' or 'identity', or only one column",
        "latin.csv": "UTF-8|utf8|UTF8",
    }
    for name, message in of_labels.items():
        with pytest.raises(InputError, match=message):
            read_labels(tmp_path / name)
    (tmp_path / "three.csv").write_text("1\n2\n3\n")
    with pytest.raises(InputError, match="3 labels for 2 features"):
        read_labels(tmp_path / "three.csv", 2)


def test_conversions_that_cannot_be(tmp_path, features):
    np.save(tmp_path / "f.npy", features)
    np.save(tmp_path / "big.npy", 1e6 * features)
    np.save(tmp_path / "l.npy", LABELS)
    (tmp_path / "g.npy").write_text("old")
    cases = [
        (("f.npy", "g.meta"), "holds features, but .*g.meta can hold labels"),
        (("l.npy", "g.bin"), "holds labels, but .*g.bin can hold features"),
        (("l.npy", "g.npy", None, "float16"), "--dtype: only for features"),
        (("f.npy", "g.npy", None, None, "labels"), "holds features, but labels are requested"),
        (("f.npy", "g.fvecs", None, "float16"), "--dtype: .fvecs can hold only float32"),
        (("f.npy", "g.jpg"), "the suffix must be one of .bin"),
        (("none.npy", "g.npy"), "none.npy: no such file"),
        (("f.npy", "f.npy"), "is the file to read"),
        (("big.npy", "g.npy", None, "float16"), "numbers above 65504, the largest float16"),
    ]
    for (source, target, *more), message in cases:
        with pytest.raises(InputError, match=message):
            convert(str(tmp_path / source), str(tmp_path / target), *more)
    assert (tmp_path / "g.npy").read_text() == "old"


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_profile_counts_what_is_there(tmp_path, features, dtype):
    x = np.concatenate([features, features[[3, 3, 8]], np.zeros((3, D))]).astype(dtype)
    x[-1] = -0.0
    x[0, 0], x[1, 2] = np.nan, np.inf
    np.save(tmp_path / "f.npy", x)
    found = profile_features(feature_blocks(tmp_path / "f.npy"))
    norms = np.linalg.norm(x[2:].astype(np.float64), axis=1)
    assert found["rows"] == N + 6
    assert (found["non_finite_rows"], found["zero_rows"]) == (2, 3)
    assert found["duplicates"] == {"rows": 5, "groups": 3, "largest": 3}
    assert [found["norm"][k] for k in ("min", "median", "max")] == pytest.approx(
        [norms.min(), np.median(norms), norms.max()]
    )
    json.dumps(found, allow_nan=False)


def test_a_profile_of_labels():
    found = profile_labels(np.array([5, 5, 5, 9, 2, 2, -1]))
    assert (found["rows"], found["identities"], found["singletons"], found["without_label"]) == (7, 3, 1, 1)
    assert (found["sizes"]["0"], found["sizes"]["0.5"], found["sizes"]["1"]) == (1, 2, 3)
    assert profile_labels(np.array([], np.int64))["sizes"] is None


def test_a_known_scale_is_not_computed_again():
    rows = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float16)
    scale = Features(rows).scaled[1]
    np.testing.assert_array_equal(Features(rows, scale=scale[:20]).scaled[1], scale)
    assert Features(rows, scale=2 * scale[:20]).scaled[1][19] == 2 * scale[19]
