"""Check that thresholds apply only to the partition of their choice, and that messages about them are true."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from helpers.samples import some_rows
from starfc import StarFC
from starfc.commands import app
from starfc.config.recipes import model_config
from starfc.config.thresholds import resolve, save_thresholds
from starfc.evaluation.thresholds import Point
from starfc.models.checkpoint import PRETRAINED, load_model, save_model
from starfc.models.contextual import ContextualModel
from starfc.models.gcn import StarFCModel
from starfc.runs.tune import tune_text

GIVEN = "given, not chosen from the data"
PAIR = {"tau1": 0.95, "tau2": 0.4}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Features, labels, and a folder of the packaged weights with thresholds of components."""
    folder = tmp_path_factory.mktemp("tuned")
    rows, labels = some_rows(identities=20, size=12, dim=32, noise=0.6)
    np.save(folder / "x.npy", rows)
    np.save(folder / "y.npy", labels)
    save_model(load_model(PRETRAINED), folder / "model")
    save_thresholds(folder / "model", {"fixed": PAIR, "dynamic": {"tau1": 0.9, "tau2": 0.8}}, "nothing")
    return folder


def starfc(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def choices(files, tmp_path, *more):
    out = tmp_path / "out"
    shown = starfc("cluster", files / "x.npy", "-o", out, "--model", files / "model", "-q", "--json", *more)
    record = json.loads(shown)
    return record["choices"], record["thresholds"]["tau1"]


@pytest.mark.long
def test_communities_are_not_made_by_thresholds_of_components(files, tmp_path):
    found, tau1 = choices(files, tmp_path)
    assert tau1 == 0.8
    assert "values were tried, with an expected F" in found["tau1"]["reason"]
    assert found["partition"] == {"value": "infomap", "reason": "the default of the model"}


def test_components_are_made_by_what_was_chosen_for_them(files, tmp_path):
    found, tau1 = choices(files, tmp_path, "--partition", "components")
    assert tau1 == 0.95
    assert found["tau1"]["reason"] == f"stored in {files / 'model'}, chosen on labels for components"
    assert found["partition"] == {"value": "components", "reason": GIVEN}
    assert found["adapt"] == {"value": 0, "reason": "the model adapts to communities of infomap only"}


@pytest.mark.long
@pytest.mark.parametrize("partition", ["components", "infomap"])
def test_what_was_given_is_said_to_be(files, tmp_path, partition):
    more = ("--tau1", 0.6, "--adapt", "off", "--copies", "keep", "--partition", partition)
    found, tau1 = choices(files, tmp_path, *more)
    assert (tau1, found["tau1"]["reason"]) == (0.6, GIVEN)
    assert found["adapt"]["reason"] == "--adapt is off"
    assert found["copies"] == {"value": "keep", "reason": GIVEN}


def test_the_estimator_says_the_same(files):
    rows, folder = np.load(files / "x.npy"), files / "model"
    assert StarFC(folder, adapt="off").fit(rows).tau1_ == 0.8
    stored = StarFC(folder, partition="components").fit(rows)
    assert (stored.tau1_, stored.tau2_) == (0.95, 0.4)
    assert stored.choice_.reason == f"stored in {folder}, chosen on labels for components"
    assert StarFC(folder, tau1=0.6, adapt="off").fit(rows).choice_.reason == GIVEN


def test_where_thresholds_are_from(files):
    model, neither = load_model(files / "model"), (None, None)

    def found(model, refinement, partition, explicit=neither, **config):
        config = model_config(model, {"partition": {"type": partition}} | config)
        decided = resolve(explicit, config, model, refinement)
        return decided.tau1, decided.tau2, decided.source

    for partition in ("infomap", "leiden"):  # what is stored is of components
        assert found(model, "fixed", partition) == (None, 0.0, "the data")
        assert found(model, "fixed", partition, tau1=0.6) == (0.6, 0.0, "the config's")
    stored = f"stored in {files / 'model'}, chosen on labels for components"
    assert found(model, "fixed", "components", tau1=0.6) == (*PAIR.values(), stored)
    assert found(model, "dynamic", "components", (None, 0.5)) == (0.9, 0.5, f"tau1: {stored}; tau2: given")
    alone = ContextualModel(8)
    assert found(alone, "dynamic", "components") == (0.5, 0.78, "the default of the model")
    assert found(StarFCModel(8, 8), "fixed", "components") == (0.7, 0.72, "the published value")
    assert found(StarFCModel(8, 8), "fixed", "components", tau2=0.5)[:2] == (0.7, 0.5)


@pytest.mark.long
def test_a_tuned_folder_is_a_model_and_says_what_is_better(files, tmp_path):
    shown = starfc("tune", files / "x.npy", files / "y.npy", "-o", tmp_path / "tuned")
    stored = json.loads((tmp_path / "tuned" / "thresholds.json").read_text())
    assert stored["default"]["tau1"] == 0.8
    assert stored["default"]["fscore"] == pytest.approx(1.0)
    assert "default          0.8       0" in shown
    assert "the default (communities, tau1 chosen from the data) is at least as good" in shown
    given = "cluster", files / "x.npy", "-q", "--json", "--model", tmp_path / "tuned"
    ours = json.loads(starfc(*given, "-o", tmp_path / "ours", "--partition", "components"))
    assert (ours["thresholds"]["tau1"], ours["thresholds"]["tau2"]) == (
        stored["fixed"]["tau1"],
        stored["fixed"]["tau2"],
    )
    default = json.loads(starfc(*given, "-o", tmp_path / "default"))
    assert default["thresholds"]["tau1"] == 0.8


@pytest.mark.long
def test_a_stored_graph_gives_the_same_thresholds(files, tmp_path):
    starfc("knn", files / "x.npy", "-o", tmp_path / "graph")
    given = ("tune", files / "x.npy", files / "y.npy")
    starfc(*given, "-o", tmp_path / "built")
    starfc(*given, "-o", tmp_path / "opened", "--knn-graph", tmp_path / "graph")
    built, taken = ((tmp_path / name / "thresholds.json").read_text() for name in ("built", "opened"))
    assert built == taken
    np.savez(tmp_path / "others.npz", data=np.zeros((3, 2, 80)))
    done = CliRunner().invoke(
        app, list(map(str, (*given, "-o", tmp_path / "no", "--knn-graph", tmp_path / "others.npz")))
    )
    assert done.exit_code == 2
    assert "of another split" in done.stderr


@pytest.mark.long
def test_thresholds_are_chosen_for_rows_as_they_are_clustered(files, tmp_path):
    rows, labels = np.load(files / "x.npy"), np.load(files / "y.npy")
    np.save(tmp_path / "x.npy", np.concatenate([rows, rows[:60]]))  # copies would fill one another's lists
    np.save(tmp_path / "y.npy", np.concatenate([labels, labels[:60]]))
    found = {}
    for name, folder in (("once", files), ("twice", tmp_path)):
        starfc("tune", folder / "x.npy", folder / "y.npy", "-o", tmp_path / name)
        found[name] = json.loads((tmp_path / name / "thresholds.json").read_text())
    for way in ("fixed", "dynamic", "default"):
        assert found["twice"][way] == found["once"][way]
    assert found["twice"]["chosen_on"].endswith("20 identities (240 instances)")


def test_the_better_way_is_named():
    def point(fscore):
        return Point(0.5, 0.5, 1.0, fscore, fscore, fscore, 10)

    found = {"fixed": point(0.91), "dynamic": point(0.9), "default": point(0.9)}
    assert (
        "fixed thresholds beat the default by 1.00 points of F; they are used only with partition components"
        in tune_text(found, "o")
    )
    found |= {"dynamic": point(0.925)}
    assert (
        "dynamic thresholds beat the default by 2.50 points of F; they are used only with refinement dynamic"
        in tune_text(found, "o")
    )
    assert "default" not in tune_text({"fixed": point(0.9), "dynamic": point(0.9)}, "o")


@pytest.mark.long
def test_weights_and_config_of_a_training_go_where_thresholds_are_written(tmp_path):
    rows, labels = some_rows(identities=20, size=12, dim=8, noise=0.6)
    np.save(tmp_path / "x.npy", rows)
    np.save(tmp_path / "y.npy", labels)
    run = tmp_path / "run"
    save_model(StarFCModel(8, 16, init="metric"), run)
    for part in ("Backbone", "Head"):
        (run / f"{part}.pth").rename(run / f"{part}_Epoch_2_batch_30.pth")  # as the published code names them
    (run / "config.json").write_text('{"knn": 20, "model": {"kwargs": {"feature_dim": 8, "nhid": 16}}}')
    starfc("tune", tmp_path / "x.npy", tmp_path / "y.npy", "--model", run, "-o", tmp_path / "tuned")
    assert sorted(path.name for path in run.iterdir()) == [
        "Backbone_Epoch_2_batch_30.pth", "Head_Epoch_2_batch_30.pth", "config.json",
    ]  # fmt: skip
    out = json.loads(
        starfc("cluster", tmp_path / "x.npy", "-o", tmp_path / "out", "--model", tmp_path / "tuned", "-q", "--json")
    )
    stored = json.loads((tmp_path / "tuned" / "thresholds.json").read_text())
    assert (out["knn_graph"]["k"], out["thresholds"]["tau1"]) == (20, stored["fixed"]["tau1"])


def test_thresholds_without_weights_say_what_is_missing(files, tmp_path):
    save_thresholds(tmp_path, {"fixed": PAIR}, "nothing")
    done = CliRunner().invoke(
        app, ["cluster", str(files / "x.npy"), "-o", str(tmp_path / "o"), "--model", str(tmp_path)]
    )
    assert done.exit_code == 2
    assert "has a thresholds.json: put the weights there for which these thresholds were chosen" in done.stderr
