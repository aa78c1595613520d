"""Check the right result in every case that an attempt to break the code found."""

import json

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from typer.testing import CliRunner

from helpers.samples import same_partition, some_rows
from starfc import StarFC
from starfc.commands import app
from starfc.config.recipes import model_config
from starfc.data.dataset import Features
from starfc.errors import InputError
from starfc.graph import store
from starfc.graph.knn import exact_knn
from starfc.graph.partial import PartialGraph, remove_search
from starfc.graph.store import building
from starfc.graph.strangers import Strangers
from starfc.models.checkpoint import PRETRAINED, load_model, save_model
from starfc.models.contextual import Context
from starfc.review.images import open_pictures, read_picture
from starfc.runs.assign import assign
from starfc.runs.cluster import run_inference
from starfc.runs.folder import Run
from starfc.storage.commit import changing
from starfc.storage.owners import KNN


@pytest.fixture(scope="module")
def rows():
    return some_rows(identities=20, size=12, dim=32, noise=0.4)[0]


@pytest.fixture
def starfc():
    """Run the command in this process; returns exit code and stderr."""

    def run(*arguments):
        done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        return done.exit_code, done.stderr

    return run


def clustered(tmp_path, rows):
    np.save(tmp_path / "rows.npy", rows)
    given = {"adapt": "off", "invalid_rows": "singleton", "model": {"kwargs": {"feature_dim": 32}}}
    run_inference(
        model_config(PRETRAINED, given), features=tmp_path / "rows.npy", out=tmp_path / "run", keep_edges=True
    )
    return tmp_path / "run"


def test_a_folder_of_the_users_is_not_taken_for_a_search(tmp_path):
    folder = tmp_path / "g.partial"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"g.partial: a folder with files of a search only needed; found 'thesis.txt'"):
        PartialGraph(folder, {"k": 3}, 10, 3, [slice(0, 10)])
    (folder / "search.json").write_text("{}")
    remove_search(folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_what_a_search_leaves_goes_while_its_place_is_held(monkeypatch, tmp_path, rows):
    held = []

    def remove(partial):
        with pytest.raises(InputError, match="is writing to this folder"), changing(tmp_path / "g", KNN):
            pass
        held.append((partial.name, (tmp_path / "g" / "manifest.json").is_file()))

    monkeypatch.setattr(store, "remove_search", remove)
    with building(tmp_path / "g", tmp_path / "g.partial") as write:
        write(exact_knn(rows, 5), Features(rows))
    assert held == [("g.partial", True)]


def test_a_recall_without_effect_is_said_once(starfc, tmp_path, rows):
    np.save(tmp_path / "rows.npy", rows)
    _, said = starfc("knn", tmp_path / "rows.npy", "-o", tmp_path / "g", "--recall", 0.9)
    assert said.count("exact search is used, because it is as fast for these 240 rows") == 1
    assert "--recall 0.9 has no effect" in said
    assert "exact search" not in starfc("knn", tmp_path / "rows.npy", "-o", tmp_path / "g")[1]


def test_json_has_a_limit(tmp_path, rows):
    run = clustered(tmp_path, rows)
    (run / "files.json").unlink()
    with (run / "run.json").open("r+b") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(InputError, match=r"run\.json: a JSON file may have at most 67,108,864 bytes; found 67,"):
        Run.open(run)


@pytest.mark.long
def test_a_torn_list_of_steps_is_no_list(tmp_path, rows):
    run = clustered(tmp_path, rows[:-9])
    for at in (-9, -6):
        assign(run, rows[at : at + 3])
    (run / "files.json").unlink()
    whole = (run / "assign.json").read_text()
    assert [step["first_row"] for step in json.loads(whole)] == [231, 234]
    (run / "assign.json").write_text(whole[:-3])
    with pytest.raises(InputError, match=r"assign\.json: needs a list of steps in JSON"):
        assign(run, rows[-3:])


@pytest.mark.parametrize("recall", [(), ("--recall", 0.9)])
def test_what_a_graph_is_written_beside_stays(starfc, tmp_path, rows, recall):
    np.save(tmp_path / "rows.npy", rows)
    (tmp_path / "g.partial").mkdir()
    (tmp_path / "g.partial" / "thesis.txt").write_text("mine")
    assert starfc("knn", tmp_path / "rows.npy", "-o", tmp_path / "g", *recall)[0] == 0
    assert (tmp_path / "g.partial" / "thesis.txt").read_text() == "mine"


def test_rows_without_direction_may_be_fitted_later(rows):
    new = rows[-5:].copy()
    new[2] = np.nan
    model = StarFC(adapt="off", invalid_rows="singleton").fit(rows[:-5]).partial_fit(new)
    assert (model.labels_ == model.labels_[len(rows) - 3]).sum() == 1
    assert np.isfinite(model.edge_scores_.context.strangers.node_median).all()
    before = model.labels_.copy()
    np.testing.assert_array_equal(model.partial_fit(rows[:3]).labels_[-3:], before[:3])


def test_rows_without_direction_may_be_added(tmp_path, rows):
    run, new = clustered(tmp_path, rows[:-5]), rows[-5:].copy()
    new[2] = np.nan
    assign(run, new)
    context = Run.open(run).parsed.context
    assert np.isfinite(context.strangers.node_median).all()
    assert assign(run, rows[:3]).joined == 3


@pytest.mark.long
@pytest.mark.parametrize("cone", [0.0, 2.0])
@pytest.mark.parametrize("first", [0, 1])
def test_what_follows_rows_that_nothing_could_be_learnt_from_is_as_clustered_at_once(caplog, cone, first):
    rows, _ = some_rows(identities=20, size=12, dim=32, noise=0.6, cone=cone)
    nowhere = np.zeros((4, 32), np.float32)
    nowhere[1:] = np.nan
    model = StarFC(adapt="off", invalid_rows="singleton").fit(np.concatenate([nowhere, rows[:first]]))
    model.partial_fit(rows[first:])
    assert len(set(model.labels_[:4])) == 4
    assert not np.isin(model.labels_[4:], model.labels_[:4]).any()
    whole = StarFC(adapt="off").fit(rows)
    assert same_partition(model.labels_[4:], whole.labels_)
    found, wanted = model.edge_scores_.context, whole.edge_scores_.context
    assert (found.num_nodes, found.strangers.median) == (240, pytest.approx(wanted.strangers.median, abs=1e-6))
    np.testing.assert_allclose(found.first, wanted.first, atol=1e-5)
    assert model.assigned_.doubts == [
        f"there are now 240 rows, but the threshold was chosen when there were {first}: clusters may be wrong; "
        "cluster all rows again"
    ]
    assert caplog.text.count("there are now") == 1
    assert model.doubts_[-1:] == model.assigned_.doubts
    assert not model.partial_fit(rows[:30]).assigned_.doubts


def test_what_outgrew_a_handful_of_rows_is_said_once(starfc, tmp_path, rows):
    for name, some in (("two", rows[:2]), ("few", rows[2:20]), ("many", rows[20:])):
        np.save(tmp_path / f"{name}.npy", some)
    run = tmp_path / "run"
    assert starfc("cluster", tmp_path / "two.npy", "-o", run)[0] == 0
    said = "rows, but the threshold was chosen when there were 2:"
    assert said not in starfc("assign", run, tmp_path / "few.npy")[1]
    assert "240 " + said in starfc("assign", run, tmp_path / "many.npy")[1]
    assert said not in starfc("assign", run, tmp_path / "few.npy")[1]
    assert [len(step["doubts"]) for step in json.loads((run / "assign.json").read_text())] == [0, 1, 0]
    assert said in json.loads((run / "run.json").read_text())["doubts"][-1]


def test_a_run_that_grows_as_it_should_is_not_doubted(rows):
    assert StarFC(adapt="off").fit(rows[:30]).partial_fit(rows[30:]).assigned_.doubts == []


def test_strangers_of_a_row_without_direction_are_none(rows):
    first = Strangers.of(Features(rows))
    grown = first.grown(Features(np.concatenate([rows, np.full((1, 32), np.nan, np.float32)])))
    assert (grown.node_median[-1], grown.node_spread[-1]) == (0, 1)


def test_a_run_of_impossible_lists_is_refused(tmp_path, rows):
    run = clustered(tmp_path, rows)
    record = json.loads((run / "run.json").read_text())
    record["config"]["knn"] = 1_048_575
    (run / "run.json").write_text(json.dumps(record))
    (run / "files.json").unlink()
    with pytest.raises(InputError, match=r"config\.knn is 1,048,575"):
        assign(run, rows[:3])


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "value"),
    [("node_spread", 1e-300), ("pairs", [0.5, 1e-320]), ("num_nodes", 1e300), ("first", 1e200), ("adapted", 1e200)],
)
def test_numbers_of_a_context_are_checked_as_they_are_used(rows, name, value):
    found = StarFC(adapt="off").fit(rows).edge_scores_.context.arrays() | {"adapted": np.zeros((2, 5), np.float32)}
    shape = np.shape(found[name])
    damaged = found | {name: np.broadcast_to(np.asarray(value, np.float64), shape).copy()}
    with pytest.raises(ValueError, match="context"):
        Context.from_arrays(damaged)


def test_a_picture_is_what_its_name_may_say(tmp_path, monkeypatch):
    """Text that Pillow would give to another program to draw is no picture."""
    asked = []
    monkeypatch.setattr(EpsImagePlugin.EpsImageFile, "_open", lambda image: asked.append(image))
    (tmp_path / "0.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    assert read_picture(tmp_path / "0.jpg") is None
    assert not asked
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "1.png")
    assert read_picture(tmp_path / "1.png").size == (8, 8)
    (tmp_path / "1.png").rename(tmp_path / f"{17:030d}.png")
    assert open_pictures(tmp_path, 20).read(17, 64).size == (8, 8)
    (tmp_path / f"{17:030d}.png").rename(tmp_path / f"{10**30}.png")
    with pytest.raises(InputError, match=r"0{30}.png: is named after a row, but the rows are 0 to 19"):
        open_pictures(tmp_path, 20)


def test_of_two_rows_nothing_is_expected(rows):
    model = StarFC().fit(rows[:2])
    assert model.estimate_ is None
    assert any("similarity does not show which instances belong together" in doubt for doubt in model.doubts_)


def test_a_model_is_a_folder_or_loaded(rows):
    with pytest.raises(InputError, match="model: must be a folder, a loaded model or None; found 3"):
        StarFC(model=3).fit(rows)


def test_seeds_have_a_bound(rows):
    with pytest.raises(InputError, match=r"random_state: must be between 0 and 4611686018427387904"):
        StarFC(random_state=2**64).fit(rows)


@pytest.mark.parametrize("command", ["cluster", "knn"])
def test_seeds_have_a_bound_on_the_command_line(starfc, tmp_path, rows, command):
    np.save(tmp_path / "rows.npy", rows)
    code, said = starfc(command, tmp_path / "rows.npy", "-o", tmp_path / "out", "--seed", 2**63)
    assert (code, said.strip().count("\n")) == (2, 0)
    assert "--seed: must be between 0 and 4611686018427387904; found 9223372036854775808" in said


@pytest.mark.long
def test_weights_stay_readable_where_thresholds_are_chosen_for_them(starfc, tmp_path, rows):
    save_model(load_model(PRETRAINED), tmp_path / "weights")  # a folder without files.json
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "labels.npy", np.repeat(np.arange(20), 12))
    weights = tmp_path / "weights"
    assert starfc("tune", tmp_path / "rows.npy", tmp_path / "labels.npy", "--model", weights)[0] == 0
    assert starfc("cluster", tmp_path / "rows.npy", "-o", tmp_path / "out", "--model", weights)[0] == 0
