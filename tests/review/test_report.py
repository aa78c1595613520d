"""Test the folder of a report: its data against the measures, all sources of pictures, and refused inputs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from helpers.review import clique, labels_of, parsed
from helpers.samples import blobs
from starfc import InputError, StarFC
from starfc.clustering.parsing import Decision
from starfc.data.dataset import Features
from starfc.errors import MissingFileError
from starfc.review.images import open_pictures
from starfc.review.members import DRAWN, components_2d
from starfc.review.overview import warnings_of
from starfc.review.report import write_report

RULE = Decision(0.6, 0.5)
EDGES = [
    *clique(range(4)),
    *clique(range(4, 8)),
    (3, 4, 0.7, 0.6),
    (8, 9, 0.9, 0.9),
    (0, 8, 0.8, 0.45),
    (1, 9, 0.7, 0.3),
]


def data(folder: Path, name: str):
    """The value that a data script hands over."""
    text = (folder / "data" / f"{name}.js").read_text()
    head = f'starfc.put("{name}",'
    assert text.startswith(head)
    assert text.endswith(");\n")
    return json.loads(text[len(head) : -3])


def picture(row: int, size: int = 24) -> np.ndarray:
    """A picture that says which row it is of: its grey."""
    return np.full((size, size), 20 * row, np.uint8)


@pytest.fixture
def small():
    """Eleven instances: two cliques on a bridge, a pair that is almost joined to them, one alone."""
    edges = parsed(11, EDGES)
    features = np.random.default_rng(0).normal(size=(11, 5)).astype(np.float32)
    return {"labels": labels_of(edges), "parsed": edges, "rule": RULE, "features": Features(features)}


@pytest.mark.long
def test_the_data_are_the_measures(small, tmp_path):
    names = [f"person {row}" for row in range(11)]
    found = write_report(tmp_path / "report", **small, names=names, title="small")
    folder = tmp_path / "report"
    index, clusters, merges = (data(folder, name) for name in ("index", "clusters", "merges"))
    assert (index["instances"], index["clusters"], index["singletons"]) == (11, 3, 1)
    assert (index["doubtful"], index["merges"], index["title"], index["thumbs"]) == (1, 1, "small", None)
    assert found["files"] == sum(path.is_file() for path in folder.rglob("*"))
    assert found["bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert clusters["size"] == [8, 2, 1]
    assert clusters["edges"] == [13, 1, 0]
    assert list(clusters["cuts"]) == ["0", "1"]
    bridge = clusters["cuts"]["0"]
    assert bridge["piece"] == 4
    assert [bridge["edges"][0][end][0] for end in "ab"] == [3, 4]
    assert (bridge["edges"][0]["p"], bridge["edges"][0]["intimacy"]) == (0.7, 0.6)
    (merge,) = merges
    assert (merge["a"][0], merge["b"][0], merge["count"], merge["margin"]) == (0, 8, 2, -0.05)
    assert merge["a"][3] == "person 0"
    assert data(folder, "rows") == small["labels"].tolist()
    assert data(folder, "names") == names

    members = data(folder, "members-0")
    assert clusters["starts"] == [0]
    assert [sorted(cluster["rows"]) for cluster in members] == [list(range(8)), [8, 9], [10]]
    assert clusters["medoid"] == [cluster["rows"][0] for cluster in members]
    rows = members[0]["rows"]
    unit = small["features"].rows(np.arange(8))
    assert rows[0] == (unit @ unit.T).sum(axis=1).argmax()  # the medoid: most similar to the members
    assert members[0]["typical"] == sorted(members[0]["typical"], reverse=True)
    assert sorted(rows[at] for at in members[0]["piece"]) in ([0, 1, 2, 3], [4, 5, 6, 7])
    assert len(members[0]["xy"]) == 16
    assert 0 <= min(members[0]["xy"]) <= max(members[0]["xy"]) == 999
    assert members[0]["names"] == [f"person {row}" for row in rows]


def test_nothing_comes_from_elsewhere(small, tmp_path):
    write_report(tmp_path / "report", **small)
    for path in (tmp_path / "report").rglob("*.*"):
        if path.suffix in (".js", ".css", ".html"):
            text = path.read_text()
            assert "http://" not in text
            assert "https://" not in text
            assert "fetch(" not in text


def test_without_features_members_are_by_confidence(small, tmp_path):
    write_report(tmp_path / "report", **{**small, "features": None})
    first = data(tmp_path / "report", "members-0")[0]
    assert first["typical"] is None
    assert "xy" not in first
    assert first["confidence"] == sorted(first["confidence"], reverse=True)
    assert data(tmp_path / "report", "merges")[0]["similarity"] is None


def test_communities_and_clusters_left_out(small, tmp_path):
    labels = np.where(small["labels"] == 0, 0, -1)
    write_report(tmp_path / "report", **{**small, "labels": labels, "rule": Decision(0.6, 0.5, partition="infomap")})
    index = data(tmp_path / "report", "index")
    assert (index["clusters"], index["numbered"], index["rule"]["communities"]) == (3, 1, True)
    assert data(tmp_path / "report", "rows") == small["labels"].tolist()


def test_a_new_report_replaces_the_old_one_and_nothing_else(small, tmp_path):
    images = np.stack([picture(row) for row in range(11)])
    write_report(tmp_path / "report", **small, images=images, names=list("abcdefghijk"))
    assert (tmp_path / "report" / "thumbs" / "0.webp").is_file()
    write_report(tmp_path / "report", **small)
    assert not (tmp_path / "report" / "thumbs").exists()
    assert not (tmp_path / "report" / "data" / "names.js").exists()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("x")
    with pytest.raises(InputError, match="is not empty and holds no report"):
        write_report(tmp_path / "letters", **small)


def kinds(tmp_path: Path) -> dict:
    """The same eleven pictures in every form."""
    images = np.stack([picture(row) for row in range(11)])
    np.save(tmp_path / "grey.npy", images)
    np.savez(tmp_path / "grey.npz", images=images)
    np.save(tmp_path / "colour.npy", np.repeat(images[..., None], 3, axis=3))
    for folder, name in (("by_row", "{:05d}.png"), ("by_name", "face-{:02d}.png")):
        (tmp_path / folder).mkdir()
        for row in range(11):
            Image.fromarray(images[row]).save(tmp_path / folder / name.format(row))
    (tmp_path / "list.txt").write_text("\n".join(f"by_name/face-{row:02d}.png" for row in range(11)) + "\n")
    return {
        "array": images,
        **{name: tmp_path / name for name in ("grey.npy", "grey.npz", "colour.npy", "by_row", "by_name", "list.txt")},
    }


@pytest.mark.long
def test_pictures_of_every_kind_come_to_their_place(small, tmp_path):
    for name, source in kinds(tmp_path).items():
        folder = tmp_path / "reports" / name
        write_report(folder, **small, images=source)
        thumbs = data(folder, "index")["thumbs"]
        assert thumbs["sheets"] == 1
        sheet = np.asarray(Image.open(folder / "thumbs" / "0.webp").convert("L"))
        order = [row for cluster in data(folder, "members-0") for row in cluster["rows"]]
        tile = thumbs["tile"]
        middle = 12 if tile == 24 else 32
        for place, row in enumerate(order):
            x = place % thumbs["columns"] * tile + middle
            assert abs(int(sheet[place // thumbs["columns"] * tile + middle, x]) - 20 * row) < 8, (name, row)
        merge = data(folder, "merges")[0]
        assert order[merge["a"][1]] == merge["a"][0] == 0
    assert data(tmp_path / "reports" / "list.txt", "names")[3] == "face-03.png"


def test_pictures_that_are_missing_are_grey_and_counted(small, tmp_path, caplog):
    kinds(tmp_path)
    (tmp_path / "by_row" / "00004.png").unlink()
    (tmp_path / "by_row" / "00005.png").write_bytes(b"no picture")
    write_report(tmp_path / "report", **small, images=tmp_path / "by_row")
    assert "2 of 11 are missing or cannot be read" in caplog.text


def test_what_is_no_pictures_or_names(small, tmp_path):
    kinds(tmp_path)
    np.save(tmp_path / "float.npy", np.zeros((11, 4, 4)))
    (tmp_path / "short.txt").write_text("a.png\n")
    (tmp_path / "nowhere.txt").write_text("nowhere.png\n" * 11)
    (tmp_path / "by_name" / "face-03.png").unlink()
    Image.fromarray(picture(1)).save(tmp_path / "by_row" / "11.png")
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    for source, message in (
        ("float.npy", "uint8"),
        ("short.txt", "has 1 lines; needs one path for each of 11"),
        ("nowhere.txt", "no such image"),
        ("absent", "no such images"),
        ("by_name", "has 10 images; needs one for each of 11"),
        ("by_row", "named after a row, but the rows are 0 to 10"),
        ("broken.npy", "not a readable NumPy file"),
    ):
        with pytest.raises(InputError, match=message):
            open_pictures(tmp_path / source, 11)
    with pytest.raises(InputError, match="2 names"):
        write_report(tmp_path / "report", **small, names=["a", "b"])
    with pytest.raises(MissingFileError, match="no such file of names"):
        write_report(tmp_path / "report", **small, names=tmp_path / "absent")


def test_the_threshold_surface(small, tmp_path):
    path = tmp_path / "surface.csv"
    path.write_text(
        "refinement,tau1,tau2,precision,fscore\nfixed,0.5,0.4,1,0.7\nfixed,0.5,0.5,1,0.8\nfixed,0.6,0.4,1,0.9\n"
        "dynamic,0.5,0.4,1,0.1\n"
    )
    write_report(tmp_path / "report", **small, surface=path)
    surface = data(tmp_path / "report", "index")["surface"]
    assert surface == {"value": "fscore", "tau1": [0.5, 0.6], "tau2": [0.4, 0.5], "rows": [[0.7, 0.8], [0.9, None]]}


def test_warnings_of_a_giant_and_of_many_alone(tmp_path):
    edges = parsed(20, clique(range(4)))
    write_report(tmp_path / "report", labels_of(edges), edges, RULE)
    giant, alone = data(tmp_path / "report", "index")["warnings"]
    assert giant.startswith("Cluster 0 holds 4 of 20 instances (20.0%)")
    assert alone.startswith("16 instances (80%) are alone")


@pytest.mark.parametrize(("partition", "advice"), [("infomap", "raise tau1."), ("components", "raise tau1 or tau2.")])
def test_a_warning_names_the_thresholds_that_the_run_uses(partition, advice):
    record = {"diagnostics": {"giant_share": 0.1}, "knn_graph": {"k": 4}, "refinement": "fixed", "partition": partition}
    (giant,) = warnings_of(SimpleNamespace(sizes=np.array([20, 2, 2])), 24, record)
    assert giant.endswith(advice)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (2, 4), (5, 1)])
def test_principal_components_keep_what_distances_two_directions_have(shape):
    rng = np.random.default_rng(3)
    flat = rng.normal(size=(shape[0], min(2, shape[1]))) @ rng.normal(size=(min(2, shape[1]), shape[1]))
    xy = components_2d(flat.astype(np.float32))
    assert xy.shape == (shape[0], 2)
    apart = [np.linalg.norm(points[:, None] - points[None], axis=2) for points in (flat, xy)]
    np.testing.assert_allclose(apart[0], apart[1], atol=1e-3)


def test_of_a_large_cluster_a_sample_is_drawn_with_the_bridge(tmp_path):
    n = DRAWN + 500
    edges = parsed(n, [(i, i + 1, 0.8, 0.75) for i in range(n - 1)])
    features = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    write_report(tmp_path / "report", labels_of(edges), edges, RULE, features=Features(features))
    first = data(tmp_path / "report", "members-0")[0]
    assert DRAWN <= len(first["drawn"]) <= DRAWN + 2
    ends = data(tmp_path / "report", "clusters")["cuts"]["0"]["edges"][0]
    assert {ends["a"][0], ends["b"][0]} <= {first["rows"][at] for at in first["drawn"]}
    assert len(first["piece"]) == n // 2


def test_the_estimator_writes_a_report(tmp_path):
    features, _ = blobs(noise=0.8)
    estimator = StarFC(tau1=0.6, tau2=0.5).fit(features)
    found = estimator.report(tmp_path / "report")
    assert found["clusters"] == estimator.labels_.max() + 1
    assert data(tmp_path / "report", "rows") == estimator.labels_.tolist()


@pytest.fixture
def changed(small):
    """The same after rows were added and removed: the pair is cluster 0, the cliques cluster 4, row 10 is gone."""
    labels = np.array([4] * 8 + [0, 0, -1])
    return {**small, "labels": labels, "removed": [10]}


@pytest.mark.parametrize("with_features", [True, False])
def test_ids_without_instances_and_removed_rows_are_not_shown(changed, tmp_path, with_features):
    if not with_features:
        changed["features"] = None
    images = np.stack([picture(row) for row in range(11)])
    found = write_report(tmp_path / "report", **changed, images=images)
    folder = tmp_path / "report"
    index, clusters = data(folder, "index"), data(folder, "clusters")
    assert (found["instances"], found["clusters"], index["singletons"]) == (10, 2, 0)
    assert [(row["low"], row["clusters"]) for row in index["sizes"] if row["clusters"]] == [(2, 1), (8, 1)]
    assert clusters["size"] == [2, 0, 0, 0, 8]
    assert list(clusters["cuts"]) == ["0", "4"]
    assert data(folder, "rows") == changed["labels"].tolist()
    members = data(folder, "members-0")
    assert [sorted(cluster["rows"]) for cluster in members] == [[8, 9], [], [], [], list(range(8))]
    assert clusters["medoid"][4] == members[4]["rows"][0]
