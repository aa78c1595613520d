"""The command ``starfc``: what it prints and writes, where, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, blobs
from typer.testing import CliRunner

from starfc.clustering.partition import PARTITIONS
from starfc.clustering.pipeline import REFINEMENTS
from starfc.commands import COMMANDS, app
from starfc.commands.options import Partition, Refinement
from starfc.config import load_config
from starfc.recipes import RECIPES, training_config

OPTIONS = {
    "cluster": "--out --model --labels --tau1 --tau2 --k --recall --knn --knn-graph --min-cluster-size --partition "
    "--refinement --memory --threads --device --invalid-rows --feature-dim --seed --json --quiet --edges",
}


@pytest.fixture
def starfc():
    """Run the command in this process; returns exit code, stdout and stderr."""

    def run(*arguments, stdin=None):
        done = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin, catch_exceptions=False)
        return done.exit_code, done.stdout, done.stderr

    return run


def process(*arguments, stdin=b""):
    """The command as a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "starfc", *map(str, arguments)]
    return subprocess.run(command, input=stdin, env=environment, capture_output=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of features and labels of 180 instances, and the options that suit few of them."""
    folder = tmp_path_factory.mktemp("data")
    features, labels = blobs()
    np.save(folder / "f.npy", features)
    np.save(folder / "l.npy", labels)
    return folder


@pytest.fixture
def clustered(starfc, data, tmp_path):
    """``starfc cluster`` of the features with options; returns exit code, stdout and stderr."""
    return lambda *more: starfc("cluster", data / "f.npy", "-o", tmp_path / "out", *more)


@pytest.mark.parametrize("command", [function.__name__ for function in COMMANDS])
def test_help_names_every_option(starfc, command):
    code, out, _ = starfc(command, "--help")
    assert code == 0
    assert all(f"{option} " in out.replace(",", " ") + " " for option in OPTIONS[command].split())
    assert command in starfc("--help")[1]


def test_help_is_quick_and_says_exit_codes():
    script = (
        "import sys; sys.argv = ['starfc', '--help']\n"
        "from starfc.commands import main\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "print(code, sorted({'torch', 'numba', 'numpy', 'h5py', 'pyarrow'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "Exit codes: 0 done; 2" in done.stdout


def test_choices_are_the_packages():
    assert tuple(choice.value for choice in Partition) == PARTITIONS
    assert {choice.value for choice in Refinement} == set(REFINEMENTS)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("structural", "cfg_gcn_structural_ms1m.py"),
        ("gcn", "cfg_gcn_glyph.py"),
        ("hierarchical", "cfg_gcn_glyph_hierarchical.py"),
    ],
)
def test_recipes_are_those_of_the_shipped_configs(kind, name):
    shipped = load_config(ROOT / "configs" / name).as_dict()
    recipe = training_config("f.npy", "l.npy", kind, {}).as_dict()
    own = ("prefix", "pretrained", "train_name", "test_name", "train_data", "test_data", "log_config")
    assert RECIPES[kind]
    assert {k: v for k, v in recipe.items() if k not in own} == {k: v for k, v in shipped.items() if k not in own}


def test_cluster_as_json_and_as_text(starfc, clustered, data, tmp_path):
    code, out, err = clustered("--labels", data / "l.npy", "--k", 80, "--json")
    record = json.loads(out)
    assert code == 0
    assert "kNN graph: written" in err
    assert record["num_clusters"] == np.load(tmp_path / "out" / "labels.npy").max() + 1
    assert record["metrics"]["nmi"] > 0.5
    assert (tmp_path / "out" / "edges" / "manifest.json").is_file()
    code, out, err = clustered("--quiet", "--no-edges")
    assert (code, out) == (0, "")
    assert all("more than 0.1 of all instances" in line for line in err.splitlines())  # a warning
    assert not (tmp_path / "out" / "edges").exists()
    code, out, _ = clustered("--min-cluster-size", 8, "--partition", "infomap", "--tau1", 0.8)
    labels = np.load(tmp_path / "out" / "labels.npy")
    assert code == 0
    assert "no labels: metrics skipped" in out
    assert "instances of clusters of fewer than 8 have label -1" in out
    assert (np.bincount(labels[labels >= 0]) >= 8).all()
    assert f"{(labels < 0).sum()} instances" in out


def test_cluster_in_a_pipe(data, clustered, tmp_path):
    assert clustered()[0] == 0
    labels = np.load(tmp_path / "out" / "labels.npy")
    done = process("cluster", "-", "-o", "-", stdin=(data / "f.npy").read_bytes())
    assert done.returncode == 0
    np.testing.assert_array_equal(np.array(done.stdout.split(), int), labels)
    assert b"kNN graph" in done.stderr


def test_features_of_stdin_are_kept(starfc, data, tmp_path):
    out = tmp_path / "out"
    assert starfc("cluster", "-", "-o", out, stdin=(data / "f.npy").read_bytes())[0] == 0
    assert json.loads((out / "run.json").read_text())["features"] == str(out / "features.npy")
    assert (out / "features.npy").read_bytes() == (data / "f.npy").read_bytes()


def test_mistakes_are_one_message(clustered, starfc, data, tmp_path):
    cases = [
        (("--k", 20), "so knn = 80 is needed"),
        (("--tau1", 2), "tau1: between 0 and 1 needed; found 2.0"),
        (("--knn", "exact", "--recall", 0.9), "--recall: exact search finds all neighbours"),
        (("--memory", "lots"), "memory_limit: a number with MB, GB or TB"),
        (("--memory", "1MB"), "memory_limit: stage 'features' needs about"),
        (("--knn-graph", tmp_path), "no kNN graph there"),
        (("--model", tmp_path / "none"), "no such checkpoint"),
        (("--labels", tmp_path / "none.npy"), "no such labels file"),
        (("--feature-dim", 7), "16-d features where feature_dim is 7"),
        (("--refinement", "dynamic", "--partition", "infomap"), "partition.type: 'infomap' has no use"),
    ]
    for options, message in cases:
        code, out, err = clustered(*options)
        assert (code, out) == (2, "")
        assert message in err
        assert sum(line.startswith("error: ") for line in err.splitlines()) == 1
    assert starfc("cluster", data / "f.npy", "-o", "-", "--json")[0] == 2
    for usage in (("cluster",), ("clutser",), ("cluster", "f", "-o", "x", "--partition", "louvain")):
        code, out, err = starfc(*usage)
        assert (code, out) == (2, "")
        assert "Usage: " in err
