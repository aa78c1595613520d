"""Test :mod:`starfc.storage.safe` and the readers behind it: every file gives right values or one message."""

from __future__ import annotations

import io
import os
import struct
import zipfile

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.samples import blobs
from starfc.commands import cluster, words_of
from starfc.data.convert import convert, open_either
from starfc.data.dataset import Features, lengths, open_split
from starfc.data.files import feature_blocks, read_features, read_labels
from starfc.data.profile import profile_features
from starfc.errors import InputError, MissingFileError
from starfc.graph.store import read_graph
from starfc.runtime.words import use
from starfc.storage.safe import Npz, read_lines, read_npy, require_plausible


@pytest.fixture
def rows():
    return np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)


def header(text: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117) + b"\n" + bytes(256)


def test_headers_of_npy(tmp_path, monkeypatch):
    broken = {
        "open": b"{'descr': '<f4', 'fortran_order': False, 'shape': (4, 4",
        "negative": b"{'descr': '<f4', 'fortran_order': False, 'shape': (-5, 8), }",
        "longer": b"{'descr': '<f4', 'fortran_order': False, 'shape': (9, 8), }",
        "beyond": b"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 1000000000000000000000), }",
        "complex": b"{'descr': '<c8', 'fortran_order': False, 'shape': (4, 8), }",
    }
    messages = (
        "not a readable NumPy file",
        "shape in its header is (-5, 8)",
        "more than the file's 384 bytes",
        "1000000",
        "complex64",
    )
    for (name, text), message in zip(broken.items(), messages, strict=True):
        (tmp_path / f"{name}.npy").write_bytes(header(text))
        with pytest.raises(InputError) as stop:
            read_features(tmp_path / f"{name}.npy")
        assert message in str(stop.value)
        assert "\n" not in str(stop.value)
    # a version 2 header that says it is 4 GiB long is not taken memory for
    (tmp_path / "long.npy").write_bytes(b"\x93NUMPY\x02\x00" + b"\xff\xff\xff\xff" + bytes(1000))
    with pytest.raises(InputError, match="its header claims 4,294,967,295 bytes"):
        read_npy(tmp_path / "long.npy")
    stdin = io.TextIOWrapper(io.BytesIO(header(broken["negative"])))
    monkeypatch.setattr("sys.stdin", stdin)
    with pytest.raises(InputError, match=r"stdin: .*\(-5, 8\)"):
        convert("-", str(tmp_path / "out.npy"))


def test_archives_that_are_damaged(tmp_path, rows):
    whole = io.BytesIO()
    np.savez(whole, features=rows)
    whole = bytearray(whole.getvalue())
    packed = io.BytesIO()
    np.savez_compressed(packed, features=rows)
    packed = bytearray(packed.getvalue())

    def changed(content: bytearray, at: int, value: int) -> bytes:
        out = bytearray(content)
        out[at] ^= value
        return bytes(out)

    start = 30 + int.from_bytes(packed[26:28], "little") + int.from_bytes(packed[28:30], "little")
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "<f4", "fortran_order": False, "shape": (10**15, 8)})
    files = {
        "crc": (changed(whole, 300, 1), "Bad CRC-32"),
        "magic": (changed(whole, 0, 1), "not a readable NumPy file"),
        "deflate": (changed(packed, start, 0xFF ^ packed[start]), "not a readable NumPy file .*decompressing"),
        "encrypted": (changed(packed, packed.index(b"PK\x01\x02") + 8, 1), "encrypted"),
    }
    for name, (content, message) in files.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(InputError, match=message) as stop:
            read_features(tmp_path / f"{name}.npz")
        assert "\n" not in str(stop.value)
    members = {
        "huge": (
            "features.npy",
            huge.getvalue() + bytes(256),
            r"shape \(1000000000000000, 8\) of float32 needs more than",
        ),
        "bare": ("features", b"x", "'features' in it is no .npy"),
        "none": (None, b"", "found no array"),
    }
    for name, (member, content, message) in members.items():
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w") as archive:
            if member is not None:
                archive.writestr(member, content)
        with pytest.raises(InputError, match=message):
            read_features(tmp_path / f"{name}.npz")
    with zipfile.ZipFile(tmp_path / "bzip.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("features.npy", huge.getvalue())
    with pytest.raises(InputError, match="not compressed with deflate"):
        read_features(tmp_path / "bzip.npz")


def test_what_is_compressed_is_plausible():
    require_plausible("f", 100 << 20, 10)
    require_plausible("f", 4096 * (1 << 30), 1 << 30)
    for count in (-1, (256 << 20) + 1):
        with pytest.raises(InputError, match="claims to hold"):
            require_plausible("f", count, 1000)


def test_which_array_of_an_archive(tmp_path, rows):
    labels, names = np.arange(40) // 4, np.array([f"{row}.png" for row in range(40)])
    for key in ("features", "embeddings", "X", "data", "Embeddings"):
        np.savez(tmp_path / "f.npz", labels=labels, paths=names, **{key: rows})
        np.testing.assert_array_equal(read_features(tmp_path / "f.npz"), rows)
    np.testing.assert_array_equal(read_labels(tmp_path / "f.npz", 40), labels)
    assert open_split(tmp_path / "f.npz", tmp_path / "f.npz", feature_dim=8).labels.tolist() == labels.tolist()
    np.savez(tmp_path / "two.npz", a=rows, b=2 * rows)
    np.testing.assert_array_equal(read_features(tmp_path / "two.npz", key="b"), 2 * rows)
    with pytest.raises(InputError, match=r"found 'a', 'b'; name the one to use with key"):
        read_features(tmp_path / "two.npz")
    with pytest.raises(InputError, match=r"has no array 'c' \(key\); found 'a', 'b'"):
        read_features(tmp_path / "two.npz", key="c")
    np.save(tmp_path / "f.npy", rows)
    with pytest.raises(InputError, match=r"key is only for an \.npz"):
        read_features(tmp_path / "f.npy", key="a")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".parquet"])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i4", "<i8"])
def test_integer_features_are_taken(tmp_path, suffix, dtype):
    whole = np.random.default_rng(0).integers(0, 100, (30, 6)).astype(dtype)
    path = tmp_path / f"f{suffix}"
    if suffix == ".npy":
        np.save(path, whole)
    elif suffix == ".npz":
        np.savez(path, whole)
    elif suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["features"] = whole
    else:
        pq.write_table(pa.table({"f": pa.array(whole.tolist(), pa.list_(pa.int32()))}), path)
    found = read_features(path)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, whole)
    assert profile_features(feature_blocks(path))["rows"] == 30


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8"])
def test_features_of_the_other_byte_order(tmp_path, rows, dtype):
    np.save(tmp_path / "f.npy", rows.astype(dtype))
    found, own = Features(read_features(tmp_path / "f.npy")), Features(rows.astype(dtype[1:]))
    np.testing.assert_array_equal(found.all(), own.all())
    array, scale = found.scaled
    np.testing.assert_allclose(array * scale[:, None], own.all(), rtol=1e-6)


def test_what_is_no_features_says_how_to_convert(tmp_path):
    for suffix, message in {
        ".pkl": "pickle.*numpy.save", ".pt": "torch.load", ".pth": "torch.load", ".csv": "loadtxt.*delimiter",
        ".txt": "loadtxt",
    }.items():  # fmt: skip
        (tmp_path / f"f{suffix}").write_bytes(b"x")
        with pytest.raises(InputError, match=message):
            read_features(tmp_path / f"f{suffix}")
    (tmp_path / "f.bin").write_bytes(bytes(4 * 8 * 3))
    with pytest.raises(InputError, match="check feature_dim, or whether the file was cut short"):
        read_features(tmp_path / "f.bin", 7)


def test_hdf5_stays_in_its_file(tmp_path, rows):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["features"] = rows
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file["features"] = h5py.ExternalLink("other.h5", "features")
    (tmp_path / "raw").write_bytes(rows.tobytes())
    with h5py.File(tmp_path / "storage.h5", "w") as file:
        file.create_dataset("features", rows.shape, "f4", external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)])
    layout = h5py.VirtualLayout(rows.shape, "f4")
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "features", rows.shape)
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("features", layout)
    with h5py.File(tmp_path / "loop.h5", "w") as file:
        file["a/b/c"] = np.arange(3)
        file["a/b/up"] = file["a"]
        file["a/features"] = rows
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.create_dataset("features", shape=(10**10, 256), dtype="f4", chunks=(1024, 256))
    with h5py.File(tmp_path / "heap.h5", "w") as file:
        file["x"] = rows
    (tmp_path / "heap.h5").write_bytes((tmp_path / "heap.h5").read_bytes().replace(b"HEAP", b"HEAQ"))
    for name, message in {
        "external": "one dataset, or one called features, .*; found no dataset",
        "storage": "are in other files",
        "virtual": "are in other files",
        "loop": r"found 'a/features', 'a/b/c'; name the one to use with key",
        "empty": "has 10,000,000,000 rows, but no data were written",
        "heap": "not a readable HDF5 file",
    }.items():
        with pytest.raises(InputError, match=message):
            read_features(tmp_path / f"{name}.h5")


def test_which_dataset_of_hdf5(tmp_path, rows):
    path, memory = tmp_path / "f.h5", {"chunks": (8, 8)}
    for name in ("features", "embeddings", "X", "Data"):
        with h5py.File(path, "w") as file:
            file["labels"] = np.arange(40)
            file.create_dataset(name, data=rows, **memory)
        np.testing.assert_array_equal(read_features(path), rows)
    with h5py.File(path, "w") as file:
        file["train/features"], file["test/features"] = rows, 2 * rows
    for key in ("test/features", "/test/features"):
        np.testing.assert_array_equal(read_features(path, key=key), 2 * rows)
    split = open_split(path, None, feature_dim=8, key="train/features")
    np.testing.assert_array_equal(split.features.array, rows)
    listed = "found 'test/features', 'train/features'"
    with pytest.raises(InputError, match=f"{listed}; name the one to use with key"):
        read_features(path)
    with pytest.raises(InputError, match=rf"has no dataset 'test' \(key\); {listed}"):
        read_features(path, key="test")
    with use(words_of(cluster)), pytest.raises(InputError, match=f"{listed}; name the one to use with --key"):
        read_features(path)


def test_labels_of_an_archive_are_not_chosen_by_the_key_of_features(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.arange(3), b=np.arange(3))
    with use(words_of(cluster)), pytest.raises(InputError, match=r"called labels, .* or y; found 'a', 'b'$"):
        read_labels(tmp_path / "two.npz")


def test_labels_of_an_archive_are_converted(tmp_path, rows):
    labels = np.arange(40) // 4
    archive, target = tmp_path / "f.npz", tmp_path / "l.meta"
    cases = [
        ({"labels": labels}, {}, "labels"),
        ({"ids": labels}, {}, "labels"),
        ({"embeddings": rows, "labels": labels}, {}, "labels"),
        ({"embeddings": rows, "person": labels}, {"key": "person"}, "labels"),
        ({"X": rows, "y": labels}, {"kind": "features"}, "features"),
        ({"X": rows, "y": labels}, {}, "features"),
        ({"a": rows, "y": labels}, {"kind": "labels"}, "labels"),
    ]
    for arrays, more, kind in cases:
        np.savez(archive, **arrays)
        out = target if kind == "labels" else tmp_path / "f.npy"
        assert convert(str(archive), str(out), **more)["kind"] == kind
        if kind == "labels":
            np.testing.assert_array_equal(read_labels(out), labels)
        else:
            np.testing.assert_array_equal(read_features(out), rows)
    np.savez(archive, labels=labels)
    np.testing.assert_array_equal(open_either(str(archive)), labels)


@pytest.mark.parametrize("command", [open_either, lambda path: convert(path, path + ".npy")], ids=["info", "convert"])
def test_features_of_other_kinds_are_helped_with_by_every_command(tmp_path, rows, command):
    np.savetxt(tmp_path / "f.csv", rows, delimiter=",")
    np.savetxt(tmp_path / "f.txt", rows)
    for suffix in (".pkl", ".pt"):
        (tmp_path / f"f{suffix}").write_bytes(b"?")
    remedies = {".csv": "numpy.loadtxt", ".txt": "numpy.loadtxt", ".pkl": "pickle.load", ".pt": "torch.load"}
    for suffix, remedy in remedies.items():
        path = str(tmp_path / f"f{suffix}")
        with pytest.raises(InputError, match=rf"f{suffix}: .*convert it: numpy.save\('features.npy', {remedy}"):
            command(path)


def test_parquet_names_the_row(tmp_path, rows):
    lists = rows.tolist()
    for at, name in ((0, "first"), (17, "middle"), (39, "last")):
        pq.write_table(
            pa.table({"features": pa.array([*lists[:at], None, *lists[at + 1 :]])}), tmp_path / f"{name}.parquet"
        )
        with pytest.raises(InputError, match=rf"every row needs a list of 8 numbers; row {at} \(from 0\) has none"):
            read_features(tmp_path / f"{name}.parquet")
    fixed = pa.array([lists[0], None, lists[2]], pa.list_(pa.float32(), 8))
    pq.write_table(pa.table({"features": fixed}), tmp_path / "fixed.parquet")
    with pytest.raises(InputError, match=r"row 1 \(from 0\) has none"):
        read_features(tmp_path / "fixed.parquet")
    pq.write_table(pa.table({"features": pa.array([[]] * 10, pa.list_(pa.float32()))}), tmp_path / "empty.parquet")
    with pytest.raises(InputError, match="found empty lists"):
        read_features(tmp_path / "empty.parquet")
    twice = pa.table([pa.array([[1.0]]), pa.array([[1.0]])], names=["features", "features"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(InputError, match="has the column 'features' twice"):
        read_features(tmp_path / "twice.parquet")


def test_what_has_to_be_held_fits_into_memory(tmp_path, rows):
    for name in ("f.npz", "f.parquet", "f.npy"):
        np.save(tmp_path / "src.npy", rows)
        convert(str(tmp_path / "src.npy"), str(tmp_path / name))
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("features", data=rows, chunks=(8, 8))
    for name in ("f.npz", "f.parquet", "f.h5"):
        with pytest.raises(
            InputError, match=r"memory.*of memory_limit are left; raise the limit, or convert them to .npy, which"
        ):
            read_features(tmp_path / name, room=rows.nbytes - 1)
        np.testing.assert_array_equal(read_features(tmp_path / name, room=rows.nbytes), rows)
    np.testing.assert_array_equal(read_features(tmp_path / "f.npy", room=0), rows)  # memory-mapped


NAMES = [f"img{row:03}.jpg" for row in range(6)]
LABELS = [0, 0, 5, -1, 2**40, 5]


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".csv", ".txt", ".meta"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_one_reader_for_label_text(tmp_path, suffix, end, mark):
    def found(lines: list[str]) -> list[int]:
        path = tmp_path / f"l{suffix}"
        path.write_bytes((mark + end.join(lines) + end).encode())
        return read_labels(path).tolist()

    assert found(list(map(str, LABELS))) == LABELS
    assert found([f"{label}.0" for label in LABELS]) == LABELS
    assert found([f" {label} " for label in LABELS]) == LABELS
    assert found(["label", *(f'"{label}"' for label in LABELS), "", ""]) == LABELS
    for separator in (",", ";", "\t"):
        table = [f"{name}{separator}{label}" for name, label in zip(NAMES, LABELS, strict=True)]
        assert found(table) == LABELS
        assert found([f"file{separator}Label", *table]) == LABELS
        assert found([f'"{name}"{separator}"{label}"' for name, label in zip(NAMES, LABELS, strict=True)]) == LABELS


def test_label_text_that_is_none(tmp_path):
    for name, text, message in (
        ("a.csv", "a|0\nb|1\n", r"columns are separated by '\|'"),
        ("b.csv", "0;5\n1;5\n", "one column 'label' or 'identity', or only one column"),
        ("c.csv", "a;0\nb;1;2\n", "different numbers of cells"),
        ("d.csv", "file,person\na,0\nb,1\n", "one column 'label' or 'identity'"),
        ("e.csv", "label\n1\nnan\n", r"row 1 \(from 0\) has no label|integers or text"),
        ("f.meta", "0 1 2\n", "one integer per line; found '0 1 2' in row 0"),
        ("g.meta", "1\n2\nx\n", "found 'x' in row 2"),
        ("h.meta", "1\n18446744073709551615\n", "found '18446744073709551615' in row 1"),
        ("i.meta", "1\n2.5\n", "found '2.5' in row 1"),
        ("j.txt", "1\0\n", "zero bytes"),
    ):
        (tmp_path / name).write_text(text)
        if name == "e.csv":  # a name, beside a number: text
            assert read_labels(tmp_path / name).tolist() == [0, 1]
            continue
        with pytest.raises(InputError, match=message):
            read_labels(tmp_path / name)
    (tmp_path / "names.csv").write_text("name\nAnn\n-1\nBob\nAnn\n-1.0\n")
    assert read_labels(tmp_path / "names.csv").tolist() == [0, 1, -1, 2, 1, -1]  # any other header is a name, too


def test_an_index_of_hdf5_chunks_that_leads_nowhere(tmp_path, rows):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("features", data=rows, chunks=(8, 8), compression="gzip")
        places = [dataset.id.get_chunk_info(at).byte_offset for at in range(2)]
    np.testing.assert_array_equal(read_features(path), rows)
    content = path.read_bytes()
    second = places[1].to_bytes(8, "little")
    assert content.count(second) == 1
    for other in (bytes(8), (len(content) - 1).to_bytes(8, "little")):
        path.write_bytes(content.replace(second, other))
        with pytest.raises(InputError, match=r"x\.h5: dataset 'features' is damaged \(the positions of its chunks"):
            read_features(path)


def test_label_text_with_a_control_character(tmp_path):
    (tmp_path / "y.meta").write_bytes("\ufeff^_0\n1\x1f2\n7\n".encode())
    with pytest.raises(InputError, match=r"y\.meta: labels must be text; found the control character U\+001F"):
        read_labels(tmp_path / "y.meta")


def test_labels_of_64_bits(tmp_path):
    np.save(tmp_path / "u.npy", np.array([1, 2**63 + 5], np.uint64))
    pq.write_table(pa.table({"label": pa.array([1, 2**63 + 5], pa.uint64())}), tmp_path / "u.parquet")
    for name in ("u.npy", "u.parquet"):
        with pytest.raises(InputError, match="64-bit integer"):
            read_labels(tmp_path / name)
    np.save(tmp_path / "f.npy", np.array([1.0, -1.0, 3.0]))
    assert read_labels(tmp_path / "f.npy").tolist() == [1, -1, 3]
    np.save(tmp_path / "g.npy", np.array([1.0, np.nan]))
    with pytest.raises(InputError, match=r"row 1 \(from 0\) has label nan"):
        read_labels(tmp_path / "g.npy")


def test_named_labels_have_to_be_there(tmp_path, rows):
    np.save(tmp_path / "f.npy", rows)
    for name in ("l.meta", "l", "l.lst"):
        with pytest.raises(MissingFileError, match="no such labels file"):
            open_split(tmp_path / "f.npy", tmp_path / name, feature_dim=None)
    np.save(tmp_path / "none.npy", np.full(40, -1))
    with pytest.raises(InputError, match="every label is -1"):
        open_split(tmp_path / "f.npy", tmp_path / "none.npy", feature_dim=None)


@pytest.mark.parametrize("factor", [1e-30, 1e-19, 1e18, 1e20, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_only_direction_counts(rows, factor, dtype):
    usual = Features(rows)
    scaled = Features(rows.astype(dtype) * dtype(factor))
    scaled.require_valid()
    np.testing.assert_allclose(scaled.all(), usual.all(), atol=2e-7)
    array, scale = scaled.scaled
    np.testing.assert_allclose(array * scale[:, None], usual.all(), atol=2e-7)
    extreme = Features(rows.astype(np.float64) * (1e300 if factor > 1 else 1e-300))
    extreme.require_valid()
    np.testing.assert_allclose(extreme.all(), usual.all(), atol=2e-7)


def test_rows_of_very_different_lengths_in_one_file(rows):
    mixed = rows * np.logspace(-36, 36, len(rows), dtype=np.float32)[:, None]
    mixed[3] = 1e-42 * np.arange(1, 9)  # subnormal
    features = Features(mixed)
    features.require_valid()
    expected = mixed.astype(np.float64) / np.linalg.norm(mixed.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(features.all(), expected, atol=2e-7)
    array, scale = features.scaled
    np.testing.assert_allclose(array * scale[:, None], expected, atol=2e-7)
    zero = np.zeros((2, 4), np.float32)
    zero[1, 2] = np.inf
    assert lengths(zero).tolist() == [0, np.inf]
    np.testing.assert_array_equal(Features(zero).invalid_rows, [0, 1])


def published(features: np.ndarray, k: int) -> np.ndarray:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    sims = unit @ unit.T
    ids = np.argsort(-sims, axis=1, kind="stable")[:, :k]
    return np.stack([ids, 1 - np.take_along_axis(sims, ids, 1)], axis=1).astype(np.float64)


def test_published_graphs_are_checked_before_kernels(tmp_path, rows):
    good = published(rows, 6)
    cases = {
        "nan": ((5, 1, 4), np.nan, r"distances: finite numbers .* needed; found nan at \[5, 4\]"),
        "infinite": ((5, 1, 4), np.inf, r"distances: finite numbers .* needed; found inf at \[5, 4\]"),
        "outside": ((7, 0, 2), 40, "of another split: .* whole numbers from 0 to 39 needed; found 0 to 40"),
        "far": ((7, 0, 2), 2.0**40, "ids: whole numbers from 0 to 39 needed; found 0 to 1099511627776"),
        "part": ((7, 0, 2), 1.5, "a whole number needed as id; found 1.5"),
        "twice": ((7, 0, 2), good[7, 0, 3], "row 7 has the same id twice"),
    }
    for name, (place, value, message) in cases.items():
        data = good.copy()
        data[place] = value
        np.savez_compressed(tmp_path / f"{name}.npz", data=data)
        with pytest.raises(InputError, match=message):
            read_graph(tmp_path / f"{name}.npz", Features(rows), 6)
    np.savez_compressed(tmp_path / "good.npz", data=good)
    graph = read_graph(tmp_path / "good.npz", Features(rows), 6)
    np.testing.assert_array_equal(graph.ids[:, 0], good[:, 0, 1])


def test_names_that_are_not_utf8(tmp_path, rows):
    folder = tmp_path / os.fsdecode(b"d_\xe4")
    folder.mkdir()
    np.save(tmp_path / "f.npy", rows)
    np.save(tmp_path / "l.npy", np.arange(40))
    for suffix in (".parquet", ".h5", ".npz", ".npy"):
        convert(str(tmp_path / "f.npy"), str(folder / f"f{suffix}"))
        np.testing.assert_array_equal(read_features(folder / f"f{suffix}"), rows)
    for suffix in (".csv", ".parquet", ".meta"):
        convert(str(tmp_path / "l.npy"), str(folder / f"l{suffix}"))
        np.testing.assert_array_equal(read_labels(folder / f"l{suffix}"), np.arange(40))


def test_lines_and_arrays_of_archives(tmp_path):
    (tmp_path / "l.txt").write_bytes(b"\xef\xbb\xbfa.png\r\n\r\nb\xe4.png\n")
    assert read_lines(tmp_path / "l.txt") == ["a.png", "", os.fsdecode(b"b\xe4.png")]
    np.savez(tmp_path / "a.npz", a=np.asfortranarray(np.arange(6.0).reshape(2, 3)), b=np.empty((0, 3)), c=np.array("x"))
    with Npz(tmp_path / "a.npz") as archive:
        np.testing.assert_array_equal(archive.array("a"), np.arange(6.0).reshape(2, 3))
        assert archive.array("b").shape == (0, 3)
        assert archive.array("c", "U") == "x"
        with pytest.raises(InputError, match="with dtype kind f"):
            archive.array("c", "f")
    for read in (read_features, read_labels, lambda path: open_split(path, None, feature_dim=None)):
        with pytest.raises(MissingFileError, match="no such"):
            read(tmp_path / f"{'x' * 300}.npy")
    os.mkfifo(tmp_path / "fifo.npy")
    with pytest.raises(InputError, match="no such features file"):
        read_features(tmp_path / "fifo.npy")


@pytest.mark.long
def test_blobs_of_any_length_cluster_the_same():
    from starfc import StarFC

    features, _ = blobs(identities=8, size=12)
    usual = StarFC().fit_predict(features)
    for other in (features * np.float32(1e18), features * np.float32(1e20), features.astype(np.float64) * 1e40):
        np.testing.assert_array_equal(StarFC().fit_predict(other), usual)


def test_pictures_that_are_too_large_for_their_file():
    """A PNG header of 20,000 x 10,000 pixels is 60 bytes long."""
    import zlib

    from starfc.review.images import read_picture

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 10000, 8, 2, 0, 0, 0))
    content += chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    place = os.memfd_create("picture")
    os.write(place, content)
    assert read_picture(f"/proc/self/fd/{place}") is None
    os.close(place)
