"""Run the entry points like users do: check the results, and one clear message for every possible mistake."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from helpers.paths import ROOT
from helpers.samples import blobs
from starfc.commands import app
from starfc.models.checkpoint import save_model
from starfc.models.gcn import StarFCModel
from starfc.shards.engine import LocalEngine


@pytest.fixture
def cluster(command, workspace):
    """test_final.py on the workspace's config."""
    return lambda *more: command(
        "test_final.py", "--config", workspace / "config.py", "--out", workspace / "out", *more
    )


@pytest.mark.long
def test_a_run_writes_everything(cluster, workspace):
    code, out, _ = cluster("--cfg-options", "tau1=0.3", "tau2=0.4")
    assert code == 0
    record = json.loads((workspace / "out" / "run.json").read_text())
    labels = np.load(workspace / "out" / "labels.npy")
    assert labels.dtype == np.int64
    assert labels.shape == (180,)
    assert record["num_clusters"] == len(np.unique(labels)) == labels.max() + 1
    np.testing.assert_array_equal(np.loadtxt(workspace / "out" / "labels.meta", dtype=int), labels)
    table = pq.read_table(workspace / "out" / "clusters.parquet")
    assert table.column_names == ["row", "label", "confidence"]
    np.testing.assert_array_equal(table["label"], labels)
    assert set(record["metrics"]) == {"pairwise", "bcubed", "nmi"}
    assert set(record["metrics"]["pairwise"]) == {"precision", "recall", "fscore"}
    assert all(set(stage) == {"name", "seconds", "peak_rss_mb"} for stage in record["stages"])
    assert record["config"]["tau1"] == 0.3
    assert record["refinement"] == "fixed"
    assert {"versions", "git", "machine", "seed", "knn_graph", "peak_rss_mb"} <= set(record)
    found = record["diagnostics"]
    assert found["candidates"] >= found["parsed"]["edges"] > found["refined"]["edges"] > 0
    assert found["refined"]["components"] == record["num_clusters"]
    assert found["refined"]["largest"] == np.bincount(labels).max()
    assert found["sizes"][0]["clusters"] == record["num_singletons"]
    for text in (
        "stage",
        "candidates",
        "NI > 0.4",
        "cluster size",
        "pairwise",
        "bcubed",
        "nmi",
        f"{record['num_clusters']} clusters",
        str(workspace / "out"),
    ):
        assert text in out
    done = CliRunner().invoke(app, ["explain", str(workspace / "out"), "0", "1"])
    features = workspace / "data" / "features" / "part1_test.bin"
    assert done.exit_code == 2
    assert (
        "the results of test_final.py, test_dynamic.py and starfc cluster --no-edges hold none; run starfc cluster "
        f"{features} -o DIR --model {workspace / 'model'} --feature-dim 16\n"
    ) in done.stderr


def test_the_stored_graph_is_used_again(cluster, workspace):
    cluster()
    first = np.load(workspace / "out" / "labels.npy")
    _, _, err = cluster()
    assert "kNN graph: read from" in err
    np.testing.assert_array_equal(np.load(workspace / "out" / "labels.npy"), first)


@pytest.mark.parametrize("script", ["test_final.py", "test_dynamic.py"])
def test_on_shards(command, workspace, monkeypatch, script):
    given = "--config", workspace / "config.py", "--cfg-options", "tau1=0.3", "tau2=0.4"
    engine = "--engine", "local", "--shard-rows", 128
    monkeypatch.setattr("starfc.shards.engine.LocalEngine", lambda workers: LocalEngine(0))  # in this process
    code, _, err = command(script, *given, "--out", workspace / "there", *engine)
    assert code == 0, err
    assert not list(workspace.glob("there.shards"))
    assert command(script, *given, "--out", workspace / "here")[0] == 0
    for name in ("labels.npy", "clusters.parquet"):
        assert (workspace / "there" / name).read_bytes() == (workspace / "here" / name).read_bytes()
    there, here = (json.loads((workspace / name / "run.json").read_text()) for name in ("there", "here"))
    for name in ("metrics", "diagnostics", "thresholds", "doubts"):
        assert there[name] == here[name]
    assert (
        "is not read, because --engine builds its own kNN graph"
        in command(script, *given, "--out", workspace / "there", *engine)[2]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workers", 1), "--workers: needs --engine"),
        (("--engine", "local", "--workers", 0), "--workers: at least 1 needed; found 0"),
        (("--engine", "wait"), "--store: name a folder or URL that all machines see"),
        (("--engine", "local", "--shard-rows", 100), "--shard-rows: a multiple of 128 needed; found 100"),
        (("--engine", "local", "--address", "auto"), "--address: needs --engine ray; found local"),
    ],
)
def test_options_of_engines(cluster, options, message):
    code, _, err = cluster(*options)
    assert code == 2
    assert f"error: {message}" in err


def test_exact_search_under_its_earlier_name(cluster, workspace):
    """Configs, graphs and runs that say ``faiss``, as published, are what they were."""
    cluster()
    first, knns = np.load(workspace / "out" / "labels.npy"), workspace / "data" / "knns" / "part1_test"
    record = json.loads((workspace / "out" / "run.json").read_text())
    assert record["config"]["knn_method"] == "exact"
    (knns / "exact_k_10").rename(knns / "faiss_k_10")
    manifest = json.loads((knns / "faiss_k_10" / "manifest.json").read_text())
    (knns / "faiss_k_10" / "manifest.json").write_text(json.dumps(manifest | {"backend": "faiss"}))
    (knns / "faiss_k_10" / "files.json").unlink()
    for options in ((), ("--cfg-options", "knn_method=faiss")):
        _, _, err = cluster(*options)
        assert f"kNN graph: read from {knns / 'faiss_k_10'}" in err
        np.testing.assert_array_equal(np.load(workspace / "out" / "labels.npy"), first)
    record = json.loads((workspace / "out" / "run.json").read_text())
    assert (record["config"]["knn_method"], record["knn_graph"]["backend"]) == ("exact", "faiss")
    assert not (knns / "exact_k_10").exists()


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".bin", ".npy"])
def test_a_users_own_file(cluster, workspace, suffix):
    features, labels = blobs(seed=5)
    path = workspace / f"mine{suffix}"
    features.tofile(path) if suffix == ".bin" else np.save(path, features.astype(np.float16))
    code, out, _ = cluster("--features", path)
    assert code == 0
    assert "no labels: no metrics" in out
    assert json.loads((workspace / "out" / "run.json").read_text())["metrics"] == {}
    np.save(workspace / "identities.npy", labels)
    assert cluster("--features", path, "--labels", workspace / "identities.npy")[0] == 0
    assert 0 < json.loads((workspace / "out" / "run.json").read_text())["metrics"]["nmi"] <= 1
    np.save(workspace / "other.npy", blobs(seed=6)[0])  # another file into the same folder
    assert cluster("--features", workspace / "other.npy")[0] == 0


def test_a_split_without_labels(cluster, workspace):
    (workspace / "data" / "labels" / "part1_test.meta").unlink()
    code, out, _ = cluster()
    assert code == 0
    assert "no metrics" in out


def test_rows_without_direction_can_be_singletons(cluster, workspace):
    path = workspace / "data" / "features" / "part1_test.bin"
    features = np.fromfile(path, np.float32).reshape(-1, 16)
    features[[2, 50]] = [[np.nan], [0]]
    features.tofile(path)
    assert cluster("--cfg-options", "invalid_rows=singleton")[0] == 0
    labels = np.load(workspace / "out" / "labels.npy")
    assert len(labels) == 180
    assert (np.bincount(labels)[labels[[2, 50]]] == 1).all()
    assert json.loads((workspace / "out" / "run.json").read_text())["num_invalid_rows"] == 2


@pytest.mark.long
def test_training_then_clustering(command, workspace):
    config = workspace / "config.py"
    code, _, _ = command("train.py", "--config", config, "--work-dir", workspace / "run")
    assert code == 0
    arguments = ["--config", config, "--model", workspace / "run", "--out", workspace / "out"]
    assert command("test_final.py", *arguments)[0] == 0


def replace_rows(value):
    def damage(w):
        path = w / "data" / "features" / "part1_test.bin"
        features = np.fromfile(path, np.float32).reshape(-1, 16)
        features[[7, 9]] = value
        features.tofile(path)

    return damage


def keep_rows(count):
    def damage(w):
        (w / "data" / "labels" / "part1_test.meta").unlink()
        path = w / "data" / "features" / "part1_test.bin"
        path.write_bytes(path.read_bytes()[: count * 64])

    return damage


def other_npz(n, k):
    def damage(w):
        folder = w / "data" / "knns" / "part1_test"
        folder.mkdir(parents=True)
        ids = np.tile(np.arange(k, dtype=float), (n, 1))
        np.savez(folder / "faiss_k_10.npz", data=np.stack([ids, np.zeros((n, k))], axis=1))

    return damage


BAD_INPUTS = {
    "missing features": (
        lambda w: (w / "data/features/part1_test.bin").unlink(),
        [],
        "no such features file; looked for",
    ),
    "not whole rows": (
        lambda w: (w / "data/features/part1_test.bin").write_bytes(b"0" * 1003),
        [],
        "1,003 bytes are not a whole number of 16-d float32 rows",
    ),
    "labels of another length": (
        lambda w: (w / "data/labels/part1_test.meta").write_text("1\n2\n"),
        [],
        "2 labels for 180 features",
    ),
    "NaN rows": (replace_rows(np.nan), [], "2 of 180 rows have NaN or infinite values, first rows [7, 9]"),
    "zero rows": (replace_rows(0), [], "2 of 180 rows have zero norm (no direction), first rows [7, 9]"),
    "npz of another k": (other_npz(180, 8), [], "knn = 10 needed; found a kNN graph of k = 8"),
    "npz of another N": (other_npz(170, 10), [], "180 nodes needed"),
    "npz of other features": (other_npz(180, 10), [], "stale kNN graph: its similarities differ"),
    "truncated checkpoint": (
        lambda w: (w / "model/Head.pth").write_bytes((w / "model/Head.pth").read_bytes()[:700]),
        [],
        "Head.pth: not a readable checkpoint",
    ),
    "checkpoint of other widths": (
        lambda w: save_model(StarFCModel(16, 24), w / "model"),
        [],
        "feature_dim = 16, nhid = 32 needed; found d = 16, h = 24",
    ),
    "one half of another width": (
        lambda w: torch.save(StarFCModel(16, 24).head.state_dict(), w / "model/Head.pth"),
        [],
        "Head.pth: wrong tensors: classifier.0.bias (32,) needed, found (24,)",
    ),
    "missing checkpoint": (lambda w: (w / "model/Backbone.pth").unlink(), [], "no such checkpoint"),
    "unknown key": (None, ["--cfg-options", "tua1=0.5"], "tua1: unknown key; did you mean tau1?"),
    "tau1 outside": (None, ["--cfg-options", "tau1=1.5"], "tau1: must be between 0 and 1; found 1.5"),
    "tau2 outside": (None, ["--cfg-options", "tau2=-0.1"], "tau2: must be between 0 and 1; found -0.1"),
    "no instance": (keep_rows(0), [], "needs at least one row; found shape (0, 16)"),
    "k of one": (None, ["--cfg-options", "knn=1"], "knn: must be at least 2; found 1"),
    "memory": (None, ["--cfg-options", "memory_limit=1MB"], "memory_limit: the process itself uses"),
    "no GPU": (None, ["--cfg-options", "knn_method=faiss_gpu"], "'faiss_gpu' needs a GPU build"),
    "missing own file": (None, ["--features", "nowhere.npy"], "nowhere.npy: no such features file"),
    "labels alone": (None, ["--labels", "x.meta"], "--labels: needs --features"),
}


@pytest.mark.long
@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_message(cluster, workspace, case):
    damage, arguments, message = BAD_INPUTS[case]
    (workspace / "out").mkdir()
    (workspace / "out" / "labels.npy").write_text("from an earlier run")
    if damage:
        damage(workspace)
    code, out, err = cluster("--overwrite", *arguments)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(errors) == 1
    assert message in err
    assert "Traceback" not in err + out
    assert (workspace / "out" / "labels.npy").read_text() == "from an earlier run"


def test_results_that_cannot_be_written_stop_at_once(command, workspace):
    (workspace / "file").write_text("")
    arguments = ["--config", workspace / "config.py"]
    code, _, err = command("test_final.py", *arguments, "--out", workspace / "file" / "out")
    assert code == 2
    assert "the folder for the results cannot be created" in err
    code, _, err = command("train.py", *arguments, "--work-dir", workspace / "file")
    assert code == 2
    assert "the folder for the results cannot be created" in err


def test_threads_and_the_log_level_are_options_too(cluster, workspace):
    code, _, err = cluster("--threads", "1", "--verbose", "--cfg-options", "threads=2", "th_sim=0.1")
    record = json.loads((workspace / "out" / "run.json").read_text())
    assert (code, record["machine"]["threads"], record["config"]["th_sim"]) == (0, 2, 0.1)  # the last one counts
    assert "kNN graph: needs about" in err
    code, out, err = cluster("--cfg-options", "threads=2", "--threads", "1", "-q")
    record = json.loads((workspace / "out" / "run.json").read_text())
    assert (code, record["machine"]["threads"]) == (0, 1)
    assert "kNN graph" not in err
    assert "pairwise" in out


def test_an_option_without_value_is_a_usage_error(cluster):
    code, _, err = cluster("--cfg-options", "tau1")
    assert code == 2
    assert "needs KEY=VALUE; found 'tau1'" in err


def test_a_stale_stored_graph_is_refused(cluster, workspace):
    assert cluster()[0] == 0
    replace_rows(1.0)(workspace)
    code, _, err = cluster()
    assert code == 2
    assert "stale kNN graph: it was built from other features" in err


def test_a_stored_graph_of_other_parameters_is_refused(cluster, workspace):
    options = ["--cfg-options", "knn_method=ivf", "knn_params.nlist=40"]
    assert cluster(*options, "knn_params.nprobe=1")[0] == 0
    assert cluster(*options, "knn_params.nprobe=1")[0] == 0
    code, _, err = cluster(*options, "knn_params.nprobe=3")
    assert code == 2
    assert "found a kNN graph built with {'nprobe': 1}" in err
    manifest = next((workspace / "data").rglob("manifest.json"))
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"recall": 0.5}))
    (manifest.parent / "files.json").unlink()
    code, _, err = cluster("--cfg-options", "knn_method=ivf")
    assert code == 2
    assert "knn_recall 0.98 needed; found a kNN graph of recall 0.5" in err
    assert cluster("--cfg-options", "knn_method=ivf", "knn_recall=0.1")[0] == 0
    assert not list((workspace / "data").rglob("*.partial"))


@pytest.mark.parametrize("script", ["test_final.py", "train.py"])
def test_without_arguments_ms1m_is_asked_for(command, script, tmp_path):
    arguments = ["--cfg-options", f"prefix={tmp_path}"]
    code, _, err = command(script, *arguments)
    assert code == 2
    for part in ("no such features file", "docs/ms1m.md", "--config configs/cfg_gcn_glyph.py"):
        assert part in err


def test_a_bug_keeps_its_traceback(monkeypatch, cluster):
    monkeypatch.setattr("starfc.clustering.arrays.with_singletons", lambda *_a, **_k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cluster()


@pytest.mark.long
def test_as_a_process_from_another_folder(workspace):
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "test_final.py",
            "--config",
            workspace / "config.py",
            "--out",
            "here",
            "--cfg-options",
            "tau1=2",
        ],
        cwd=workspace,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
