"""Test exports of clusters: tables, folders of links and copies, samples for FiftyOne, and what they refuse."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from helpers.paths import ROOT
from helpers.review import labels_of, parsed
from helpers.samples import blobs
from starfc import InputError, StarFC
from starfc.commands import app
from starfc.data.instance_files import file_column, files_beside, read_files
from starfc.graph.edges import edge_confidence
from starfc.runs.apply import Marked
from starfc.runs.assign import assign
from starfc.runs.export import Exported, export, read_clusters, write_clusters
from starfc.runs.folders import SINGLES, placed, safe_name
from starfc.runs.outputs import write_clustering
from starfc.runs.reviewing import Reviewing


def starfc(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def photos(tmp_path):
    """Six files of five names, two of which differ only in case, and clusters 0 (three), 1 (two) and a single."""
    names = ["a/IMG.jpg", "b/IMG.jpg", "b/img.JPG", "c.png", "d e;$(x).png", "a/last.png"]
    for name in names:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return [tmp_path / "photos" / name for name in names]


@pytest.fixture
def clusters(photos):
    confidence = np.array([0.9, 0.8, 0.95, 0.99, 0.7, 0], np.float32)
    return Exported(np.arange(6), np.array([0, 0, 0, 1, 1, 2]), confidence, {1: "Anna / Bo"}, photos)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 120 instances of a table that names their files, and the table."""
    folder = tmp_path_factory.mktemp("run")
    features, _ = blobs(identities=8, size=15)
    (folder / "pictures").mkdir()
    for row in range(len(features)):
        (folder / "pictures" / f"p{row:03d}.jpg").write_bytes(b"%d" % row)
    files = [f"pictures/p{row:03d}.jpg" for row in range(len(features))]
    rows = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    pq.write_table(pa.table({"features": rows, "path": files}), folder / "faces.parquet")
    code, _, err = starfc("cluster", folder / "faces.parquet", "-o", folder / "run", "--quiet")
    assert code == 0, err
    return folder


def rows_of(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tables_hold_the_same(clusters, tmp_path):
    for to in ("csv", "parquet", "json"):
        found = write_clusters(clusters, to, tmp_path / f"t.{to}")
        assert found == {"to": to, "rows": 6, "clusters": 3, "named": 1, "without_file": 0}
    told = json.loads((tmp_path / "t.json").read_text())
    assert told[3] == {
        "row": 3, "file": str(clusters.files[3]), "cluster": 1, "name": "Anna / Bo", "confidence": 0.99,
    }  # fmt: skip
    assert told[0]["name"] is None
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.schema.names == ["row", "file", "cluster", "name", "confidence"]
    assert table["confidence"].type == pa.float32()
    as_text = [{key: "" if value is None else str(value) for key, value in row.items()} for row in told]
    assert rows_of(tmp_path / "t.csv") == as_text
    assert [row["file"] for row in table.to_pylist()] == [row["file"] for row in told]


def test_a_table_is_not_replaced_unless_that_is_asked_for(clusters, tmp_path):
    (tmp_path / "t.csv").write_text("mine")
    with pytest.raises(InputError, match=r"t\.csv: exists; name another file, or add overwrite=True"):
        write_clusters(clusters, "csv", tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "mine"
    write_clusters(clusters, "csv", tmp_path / "t.csv", overwrite=True)
    assert len(rows_of(tmp_path / "t.csv")) == 6


@pytest.mark.parametrize("copy", [False, True])
def test_folders_hold_every_file_once_under_its_own_name(clusters, photos, tmp_path, copy):
    out = tmp_path / "out"
    found = write_clusters(clusters, "folders", out, copy=copy)
    assert (found["written"], found["kept"], found["missing"]) == (6, 0, 0)
    there = {
        "00000/IMG.jpg": photos[0],
        "00000/IMG~1.jpg": photos[1],
        "00000/img~2.JPG": photos[2],  # a file system without case must not see one name twice
        "00001 Anna _ Bo/c.png": photos[3],
        "00001 Anna _ Bo/d e;$(x).png": photos[4],
        f"{SINGLES}/last.png": photos[5],
    }
    for place, photo in there.items():
        assert (out / place).read_bytes() == photo.read_bytes()
        assert (out / place).is_symlink() is not copy
    files = {str(path.relative_to(out)) for path in out.rglob("*") if not path.is_dir()}
    assert files == {*there, "clusters.csv", "export.json"}
    assert [row["place"] for row in rows_of(out / "clusters.csv")] == list(there)
    assert write_clusters(clusters, "folders", out, copy=copy)["kept"] == 6  # again: nothing to do


def test_a_picture_of_several_instances_is_in_each_of_their_clusters_once(photos, tmp_path):
    shared = Exported(np.arange(4), np.array([0, 0, 1, 1]), np.zeros(4, np.float32), {}, [photos[0]] * 3 + [None])
    assert write_clusters(shared, "folders", tmp_path / "out") | {"clusters": 2} == {
        "to": "folders", "rows": 4, "clusters": 2, "named": 0, "without_file": 1, "written": 2, "kept": 0, "missing": 0,
    }  # fmt: skip
    assert sorted(tree(tmp_path / "out")) == ["00000/IMG.jpg", "00001/IMG.jpg", "clusters.csv", "export.json"]


@pytest.mark.parametrize("copy", [False, True])
def test_a_killed_export_continues_and_another_one_is_refused(clusters, photos, tmp_path, copy):
    out = tmp_path / "out"
    write_clusters(clusters, "folders", out, copy=copy)
    whole = tree(out)
    (out / "clusters.csv").unlink()  # written last
    (out / "00001 Anna _ Bo" / "c.png").unlink()
    assert write_clusters(clusters, "folders", out, copy=copy)["written"] == 1
    assert tree(out) == whole
    others = Exported(clusters.rows, np.array([0, 0, 0, 1, 1, 1]), clusters.confidence, {}, photos)
    with pytest.raises(InputError, match="holds an export of other clusters or files; name a new folder"):
        write_clusters(others, "folders", out, copy=copy)
    with pytest.raises(InputError, match="holds an export of other clusters or files"):
        write_clusters(clusters, "folders", out, copy=not copy)
    (out / "00000" / "IMG.jpg").unlink()
    (out / "00000" / "IMG.jpg").write_text("mine")
    with pytest.raises(InputError, match=r"IMG\.jpg: exists and is not what this export writes there"):
        write_clusters(clusters, "folders", out, copy=copy)
    assert (out / "00000" / "IMG.jpg").read_text() == "mine"


def test_folders_of_others_are_left_alone(clusters, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no export"):
        write_clusters(clusters, "folders", tmp_path / "mine")
    assert tree(tmp_path / "mine") == {"thesis.txt": b"mine"}


def test_missing_files_are_counted(clusters, photos, tmp_path, caplog):
    photos[3].unlink()
    found = write_clusters(clusters, "folders", tmp_path / "out")
    assert (found["written"], found["missing"]) == (5, 1)
    assert f"1 file does not exist, such as {photos[3]}" in caplog.text
    assert rows_of(tmp_path / "out" / "clusters.csv")[3]["place"] == ""


@pytest.mark.parametrize("copy", [False, True])
def test_an_export_of_which_no_file_exists_is_refused(clusters, photos, tmp_path, copy):
    for photo in photos:
        photo.unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"none of the 6 known files exists, such as .*IMG\.jpg; name the folder that"):
        write_clusters(clusters, "folders", tmp_path / "out", copy=copy)
    assert not (tmp_path / "out").exists()


def test_names_are_safe_for_every_file_system():
    for name in (
        "../../etc",
        "a/b\\c",
        "\x00\x1b[31m",
        "...",
        " x ",
        "con:aux?*",
        "\u202egnp.exe",
        "é" * 300,
        "a\ud800",
    ):
        safe = safe_name(name)
        assert not set(safe) & set('/\\:*?"<>|\0\x1b\u202e')
        assert not safe.startswith(".")
        assert safe == safe.strip()
        assert len(safe.encode()) <= 120
    table = pa.table({"row": [0, 7], "cluster": [123456, 123456], "name": ["...", "..."]})
    places = placed(table, [Path("/x/.hidden"), Path("/y/.hidden")], np.array([False, False]))
    assert places == ["123456/hidden", "123456/hidden~7"]


def test_many_equal_names_get_different_places():
    rng = np.random.default_rng(0)
    names = ["a.jpg", "A.jpg", "a~3.jpg", "a.JPG"]
    sources = [Path(f"/{number}") / names[rng.integers(4)] for number in range(200)]
    labels = rng.integers(0, 3, 200)
    table = pa.table({"row": rng.permutation(200), "cluster": labels, "name": pa.nulls(200, pa.string())})
    places = placed(table, sources, np.zeros(200, np.bool_))
    assert len({place.casefold() for place in places}) == 200
    assert all(place.startswith(f"{label:05d}/") for place, label in zip(places, labels, strict=True))


def test_samples_for_fiftyone(clusters, tmp_path):
    write_clusters(clusters, "fiftyone", tmp_path / "set")
    samples = json.loads((tmp_path / "set" / "samples.json").read_text())["samples"]
    assert samples[4] == {
        "filepath": str(clusters.files[4]),
        "tags": [],
        "row": 4,
        "cluster": {"_cls": "Classification", "label": "Anna / Bo", "confidence": 0.7},
        "cluster_id": 1,
    }
    assert samples[5]["tags"] == ["single"]
    assert samples[0]["cluster"]["label"] == "0"


@pytest.mark.long
def test_the_files_of_a_table_stay_with_the_clusters(run):
    table = pq.read_table(run / "run" / "clusters.parquet")
    assert table["file"].to_pylist() == [str(run / "pictures" / f"p{row:03d}.jpg") for row in range(120)]
    assert starfc("name", run / "run", "0", "Anna")[0] == 0
    code, out, err = starfc("export", run / "run", "--to", "folders", "-o", run / "sorted")
    assert (code, err) == (0, "")
    assert "120 instances in 8 clusters, 1 of them named" in out
    assert "120 files linked, 0 were there" in out
    labels = np.load(run / "run" / "labels.npy")
    for row, label in enumerate(labels.tolist()):
        folder = "00000 Anna" if label == 0 else f"{label:05d}"
        assert (run / "sorted" / folder / f"p{row:03d}.jpg").read_text() == str(row)
    code, out, _ = starfc("export", run / "run", "--to", "csv", "-o", run / "t.csv", "--json")
    assert (code, json.loads(out)["named"], json.loads(out)["to"]) == (0, 1, "csv")
    confidence = table["confidence"].to_numpy()
    told = rows_of(run / "t.csv")
    np.testing.assert_allclose([float(row["confidence"]) for row in told], confidence, atol=6e-5)
    assert {row["name"] for row in told if row["cluster"] == "0"} == {"Anna"}


@pytest.mark.long
def test_pictures_that_only_the_run_names_are_copied_if_its_table_is_named(run, tmp_path):
    given = ("export", run / "run", "--to", "folders", "--copy")
    code, _, err = starfc(*given, "-o", tmp_path / "out")
    assert code == 2
    assert "--copy: needs the files that are to be copied (--files)" in err
    assert "run/clusters.parquet if you trust what it names" in err
    for number, files in enumerate((run / "pictures", run / "run" / "clusters.parquet")):
        out = tmp_path / f"out{number}"
        code, _, err = starfc(*given, "--files", files, "-o", out)
        assert code == 0, err
        assert not any(path.is_symlink() for path in out.rglob("*"))
        assert all(
            Path(row["file"]).read_bytes() == (out / row["place"]).read_bytes() for row in rows_of(out / "clusters.csv")
        )
        assert len(rows_of(out / "clusters.csv")) == 120
    code, _, err = starfc("export", run / "run", "--to", "csv", "--copy", "--files", run / "pictures", "-o", "x.csv")
    assert (code, err) == (2, "error: --copy: only for folders; csv holds no files; leave it out\n")


@pytest.fixture
def knowing(tmp_path):
    """Make a finished run of one cluster whose rows have the given files; only what an export reads."""

    def make(*files):
        folder = tmp_path / "knowing"
        folder.mkdir()
        known = {"file": file_column([None if file is None else Path(file) for file in files])}
        write_clustering(folder, np.zeros(len(files), np.int64), np.ones(len(files), np.float32), known)
        (folder / "run.json").write_text("{}")
        return folder

    return make


def test_known_files_are_found_in_a_folder_by_path_or_name(knowing, tmp_path):
    run = knowing("/old/b/1.jpg", "/old/a/1.jpg", None, "/old/a/2.jpg")
    for folder in ("copy/b", "copy/a", "flat/x", "flat/y"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "0.jpg"):  # one more picture, and another order
        (tmp_path / "copy" / name).touch()
    copy = tmp_path / "copy"
    assert read_clusters(run, copy).files == [copy / "b/1.jpg", copy / "a/1.jpg", None, copy / "a/2.jpg"]
    (copy / "b/1.jpg").rename(copy / "b/3.jpg")
    with pytest.raises(InputError, match=r"copy: lacks 1 of the 3 pictures that the rows have, such as /old/b/1\.jpg"):
        export(run, "csv", tmp_path / "t.csv", files=copy)
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.long
def test_pages_too_find_known_pictures_and_never_take_others(run, tmp_path):
    pytest.importorskip("PIL", reason="Pillow is not installed (extra report)")
    (tmp_path / "others").mkdir()
    for row in range(120):
        (tmp_path / "others" / f"other{row}.jpg").touch()
    given = ("report", run / "run", "-o", tmp_path / "page", "--questions", "0", "--images", tmp_path / "others")
    code, _, err = starfc(*given)
    assert code == 2
    assert "others: lacks 120 of the 120 pictures that the rows have" in err
    with pytest.raises(InputError, match="others: lacks 120 of the 120 pictures that the rows have"):
        Reviewing(Marked(run / "run"), tmp_path / "pages", tmp_path / "others")


def test_known_files_are_found_by_names_only_if_these_are_there_once(knowing, tmp_path):
    run = knowing("/old/b/1.jpg", "/older/2.jpg", "/old/b/1.jpg")  # two faces of one picture
    flat = tmp_path / "flat"
    (flat / "x").mkdir(parents=True)
    for name in ("2.jpg", "x/1.jpg"):
        (flat / name).touch()
    assert read_clusters(run, flat).files == [flat / "x/1.jpg", flat / "2.jpg", flat / "x/1.jpg"]
    (flat / "1.jpg").touch()
    with pytest.raises(InputError, match=r"lacks 1 of the 2 pictures that the rows have, such as /old/b/1\.jpg"):
        read_clusters(run, flat)


def test_two_known_files_never_become_one(knowing, tmp_path):
    run = knowing("/old/a/1.jpg", "/old/b/1.jpg")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "1.jpg").touch()
    with pytest.raises(InputError, match="lacks 2 of the 2 pictures"):
        read_clusters(run, tmp_path / "new")


def test_a_run_that_names_no_file_takes_a_folder_in_the_order_of_the_rows(knowing, tmp_path):
    run = knowing(None, None)
    (tmp_path / "new").mkdir()
    for name in ("b.jpg", "a.jpg"):
        (tmp_path / "new" / name).touch()
    assert read_clusters(run, tmp_path / "new").files == [tmp_path / "new" / "a.jpg", tmp_path / "new" / "b.jpg"]
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "p0.parquet").touch()
    with pytest.raises(InputError, match=r"parts: holds no pictures, but tables such as p0\.parquet; name a folder of"):
        read_clusters(run, tmp_path / "parts")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.jpg", "folders: none of the .* known files? exists, such as .*; name the folder that holds them now"),
        ("secret.txt", "copy: 1 of the files that .* names are no pictures, such as .*secret.txt; a run can be from"),
        ("link.jpg", "copy: 1 of the files that .* names are no pictures, such as .*link.jpg; a run can be from"),
    ],
)
def test_what_is_not_copied_because_only_the_run_names_it(knowing, tmp_path, name, message):
    (tmp_path / "secret.txt").write_text("mine")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "secret.txt")
    folder = knowing(tmp_path / name)
    with pytest.raises(InputError, match=message):
        export(folder, "folders", tmp_path / "out", files=folder / "clusters.parquet", copy=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_folder_beside_a_table_with_paths_is_searched_for_these(tmp_path):
    features, moved = blobs(identities=4, size=6)[0], tmp_path / "moved"
    names = [f"p{23 - row:02d}.jpg" for row in range(24)]  # against the order of the folder
    (tmp_path / "parts").mkdir()
    moved.mkdir()

    def table(place, rows):
        pq.write_table(pa.table({"features": list(features[rows]), "path": [names[row] for row in rows]}), place)
        return place

    def shown(run):
        return [file.name for file in read_clusters(run).files]

    given = {"faces": table(tmp_path / "faces.parquet", range(20)), "of_parts": tmp_path / "parts"}
    table(tmp_path / "parts" / "a.parquet", range(20))
    for name in names[1:]:
        (moved / name).touch()
    options = ("--files", moved, "--adapt", "off", "--threads", 1, "-q")
    for run, table_or_parts in given.items():
        code, _, err = starfc("cluster", table_or_parts, "-o", tmp_path / run, *options)
        assert (code, err.count("\n")) == (2, 1)
        assert "moved: lacks 1 of the 20 pictures that the rows have, such as" in err
        assert not list((tmp_path / run).glob("*"))
    (moved / names[0]).touch()
    for run, table_or_parts in given.items():
        assert starfc("cluster", table_or_parts, "-o", tmp_path / run, *options)[0] == 0
        assert shown(tmp_path / run) == names[:20]
    code, _, err = starfc("assign", tmp_path / "of_parts", table(tmp_path / "new.parquet", range(20, 24)), *options[:2])
    assert code == 0, err
    assert shown(tmp_path / "of_parts") == names


@pytest.mark.long
def test_a_list_in_place_of_a_table_and_a_run_without_files(run, tmp_path):
    features, _ = blobs(identities=8, size=15)
    np.save(tmp_path / "f.npy", features)
    (tmp_path / "list.txt").write_text("".join(f"x/{row}.jpg\n" if row else "\n" for row in range(120)))
    given = ("cluster", tmp_path / "f.npy", "--quiet")
    assert starfc(*given, "-o", tmp_path / "with", "--files", tmp_path / "list.txt", "--no-edges")[0] == 0
    found = read_clusters(tmp_path / "with").files
    assert found[:2] == [None, tmp_path / "x" / "1.jpg"]
    (tmp_path / "parts").mkdir()
    pq.write_table(
        pa.table({"features": list(features), "path": [f"{row}.jpg" for row in range(120)]}),
        tmp_path / "parts/a.parquet",
    )
    assert starfc("cluster", tmp_path / "parts", "-o", tmp_path / "of_parts", "--quiet", "--no-edges")[0] == 0
    assert read_clusters(tmp_path / "of_parts").files[7] == tmp_path / "parts" / "7.jpg"
    (tmp_path / "short.txt").write_text("a\n")
    code, _, err = starfc(*given, "-o", tmp_path / "no", "--files", tmp_path / "short.txt")
    assert code == 2
    assert "short.txt: has 1 lines; needs one path for each of 120 instances" in err
    assert starfc(*given, "-o", tmp_path / "without", "--no-edges")[0] == 0
    assert "file" not in pq.read_schema(tmp_path / "without" / "clusters.parquet").names
    code, _, err = starfc("export", tmp_path / "without", "--to", "folders", "-o", tmp_path / "out")
    assert code == 2
    assert "folders: needs the files of the instances; name them with --files" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_new_rows_keep_the_files_of_the_old_ones(run, tmp_path):
    features, _ = blobs(identities=8, size=15, seed=1)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(features[:3].ravel()), features.shape[1])
    pq.write_table(pa.table({"features": rows, "file": ["a.jpg", None, "b.jpg"]}), tmp_path / "new.parquet")
    subprocess.run(["cp", "-r", run / "run", tmp_path / "copy"], check=True)
    before = read_clusters(tmp_path / "copy").files
    np.save(tmp_path / "more.npy", features[3:5])
    assign(tmp_path / "copy", tmp_path / "new.parquet", remove=[1])
    assign(tmp_path / "copy", tmp_path / "more.npy")
    found = read_clusters(tmp_path / "copy")
    assert found.rows.tolist() == [0, *range(2, 125)]
    new = [tmp_path / "a.jpg", None, tmp_path / "b.jpg", None, None]
    assert found.files == [before[0], *before[2:], *new]
    np.save(tmp_path / "last.npy", features[5:7])
    (tmp_path / "list.txt").write_text("c.jpg\nd.jpg\n")
    with pytest.raises(InputError, match="files: are those of new instances, but there are none"):
        assign(tmp_path / "copy", remove=[3], files=tmp_path / "list.txt")
    with pytest.raises(InputError, match=r"list\.txt: has 2 lines; needs one path for each of 3 instances"):
        assign(tmp_path / "copy", tmp_path / "new.parquet", files=tmp_path / "list.txt")
    assign(tmp_path / "copy", tmp_path / "last.npy", files=tmp_path / "list.txt")
    assert read_clusters(tmp_path / "copy").files == [*found.files, tmp_path / "c.jpg", tmp_path / "d.jpg"]


@pytest.mark.long
def test_the_estimator_exports_too(photos, tmp_path):
    features, _ = blobs(identities=8, size=15)
    model = StarFC(adapt="off").fit(features)
    (tmp_path / "list.txt").write_text("\n".join([str(photos[0])] * 120) + "\n")
    found = model.export(tmp_path / "t.json", "json", files=tmp_path / "list.txt", names={0: "Anna"})
    assert (found["rows"], found["named"]) == (120, 1)
    told = json.loads((tmp_path / "t.json").read_text())
    assert [row["cluster"] for row in told] == model.labels_.tolist()
    assert {row["file"] for row in told} == {str(photos[0])}
    with pytest.raises(InputError, match="to: must be one of csv, parquet, json, folders, fiftyone; found 'xml'"):
        model.export(tmp_path / "t.xml", "xml")
    model.export(tmp_path / "other.json")  # the suffix names the format
    assert len(json.loads((tmp_path / "other.json").read_text())) == len(model.labels_)
    with pytest.raises(InputError, match=r"t\.csv: ends in \.csv, but to is json; name a file that ends in \.json"):
        model.export(tmp_path / "t.csv", "json")
    numbers = np.arange(len(features)) % 8
    named, numbered = model.label_issues(np.array([f"name {y}" for y in numbers])), model.label_issues(numbers)
    np.testing.assert_array_equal(named.row, numbered.row)


def test_confidence_is_the_mean_p_of_an_instance_s_kept_edges():
    edges = parsed(5, [(0, 1, 0.9, 0.9), (0, 2, 0.7, 0.9), (1, 3, 0.6, 0.1)])
    slow = np.zeros(5)
    for i in range(5):
        p = [
            edges.edges.scores[e]
            for e in range(edges.edges.indptr[i], edges.edges.indptr[i + 1])
            if labels_of(edges)[edges.edges.cols[e]] == labels_of(edges)[i]
        ]
        slow[i] = np.mean(p) if p else 0
    np.testing.assert_allclose(edge_confidence(edges.edges, edges.kept), slow, rtol=1e-6)
    np.testing.assert_allclose(slow, [0.8, 0.9, 0.7, 0, 0], rtol=1e-6)


def test_paths_of_any_bytes(tmp_path):
    odd = tmp_path / os.fsdecode(b"\xe4.jpg")
    odd.write_bytes(b"x")
    (tmp_path / "list.txt").write_bytes(b"\xe4.jpg\n")
    (found,) = read_files(tmp_path / "list.txt", 1)
    assert found == odd
    assert file_column([found]).to_pylist() == [f"{tmp_path}/\ufffd.jpg"]
    one = Exported(np.arange(1), np.array([0]), np.ones(1, np.float32), {}, [found])
    assert write_clusters(one, "folders", tmp_path / "out")["written"] == 1
    assert (tmp_path / "out" / SINGLES / "_.jpg").read_bytes() == b"x"


def test_names_in_an_archive_of_features(tmp_path):
    np.savez(tmp_path / "f.npz", features=np.eye(3, dtype=np.float32), paths=np.array(["a.jpg", "", "c/d.jpg"]))
    assert files_beside(tmp_path / "f.npz", 3) == [tmp_path / "a.jpg", None, tmp_path / "c" / "d.jpg"]
    np.savez(tmp_path / "g.npz", features=np.eye(3, dtype=np.float32))
    assert files_beside(tmp_path / "g.npz", 3) is None
    with pytest.raises(InputError, match=r"g\.npz: has no paths of files"):
        read_files(tmp_path / "g.npz", 3)


KILLED = """
import os, signal, sys
from starfc.runs import folders
count, put = 0, folders._put
def stop(*given):
    global count
    count += 1
    if count == 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return put(*given)
folders._put = stop
from starfc.runs.export import export
export(sys.argv[1], "folders", sys.argv[2], files=sys.argv[3], copy=True)
"""


@pytest.mark.long
def test_an_export_that_was_killed_is_completed(run, tmp_path):
    given = [run / "run", tmp_path / "out", run / "pictures"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", KILLED, *given], env=environment, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "out" / "clusters.csv").exists()
    found = export(given[0], "folders", given[1], files=given[2], copy=True)
    assert (found["written"], found["kept"]) == (81, 39)
    assert len(tree(tmp_path / "out")) == 122
