"""Check that a command opens a damaged or hostile folder rightly, or ends in a message of one line.

A command writes, shows and executes nothing outside of the folder. A command that only reads changes nothing in it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from helpers.paths import STRUCTURAL
from helpers.samples import blobs
from starfc.commands import app
from starfc.config.recipes import model_config
from starfc.errors import InputError
from starfc.estimator import PRETRAINED, StarFC
from starfc.models.checkpoint import load_model
from starfc.runs.cluster import run_inference
from starfc.runs.folder import Run
from starfc.storage.safe import digest

SECRET = "a secret from outside"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, the same after one row was added, and their features; each test takes copies."""
    place = tmp_path_factory.mktemp("hostile")
    features = blobs(identities=8, size=15, noise=0.5)[0]
    np.save(place / "features.npy", features)
    np.save(place / "more.npy", features[:3] + np.float32(0.01))
    config = model_config(PRETRAINED, {"threads": 1, "device": "cpu", "model": {"kwargs": {"feature_dim": 16}}})
    run_inference(config, features=place / "features.npy", out=place / "run", keep_edges=True)
    shutil.copytree(place / "run", place / "grown")
    from starfc.runs.assign import assign

    assign(place / "grown", place / "more.npy")
    for name in ("run", "grown"):  # who makes a hostile folder can leave it out, or make one that fits
        for path in [*(place / name).rglob("files.json")]:
            path.unlink()
    return place


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def grown(made, tmp_path):
    shutil.copytree(made / "grown", tmp_path / "grown")
    return tmp_path / "grown"


def starfc(*arguments):
    """Exit code and output of a command; anything but an InputError is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, InputError):
        return 2, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def looks(folder: Path, tmp_path: Path):
    """Every command that looks at a run."""
    truth = tmp_path / "truth.npy"
    np.save(truth, np.zeros(120, np.int64))
    yield "explain", ("explain", folder, 1, 2)
    yield "report", ("report", folder, "-o", tmp_path / "page")
    yield "info", ("info", folder)
    yield "evaluate", ("evaluate", truth, folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def listed(folder: Path) -> None:
    """Write files.json, as the commands do."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "digest": digest(path)}
        for path in folder.rglob("*")
        if path.is_file() and "knn" not in path.parts and path.name not in ("files.json", ".lock")
    }
    record = {"format": 1, "id": "0" * 32, "command": "cluster", "files": files}
    (folder / "files.json").write_text(json.dumps(record))


@pytest.mark.long
def test_commands_that_look_change_nothing(run, tmp_path):
    listed(run)
    before = contents(run)
    for name, arguments in looks(run, tmp_path):
        code, said = starfc(*arguments)
        assert code == 0, (name, said)
    assert contents(run) == before


def test_what_a_killed_process_had_committed_is_read_where_it_waits(run, tmp_path):
    labels = np.load(run / "labels.npy")
    (run / ".next").mkdir()
    np.save(run / ".next" / "labels.npy", labels[::-1].copy())
    (run / ".next" / "commit.json").write_text('["labels.npy", "run.json"]')  # run.json was renamed before the kill
    before = contents(run)
    np.testing.assert_array_equal(Run.open(run).labels, labels[::-1])
    assert contents(run) == before


@pytest.mark.long
@pytest.mark.parametrize("name", ["../precious.txt", "out/.bashrc", "/etc/hosts", "", 3, "a/../../precious.txt"])
def test_names_in_a_list_of_a_folder_lead_nowhere_else(run, tmp_path, name):
    (tmp_path / "precious.txt").write_text("precious")
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / ".bashrc").write_text("precious")
    (run / "precious.txt").write_text("evil")
    (run / "out").symlink_to(tmp_path / "victim")
    (run / ".next" / "out").mkdir(parents=True)
    (run / ".next" / "out" / ".bashrc").write_text("evil")
    (run / ".next" / "commit.json").write_text(json.dumps([name]))
    before = contents(run)
    for arguments in (*dict(looks(run, tmp_path)).values(), ("assign", run, "--remove", "3")):
        code, said = starfc(*arguments)
        assert code == 2, said
        assert "\n" not in said.strip()
    assert (tmp_path / "precious.txt").read_text() == (tmp_path / "victim" / ".bashrc").read_text() == "precious"
    assert {name: content for name, content in contents(run).items() if name != ".lock"} == before


@pytest.mark.parametrize("name", ["run.json", "labels.npy", "edges/cols.npy", "edges", "edges/context.npz"])
def test_links_in_a_run_are_not_followed(run, tmp_path, name):
    (tmp_path / "outside.json").write_text(json.dumps({"secret": SECRET}))
    shutil.move(run / name, tmp_path / "moved")
    (run / name).symlink_to(tmp_path / "moved")
    for command, arguments in looks(run, tmp_path):
        if command in ("info", "evaluate") and name.startswith("edges"):
            continue  # does not read it
        if (command, name) in (("info", "labels.npy"), ("evaluate", "run.json")):
            continue
        code, said = starfc(*arguments)
        assert code == 2
        assert "symbolic link" in said


@pytest.mark.long
@pytest.mark.parametrize("name", ["state", "state/features.bin", "state/manifest.json", ".next"])
def test_adding_writes_through_no_link(grown, made, tmp_path, name):
    outside = tmp_path / "outside"
    if (grown / name).exists():
        shutil.move(grown / name, outside)
    else:
        outside.mkdir()
    before = contents(outside) if outside.is_dir() else outside.read_bytes()
    (grown / name).symlink_to(outside)
    starfc("assign", grown, made / "more.npy")
    assert (contents(outside) if outside.is_dir() else outside.read_bytes()) == before


def test_a_kept_knn_graph_is_written_through_no_link(tmp_path, made):
    (tmp_path / "victim").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "knn").symlink_to(tmp_path / "victim")
    code, said = starfc("cluster", made / "features.npy", "-o", tmp_path / "out")
    assert code == 2
    assert "knn: is a symbolic link" in said
    assert not list((tmp_path / "victim").iterdir())


def test_a_pipe_in_a_run_is_refused_and_does_not_block(run):
    (run / "run.json").unlink()
    os.mkfifo(run / "run.json")
    code, said = starfc("explain", run, 1, 2)
    assert code == 2
    assert "regular file" in said


@pytest.mark.parametrize("where", ["run.json", "thresholds.json"])
def test_a_file_outside_is_not_shown(tmp_path, where):
    (tmp_path / "secret.json").write_text(json.dumps({"secret": SECRET, "num_clusters": 1, "fixed": {"tau1": SECRET}}))
    shutil.copytree(STRUCTURAL, tmp_path / "model", ignore=shutil.ignore_patterns("files.json"))
    (tmp_path / "model" / where).unlink(missing_ok=True)
    (tmp_path / "model" / where).symlink_to(tmp_path / "secret.json")
    code, said = starfc("info", tmp_path / "model")
    assert code == 2
    assert SECRET not in said


@pytest.mark.parametrize("base", ["base.py", "./base.json", ["base.py"]])
def test_the_config_of_a_folder_executes_nothing(tmp_path, made, command, monkeypatch, base):
    monkeypatch.setenv("STARFC_SECRET", SECRET)
    hostile = tmp_path / "hostile"
    shutil.copytree(STRUCTURAL, hostile)
    (hostile / "files.json").unlink()
    (hostile / "base.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    (hostile / "base.json").write_text('{"knn": 20}')
    content = {"_base_": base, "model": {"type": "gcn_structural"}, "prefix": "{{$STARFC_SECRET:}}"}
    (hostile / "config.json").write_text(json.dumps(content))
    code, said = starfc("cluster", made / "features.npy", "--model", hostile, "-o", tmp_path / "o")
    assert code == 2
    assert "_base_: only a .py config can inherit" in said
    code, out, err = command(
        "test_final.py", "--run", hostile, "--features", made / "features.npy", "--out", tmp_path / "o"
    )
    assert code == 2
    assert "_base_: only a .py config can inherit" in err
    assert SECRET not in said + out + err
    assert not (tmp_path / "executed").exists()
    assert isinstance(StarFC.from_pretrained(hostile), StarFC)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("template", ["{knn:>9999999999}", "{prefix.__class__}", "{prefix!r}", "{nothing}", "{"])
def test_names_in_braces_are_names_only(tmp_path, template):
    hostile = tmp_path / "hostile"
    shutil.copytree(STRUCTURAL, hostile)
    (hostile / "files.json").unlink()
    content = {"model": {"type": "gcn_structural"}, "test_data": {"feat_path": template}}
    (hostile / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="feat_path: the allowed names in braces"):
        model_config(hostile)


def test_a_graph_that_a_strangers_config_names_is_not_written(tmp_path, made, command):
    hostile = tmp_path / "hostile"
    shutil.copytree(STRUCTURAL, hostile)
    (hostile / "files.json").unlink()
    victim = tmp_path / "victim"
    content = {
        "model": {"type": "gcn_structural", "kwargs": {"feature_dim": 16, "nhid": 64}},
        "test_data": {
            "feat_path": str(made / "features.npy"),
            "label_path": str(tmp_path / "none"),
            "knn_graph_path": str(victim),
        },
    }
    (hostile / "config.json").write_text(json.dumps(content))
    code, _, err = command("test_final.py", "--run", hostile, "--out", tmp_path / "o")
    assert code == 0, err
    assert not victim.exists()
    assert (tmp_path / "o" / "labels.npy").is_file()


def test_features_that_were_replaced_are_refused(run, made, tmp_path):
    mine = tmp_path / "mine.npy"
    features = np.load(made / "features.npy")
    np.save(mine, features)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"features": str(mine)}))
    assert starfc("explain", run, 1, 2)[0] == 0
    np.save(mine, np.random.default_rng(0).permutation(features))
    for arguments in (
        ("explain", run, 1, 2),
        ("report", run, "-o", tmp_path / "p"),
        ("assign", run, made / "more.npy"),
    ):
        code, said = starfc(*arguments)
        assert code == 2
        assert "changed since the run" in said
        assert "restore the earlier file" in said


EDGES = {
    "cols": lambda a: a.__setitem__(slice(None, None, 7), 2**31 - 1),
    "cols below": lambda a: a.__setitem__(3, -1),
    "cols twice": lambda a: a.__setitem__(1, a[0]),
    "indptr": lambda a: a.__setitem__(5, a[4] - 1),
    "indptr first": lambda a: a.__setitem__(0, 1),
    "indptr last": lambda a: a.__setitem__(-1, 10**12),
    "scores": lambda a: a.__setitem__(2, np.nan),
    "scores high": lambda a: a.__setitem__(2, 1.5),
    "intimacy": lambda a: a.__setitem__(0, np.inf),
}


@pytest.mark.long
@pytest.mark.parametrize("fault", EDGES)
def test_edges_are_checked_before_kernels_see_them(run, tmp_path, fault):
    path = run / "edges" / f"{fault.split()[0]}.npy"
    array = np.load(path)
    EDGES[fault](array)
    np.save(path, array)
    for arguments in (("explain", run, 1, 2), ("report", run, "-o", tmp_path / "p"), ("assign", run, "--remove", "3")):
        code, said = starfc(*arguments)
        assert code == 2
        assert "damaged edges" in said


def test_a_truth_value_of_seven_is_no_truth_value(run):
    path = run / "edges" / "kept.npy"
    content = bytearray(path.read_bytes())
    content[-1] = 7
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"kept: whole numbers from 0 to 1 needed; found [01] to 7"):
        Run.open(run)


def flipped(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x04
    path.write_bytes(content)


def test_a_flipped_bit_in_a_listed_file_is_noticed(run):
    listed(run)
    Run.open(run)
    flipped(run / "edges" / "scores.npy", -2)
    with pytest.raises(
        InputError,
        match=r"scores\.npy: its digest differs from that in files\.json; it is damaged or belongs to another",
    ):
        Run.open(run)
    (run / "files.json").unlink()
    with pytest.raises(InputError, match="the edges of the two directions differ"):
        Run.open(run)


def test_files_of_two_runs_are_no_run(run):
    listed(run)
    labels = np.load(run / "labels.npy")
    np.save(run / "labels.npy", np.zeros_like(labels))
    with pytest.raises(InputError, match="belongs to another run; create it again, or if you changed it yourself"):
        Run.open(run)


def entries(graph):
    """The number of entries of each list of a stored graph."""
    return json.loads((graph / "manifest.json").read_text())["k"]


def test_bits_that_flip_in_a_knn_graph_are_noticed(run, made, tmp_path):
    (graph,) = (run / "knn").iterdir()
    features = made / "features.npy"
    ids = np.load(graph / "ids.npy")
    for value, said in ((2**31 - 1, "an id outside the graph's 120 nodes"), (int(ids[5, 4]), "the same id twice")):
        wrong = ids.copy()
        wrong[5, 3] = value
        np.save(graph / "ids.npy", wrong)
        code, message = starfc("cluster", features, "--k", entries(graph), "--knn-graph", graph, "-o", tmp_path / "o")
        assert code == 2
        assert said in message
    np.save(graph / "ids.npy", ids)
    sims = np.load(graph / "sims.npy")
    sims[2, 2] = np.nan
    np.save(graph / "sims.npy", sims)
    code, message = starfc("cluster", features, "--k", entries(graph), "--knn-graph", graph, "-o", tmp_path / "o")
    assert code == 2
    assert "row 2 has a similarity that is not between 0 and 1" in message


def test_a_flipped_id_of_a_listed_knn_graph_is_noticed(run, made, tmp_path):
    (graph,) = (run / "knn").iterdir()
    files = {p.name: {"bytes": p.stat().st_size, "digest": digest(p)} for p in graph.iterdir()}
    (graph / "files.json").write_text(json.dumps({"format": 1, "id": "1", "command": "knn", "files": files}))
    arguments = ("cluster", made / "features.npy", "--k", entries(graph), "--knn-graph", graph, "-o", tmp_path / "o")
    assert starfc(*arguments)[0] == 0
    flipped(graph / "ids.npy", -4)
    code, said = starfc(*arguments)
    assert code == 2
    assert "ids.npy: its digest differs from that in files.json; it is damaged or belongs to another run; run s" in said


RECORDS = [
    ("run.json", ["thresholds"], None), ("run.json", ["thresholds", "tau1"], "high"), ("run.json", ["partition"], "x"),
    ("run.json", ["num_clusters"], -1), ("run.json", ["diagnostics", "parsed", "edges"], 1e400),
    ("run.json", ["stages"], [{"name": "x"}]), ("run.json", ["config", "knn"], 2**60), ("run.json", ["features"], 3),
    ("run.json", ["steps"], [{"removed": [10**9], "next_label": 3}]), ("run.json", ["metrics"], {"pairwise": "good"}),
    ("edges/manifest.json", ["num_nodes"], "120"), ("edges/manifest.json", ["symmetric"], 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "keys", "value"), RECORDS)
def test_a_record_is_what_it_says_or_named(run, name, keys, value):
    content = json.loads((run / name).read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    if value is None:
        del inner[keys[-1]]
    (run / name).write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        Run.open(run)
    assert Path(name).name in str(error.value)
    assert "\n" not in str(error.value)
    assert keys[0] in str(error.value)


@pytest.mark.parametrize("key", ["model", "started"])
def test_a_record_does_not_control_a_terminal(run, key):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {key: "\x1b]52;c;cm0=\x07"}))
    code, said = starfc("info", run)
    assert code == 2
    assert said.isprintable() or "\x1b" not in said
    assert f"{key}: Value error, must be text without control characters" in said


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"a": NaN}', "\xff", "{" + '"a":' * 3])
def test_a_torn_record_is_named(run, text):
    (run / "run.json").write_text(text, encoding="latin-1")
    for arguments in (("explain", run, 1, 2), ("info", run)):
        code, said = starfc(*arguments)
        assert code == 2
        assert str(run) in said
        assert "\n" not in said.strip()


def weights(tmp_path: Path, change) -> Path:
    state = torch.load(STRUCTURAL / "Structural.pth", weights_only=True)
    tmp_path.mkdir(exist_ok=True)
    torch.save(change(state), tmp_path / "Structural.pth")
    return tmp_path


def shaped(place: int, value: int):
    def change(state):
        state["shape"][place] = value
        return state

    return change


WEIGHTS = {
    "huge": (shaped(0, 2**40), "do not fit a StructuralModel"),
    "negative": (shaped(0, -1), "do not fit a StructuralModel"),
    "none": (shaped(0, 0), "do not fit a StructuralModel"),
    "columns": (shaped(1, 10**6), "do not fit a StructuralModel"),
    "candidates": (shaped(2, 0), "do not fit a StructuralModel"),
    "rounds": (shaped(4, 3), "do not fit a StructuralModel"),
    "key": (lambda state: {1: torch.zeros(2)}, "a plain state dict"),
    "list": (lambda state: [torch.zeros(2)], "a plain state dict"),
    "nan": (lambda state: state | {"temperature": torch.tensor(float("nan"))}, "NaN or infinite"),
    "complex": (lambda state: state | {"temperature": torch.tensor(1j)}, "a dense tensor of real numbers"),
    "expanded": (
        lambda state: state | {"first.layers.1.weight": torch.zeros(1).expand(2**40, 2**20)}, "a dense tensor of real",
    ),
    "sparse": (lambda state: state | {"temperature": torch.zeros(3).to_sparse()}, "a dense tensor of real numbers"),
    "object": (lambda state: state | {"shape": Path("x")}, "not a readable checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WEIGHTS)
def test_weights_of_odd_shapes_are_refused_before_memory_is_taken(tmp_path, fault):
    change, said = WEIGHTS[fault]
    with pytest.raises(InputError, match=said):
        load_model(weights(tmp_path / "model", change))


def test_a_head_of_another_width_is_refused_before_memory_is_taken(tmp_path):
    torch.save({"conv1.weight": torch.zeros(2, 200_000), "conv1.bias": torch.zeros(200_000)}, tmp_path / "Backbone.pth")
    torch.save({"classifier.0.weight": torch.zeros(1, 1)}, tmp_path / "Head.pth")
    with pytest.raises(InputError, match=r"classifier\.0\.weight \(200000, 400000\) needed, found \(1, 1\)"):
        load_model(tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("model", ["any", "structural"])
def test_flipped_bits_in_weights_are_noticed(tmp_path, model):
    source = PRETRAINED.parent / model
    (name,) = (path.name for path in source.glob("*.pth"))
    whole, rng = (source / name).read_bytes(), np.random.default_rng(0)
    start = whole.index(b"FB")  # behind the first member's name: within data and padding
    for at in rng.integers(start, len(whole), 60).tolist():
        (tmp_path / name).write_bytes(whole)
        flipped(tmp_path / name, at)
        try:
            state = load_model(tmp_path).state_dict()
        except InputError:
            continue
        before = load_model(source).state_dict()  # padding: nothing that is used has changed
        assert all(torch.equal(state[key], before[key]) for key in before)


def test_the_packaged_weights_are_listed_with_their_digests():
    for folder in sorted(path for path in PRETRAINED.parent.iterdir() if path.is_dir()):
        content = json.loads((folder / "files.json").read_text())
        assert content["files"] == {
            path.name: {"bytes": path.stat().st_size, "digest": digest(path)}
            for path in sorted(folder.iterdir())
            if path.name != "files.json"
        }


@pytest.mark.long
def test_mutated_folders_are_read_or_refused():
    from fuzz.folders import run

    assert set(run(40, seed=2)) <= {"taken", "refused"}
