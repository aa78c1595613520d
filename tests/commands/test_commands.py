"""Test the command ``starfc``: its output, its files, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import fsspec
import numpy as np
import pytest
from typer.testing import CliRunner

from helpers.paths import ROOT
from helpers.samples import blobs
from starfc.clustering.pipeline import REFINEMENTS
from starfc.commands import COMMANDS, app
from starfc.commands.evaluate import Metric
from starfc.commands.options import PartitionName, RefinementName
from starfc.commands.train import Recipe
from starfc.config.config import load_config
from starfc.config.recipes import RECIPES, training_config
from starfc.data.files import read_features, read_labels
from starfc.errors import InputError
from starfc.evaluation.metrics import evaluate as scores
from starfc.models.checkpoint import save_model
from starfc.models.hierarchical import HierarchicalModel
from starfc.models.kinds import KINDS
from starfc.runtime.defaults import METRICS, PARTITIONS
from starfc.runtime.interrupts import Stopped

OPTIONS = {
    "cluster": "--out --model --labels --tau1 --tau2 --k --recall --knn --knn-graph --min-cluster-size --partition "
    "--refinement --memory --threads --device --device-memory --invalid-rows --copies --feature-dim --seed "
    "--json --quiet --verbose --edges --engine --workers --address --store --shard-rows --files --marks",
    "ask": "--count --out --threads --json --quiet --verbose",
    "apply": "--same --different --threads --json --quiet --verbose",
    "undo": "--threads --json --quiet",
    "name": "--remove --json --quiet",
    "assign": "--remove --apply-merges --labels --files --threads --json --quiet --verbose",
    "explain": "--json",
    "report": "--out --images --names --thumbnails --labels --questions --threads --json --quiet --verbose",
    "review": "--images --thumbnails --port --no-browser --threads --quiet --verbose",
    "export": "--out --to --files --copy --overwrite --json --quiet",
    "train": "--out --type --config --epochs --k --set --resume --invalid-rows --feature-dim --memory --threads "
    "--device --device-memory --seed --json --quiet --verbose",
    "evaluate": "--metrics --errors --out --overwrite --json --quiet",
    "knn": "--out --k --knn --recall --invalid-rows --feature-dim --memory --threads --device --device-memory --seed "
    "--json --quiet --verbose",
    "tune": "--model --out --k --knn --recall --invalid-rows --feature-dim --memory --threads --device "
    "--device-memory --seed --json --quiet --verbose",
    "convert": "--labels --feature-dim --dtype --json --quiet",
    "info": "--labels --feature-dim --json",
    "status": "--json",
    "task": "--threads --quiet",
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


@pytest.mark.long
@pytest.mark.parametrize("command", [function.__name__ for function in COMMANDS])
def test_help_names_every_option(starfc, command):
    code, out, _ = starfc(command, "--help")
    assert code == 0
    assert all(f"{option} " in out.replace(",", " ") + " " for option in OPTIONS[command].split())
    assert command in starfc("--help")[1]
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    section = page.split(f"\n## starfc {command}\n")[1].split("\n## ")[0]
    assert set(re.findall(r"--[a-z][a-z0-9-]*", section)) == set(re.findall(r"--[a-z][a-z0-9-]*", out))


def loaded_by(*arguments: str) -> tuple[str, list[str]]:
    """What a command prints, and which large libraries it loads."""
    script = (
        f"import sys; sys.argv = ['starfc', *{arguments!r}]\n"
        "from starfc.commands import app\n"
        "try: app(prog_name='starfc')\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*sorted({'torch', 'numba', 'numpy', 'scipy', 'sklearn', 'h5py', 'pyarrow'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    text, last = done.stdout[:-1].rsplit("\n", 1)
    return text, last.split()


@pytest.mark.long
def test_help_is_quick_and_says_exit_codes():
    text, libraries = loaded_by("--help")
    assert libraries == []
    assert "Exit codes: 0 success; 2" in text
    for command in COMMANDS:
        assert loaded_by(command.__name__, "--help")[1] == []


@pytest.mark.long
@pytest.mark.parametrize("module", ["starfc", "starfc.config.config", "starfc.commands.scripts"])
def test_options_are_read_without_large_libraries(module):
    script = f"import sys, {module}; print(*{{'torch', 'numba', 'scipy', 'sklearn', 'pyarrow'}} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.long
@pytest.mark.parametrize("script", ["train.py", "test_final.py", "test_dynamic.py", "scripts/choose_thresholds.py"])
def test_help_of_the_scripts_is_quick(script):
    code = (
        f"import runpy, sys; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "print('large', *{'torch', 'numba', 'scipy', 'sklearn', 'pyarrow'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "large"


@pytest.mark.long
def test_commands_without_a_model_do_not_load_torch(tmp_path):
    np.save(tmp_path / "features.npy", np.random.default_rng(0).normal(size=(20, 4)))
    np.save(tmp_path / "labels.npy", np.arange(20) // 4)
    names = [str(tmp_path / name) for name in ("features.npy", "labels.npy", "out.fvecs")]
    for arguments in (("info", names[0]), ("evaluate", names[1], names[1]), ("convert", names[0], names[2])):
        assert "torch" not in loaded_by(*arguments)[1]


def test_choices_are_the_packages():
    assert tuple(choice.value for choice in PartitionName) == PARTITIONS
    assert {choice.value for choice in RefinementName} == set(REFINEMENTS)
    assert tuple(choice.value for choice in Metric) == METRICS
    assert [choice.value for choice in Recipe] == [kind.recipe for kind in KINDS.values()]
    assert {path.stem for path in RECIPES.glob("[a-z]*.py")} == {kind.recipe for kind in KINDS.values()}
    for kind in KINDS.values():
        assert load_config(ROOT / "configs" / kind.config).model.type == kind.name


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
    assert KINDS[recipe["model"]["type"]].recipe == kind
    assert {k: v for k, v in recipe.items() if k not in own} == {k: v for k, v in shipped.items() if k not in own}


@pytest.mark.long
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
    warnings = (
        "more than 0.1 of all instances",
        "unlike the data that the model was trained on",
        "neighbour lists have 29 rows; in the training of the model they had 79",
    )
    assert all(any(warning in line for warning in warnings) for line in err.splitlines())
    assert not (tmp_path / "out" / "edges").exists()
    code, out, _ = clustered("--min-cluster-size", 8, "--partition", "infomap", "--tau1", 0.8)
    labels = np.load(tmp_path / "out" / "labels.npy")
    assert code == 0
    assert "no labels: no metrics" in out
    assert "instances in clusters of fewer than 8 instances have label -1" in out
    assert (np.bincount(labels[labels >= 0]) >= 8).all()
    assert f"{(labels < 0).sum()} instances" in out


@pytest.mark.long
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


@pytest.mark.long
def test_features_and_results_at_urls(starfc, data, tmp_path):
    """The results that are uploaded are those of a file; a copy of them elsewhere is a run folder too."""
    fs = fsspec.filesystem("memory")
    fs.put_file(str(data / "f.npy"), "/urls/parts/0.npy")
    try:
        assert starfc("cluster", "memory://urls/parts/", "-o", "memory://urls/run", "--k", 20)[0] == 0
        code, _, error = starfc("cluster", "memory://urls/parts/", "-o", "memory://urls/run")
        assert code == 2
        assert "memory://urls/run: a new or empty folder needed for the results" in error
        fs.get("/urls/run", str(tmp_path / "copy"), recursive=True)
    finally:
        fs.rm("/urls", recursive=True)
    assert starfc("cluster", data / "f.npy", "-o", tmp_path / "out", "--k", 20)[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "copy" / "labels.npy"), np.load(tmp_path / "out" / "labels.npy"))
    assert starfc("assign", tmp_path / "copy", data / "f.npy")[0] == 0
    assert starfc("cluster", data, "-o", data)[2].startswith(f"error: {data}: the results would become parts")


@pytest.mark.long
def test_mistakes_are_one_message(clustered, starfc, data, tmp_path):
    cases = [
        (("--tau1", 2), "--tau1: must be between 0 and 1; found 2.0"),
        (("--knn", "exact", "--recall", 0.9), "--recall: exact search finds all neighbours"),
        (("--knn", "torch", "--recall", 0.9), "--recall: exact search finds all neighbours"),
        (("--memory", "lots"), "--memory: must be a number with MB, GB or TB"),
        (("--device-memory", "lots"), "--device-memory: must be a number with MB, GB or TB"),
        (("--memory", "1MB"), "--memory: the process itself uses"),
        (("--knn-graph", tmp_path), "no kNN graph found"),
        (("--model", tmp_path / "none"), "no such checkpoint"),
        (("--labels", tmp_path / "none.npy"), "no such labels file"),
        (("--feature-dim", 7), "has 16-d features, but 7-d features are needed; set --feature-dim to 16"),
        (
            ("--refinement", "dynamic", "--partition", "infomap"),
            "--partition: 'infomap' does not use the dynamic thresholds",
        ),
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


SMALL = (
    *("--set", "structural.candidates=8", "--set", "structural.smoothing=3", "--set", "cluster_num=6"),
    *("--set", "sampling.min_nodes=10", "--set", "sampling.subgraphs_per_epoch=2", "--set", "sampling.patches=3"),
    *("--k", 12, "--threads", 1, "--device", "cpu"),
)


@pytest.mark.long
def test_training_then_clustering_and_tuning(starfc, data, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    code, text, _ = starfc("train", data / "f.npy", data / "l.npy", "-o", run, "--json", *SMALL)
    assert code == 0
    record = json.loads(text)
    assert record["config"]["model"]["type"] == "gcn_structural"
    assert record["config"]["train_data"]["feat_path"] == str(data / "f.npy")
    code, text, _ = starfc("cluster", data / "f.npy", "-o", out, "--model", run, "--json")
    assert code == 0
    used = json.loads(text)
    assert used["knn_graph"]["k"] == 12
    chosen = json.loads((run / "thresholds.json").read_text())["fixed"]
    assert used["thresholds"] == {name: chosen[name] for name in ("tau1", "tau2")}
    code, text, _ = starfc("cluster", data / "f.npy", "-o", out, "--model", run, "--json", "--tau2", 0.3)
    assert json.loads(text)["thresholds"] == {"tau1": chosen["tau1"], "tau2": 0.3}
    code, text, _ = starfc("tune", data / "f.npy", data / "l.npy", "--model", run, "-o", tmp_path / "tuned", "--json")
    assert code == 0
    best = json.loads(text)["thresholds"]
    stored = json.loads((tmp_path / "tuned" / "thresholds.json").read_text())
    assert stored["fixed"] == best["fixed"]
    assert {p.name for p in (tmp_path / "tuned").glob("threshold_surface.*")} == {
        "threshold_surface.csv",
        "threshold_surface.png",
    }
    assert starfc("info", run)[1].startswith(f"{run}: training run")
    code, text, _ = starfc("info", out, "--json")
    assert json.loads(text)["kind"] == "results"
    code, _, err = starfc("train", data / "f.npy", data / "l.npy", "-o", run, "--resume", *SMALL)
    assert code == 0
    assert "continuing from" in err


def test_training_takes_a_config(starfc, data, workspace):
    arguments = ("train", data / "f.npy", data / "l.npy", "-o", workspace / "run", "--config", workspace / "config.py")
    code, out, _ = starfc(*arguments, "--seed", 3)
    assert code == 0
    assert f"written to {workspace / 'run'}" in out
    assert json.loads((workspace / "run" / "run.json").read_text())["seed"] == 3
    for more, message in (
        (("--type", "gcn"), "--type: not allowed with --config"),
        (("--set", "seed"), "--set: needs KEY=VALUE"),
    ):
        code, _, err = starfc(*arguments, *more)
        assert code == 2
        assert message in err
    code, _, err = starfc(*arguments, "--set", "sampling.paches=3")
    assert (code, "sampling.paches: unknown key; did you mean patches?" in err) == (2, True)


@pytest.mark.long
def test_evaluate_takes_any_files(starfc, data, clustered, tmp_path):
    assert clustered("--min-cluster-size", 8)[0] == 0
    truth, found = np.load(data / "l.npy"), np.load(tmp_path / "out" / "labels.npy")
    assert starfc("convert", data / "l.npy", tmp_path / "l.csv")[0] == 0
    code, out, _ = starfc("evaluate", tmp_path / "l.csv", tmp_path / "out", "--json")
    assert code == 0
    single = np.where(found < 0, found.max() + 1 + np.arange(len(found)), found)
    assert json.loads(out)["metrics"] == scores(truth, single)
    assert json.loads(out)["num_without_cluster"] == (found < 0).sum()
    table = tmp_path / "out" / "clusters.parquet"
    code, out, _ = starfc("evaluate", data / "l.npy", table, "--metrics", "nmi", "--metrics", "bcubed", "--json")
    assert set(json.loads(out)["metrics"]) == {"nmi", "bcubed"}
    assert "pairwise" in starfc("evaluate", data / "l.npy", data / "l.npy")[1]
    np.save(tmp_path / "short.npy", truth[:-1])
    code, _, err = starfc("evaluate", data / "l.npy", tmp_path / "short.npy")
    assert code == 2
    assert "179 labels for 180 features" in err


@pytest.mark.long
def test_a_kept_graph_is_clustered_on(starfc, data, clustered, tmp_path):
    code, out, _ = starfc("knn", data / "f.npy", "-o", tmp_path / "graph", "--json")
    assert code == 0
    record = json.loads(out)
    assert (record["num_nodes"], record["k"], record["recall"]) == (180, 80, 1.0)
    code, _, err = clustered("--knn-graph", tmp_path / "graph")
    assert code == 0
    assert f"kNN graph: read from {tmp_path / 'graph'}" in err
    assert not (tmp_path / "out" / "knn").exists()
    np.save(tmp_path / "other.npy", np.load(data / "f.npy")[::-1])
    code, _, err = starfc("cluster", tmp_path / "other.npy", "-o", tmp_path / "o", "--knn-graph", tmp_path / "graph")
    assert code == 2
    assert "stale kNN graph" in err
    assert starfc("info", tmp_path / "graph")[1].startswith(f"{tmp_path / 'graph'}: kNN graph")
    code, out, _ = starfc("knn", data / "f.npy", "-o", tmp_path / "g.npz", "--k", 5)
    assert code == 0
    assert "180 nodes, k 5, exact" in out
    code, out, _ = starfc("knn", "-", "-o", tmp_path / "piped", "--k", 5, stdin=(data / "f.npy").read_bytes())
    assert code == 0


def test_a_graph_is_searched_in_torch_within_a_limit(starfc, data, tmp_path):
    search = ("knn", data / "f.npy", "--k", 9, "--device", "cpu", "--threads", 1)
    assert starfc(*search, "-o", tmp_path / "exact")[0] == 0
    code, out, _ = starfc(*search, "-o", tmp_path / "torch", "--knn", "torch", "--device-memory", "1MB", "--json")
    assert (code, json.loads(out)["backend"]) == (0, "torch")
    for name in ("ids.npy", "sims.npy"):
        np.testing.assert_array_equal(np.load(tmp_path / "torch" / name), np.load(tmp_path / "exact" / name))
    code, _, err = starfc(*search, "-o", tmp_path / "none", "--knn", "torch", "--device-memory", "0.1MB")
    assert code == 2
    assert "--device-memory: a block of 64 rows needs" in err


@pytest.mark.long
def test_convert_in_pipes(data, tmp_path):
    done = process("convert", data / "f.npy", "-", "--dtype", "float16")
    assert (done.returncode, done.stderr) == (0, b"")
    done = process("convert", "-", tmp_path / "g.h5", "--json", stdin=done.stdout)
    assert json.loads(done.stdout)["dtype"] == "float16"
    np.testing.assert_array_equal(read_features(tmp_path / "g.h5"), np.load(data / "f.npy").astype(np.float16))
    done = process("convert", "-", tmp_path / "g.h5", stdin=b"not an array")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: stdin: not a readable NumPy file")


def test_info_says_what_is_there(starfc, data, tmp_path):
    features = np.load(data / "f.npy")
    features[[3, 5]], features[7] = features[0], np.nan
    features.tofile(tmp_path / "f.bin")
    code, out, _ = starfc("info", tmp_path / "f.bin", "--feature-dim", 16, "--labels", data / "l.npy", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["rows"], found["dim"], found["bytes"], found["non_finite_rows"]) == (180, 16, features.nbytes, 1)
    assert found["duplicates"] == {"rows": 2, "groups": 1, "largest": 3}
    assert found["labels_fit"]
    assert found["labels"]["identities"] == 12
    (tmp_path / "l.csv").write_text("label\nann\nbob\n")
    assert read_labels(tmp_path / "l.csv").tolist() == [0, 1]
    out = starfc("info", tmp_path / "f.bin", "--feature-dim", 16, "--labels", tmp_path / "l.csv")[1]
    assert "NOT one for each of the 180 rows" in out
    assert "identities          2, 2 of one instance" in starfc("info", tmp_path / "l.csv")[1]
    assert starfc("info", ROOT / "src" / "starfc" / "pretrained" / "structural")[1].splitlines()[0].endswith(": model")
    for path, message in ((tmp_path, "not the folder of a run"), (tmp_path / "x.npy", "no such file")):
        code, _, err = starfc("info", path)
        assert code == 2
        assert message in err


def test_a_folder_of_pictures_must_be_embedded_first(starfc, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "b.JPG").touch()
    for command in (["info"], ["cluster", "-o", tmp_path / "run"], ["knn", "-o", tmp_path / "graph"]):
        code, _, err = starfc(*command, tmp_path / "pictures")
        assert code == 2
        assert "parts of features (.npy, .parquet)" in err or "a .npy or .parquet needed" in err
        assert "it holds pictures such as b.JPG: pictures must be embedded first" in err
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_info_takes_parts_and_urls_like_cluster(starfc, data, tmp_path):
    features = np.load(data / "f.npy")
    (tmp_path / "parts").mkdir()
    for number, part in enumerate(np.array_split(features, 2)):
        np.save(tmp_path / "parts" / f"{number}.npy", part)
    for path in (tmp_path / "parts", f"file://{tmp_path}/parts", f"file://{tmp_path}/parts/1.npy"):
        code, out, _ = starfc("info", path, "--labels", data / "l.npy", "--json")
        found = json.loads(out)
        assert code == 0
        assert (found["kind"], found["path"], found["dim"]) == ("features", str(path), 16)
        assert found["labels_fit"] == (found["rows"] == 180)
    code, _, err = starfc("info", f"file://{tmp_path}/none.npy")
    assert code == 2
    assert "none.npy: cannot be read" in err
    np.save(tmp_path / "parts" / "2.npy", features[0])
    code, _, err = starfc("info", tmp_path / "parts")
    assert code == 2
    assert "2.npy" in err


@pytest.mark.long
def test_models_of_every_type_need_no_config(starfc, data, workspace):
    arguments = ("cluster", data / "f.npy", "-o", workspace / "out", "--model", workspace / "model", "--k", 10)
    code, out, _ = starfc(*arguments, "--refinement", "dynamic", "--json")
    assert code == 0
    assert json.loads(out)["thresholds"] == {"tau1": 0.85, "tau2": 0.78}
    save_model(HierarchicalModel(16, 32, scales=(6, 8, 10)), workspace / "levels")
    code, out, _ = starfc(*arguments[:-4], "--model", workspace / "levels", "--json")
    assert code == 0
    assert json.loads(out)["knn_graph"]["k"] == 120


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (Stopped("stopped, go on with", signal.SIGTERM), 143, "stopped, go on with"),
        (InputError("mend it"), 2, "error: mend it"),
    ],
)
def test_an_end_before_the_end_has_its_code(starfc, data, tmp_path, monkeypatch, raised, code, said):
    commands = []

    def run(config, out, resume, go_on, **_):
        commands.append(go_on)
        raise raised

    monkeypatch.setattr("starfc.training.trainer.run_training", run)
    monkeypatch.setattr("sys.argv", ["starfc", "train", "my features.npy", "--resume"])
    found, out, err = starfc("train", data / "f.npy", data / "l.npy", "-o", tmp_path / "run")
    assert (found, out, err) == (code, "", said + "\n")
    assert commands == ["starfc train 'my features.npy' --resume"]


def test_a_bug_keeps_its_traceback(starfc, data, tmp_path, monkeypatch):
    monkeypatch.setattr("starfc.runs.cluster.run_inference", lambda *_a, **_k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        starfc("cluster", data / "f.npy", "-o", tmp_path / "out")


def test_quiet_and_verbose_say_less_and_more(starfc, data, tmp_path):
    given = ("knn", data / "f.npy", "--k", 10, "--threads", 1, "-o")
    said = {level: starfc(*given, tmp_path / f"x{level}", *([level] if level else [])) for level in ("", "-q", "-v")}
    assert [code for code, _, _ in said.values()] == [0, 0, 0]
    assert said["-q"][1:] == ("", "")
    assert "needs about" not in said[""][2]
    assert "kNN graph: needs about" in said["-v"][2]
    assert starfc(*given, tmp_path / "x", "-qv")[2] == (
        "error: --verbose: not allowed with --quiet; leave out one of the two\n"
    )


def test_completion_knows_the_choices():
    script = "import os; from starfc.commands import main; main()"
    asked = {"_STARFC_COMPLETE": "complete_bash", "COMP_WORDS": "starfc cluster --partition ", "COMP_CWORD": "3"}
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")} | asked
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == list(PARTITIONS)
