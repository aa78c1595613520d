"""Test thresholds: sweeps against the pipeline, the choice, its files, and its command."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.paths import ROOT
from helpers.samples import blobs, unit
from starfc.clustering.pipeline import REFINEMENTS
from starfc.config.thresholds import load_thresholds, save_thresholds
from starfc.errors import InputError, MissingFileError
from starfc.evaluation.metrics import evaluate
from starfc.evaluation.surface import Panel, draw, matrix, text, write_csv
from starfc.evaluation.thresholds import (
    GRIDS,
    Outline,
    Point,
    best,
    choose_and_store,
    lowest,
    outline,
    sweep_outlines,
    sweep_thresholds,
)
from starfc.graph.knn import build_knn
from starfc.models.gcn import StarFCModel
from starfc.runtime.words import CONFIG, use
from starfc.scoring.projections import parse_affinity, parse_graph, project_nodes

GRID = ((0.1, 0.3, 0.5, 0.7), (0.0, 0.3, 0.5, 0.9))
PARSE = {"fixed": parse_graph, "dynamic": parse_affinity}
PNG = b"\x89PNG\r\n\x1a\n"


def read_csv(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture(scope="module")
def scored():
    features, labels = blobs(noise=0.8)
    features = unit(features)
    graph = build_knn(features, 12)
    model = StarFCModel(16, 32, init="metric", generator=torch.Generator().manual_seed(0))
    return features, labels, graph, model, project_nodes(model, features, graph)


@pytest.mark.long
@pytest.mark.parametrize("refinement", ["fixed", "dynamic"])
@pytest.mark.parametrize("tau1", GRID[0])
def test_a_sweep_is_the_pipeline_at_every_pair(scored, refinement, tau1):
    features, labels, graph, model, nodes = scored
    edges = PARSE[refinement](nodes, tau1)
    points = sweep_thresholds(edges, labels, refinement, ((tau1,), GRID[1]))
    outlines = sweep_outlines(edges, refinement, ((tau1,), GRID[1]))
    assert len({p.num_clusters for p in points}) > 1  # the pairs differ
    for tau2, point, seen in zip(GRID[1], points, outlines, strict=True):
        result = REFINEMENTS[refinement](features, graph, model, tau1=tau1, tau2=tau2)
        metrics, sizes = evaluate(labels, result.labels), np.bincount(result.labels)
        assert (point.tau1, point.tau2) == (tau1, tau2)
        assert point.fscore == pytest.approx(metrics["pairwise"]["fscore"])
        assert point.precision == pytest.approx(metrics["pairwise"]["precision"])
        assert point.recall == pytest.approx(metrics["pairwise"]["recall"])
        assert point.bcubed == pytest.approx(metrics["bcubed"]["fscore"])
        assert point.num_clusters == result.num_clusters
        single = int((sizes == 1).sum())
        assert seen == Outline(tau1, tau2, result.edges_refined, len(sizes), sizes.max() / 180, single)


@pytest.mark.parametrize("refinement", ["fixed", "dynamic"])
def test_edges_are_scored_once_for_all_of_a_grid(scored, refinement):
    """Against a twin that takes each τ1 by itself."""
    _, labels, _, _, nodes = scored
    edges = PARSE[refinement](nodes, 0.05)
    points, twin = sweep_thresholds(edges, labels, refinement, GRID), []
    for tau1 in GRID[0]:
        twin += sweep_thresholds(edges.select(edges.scores > tau1), labels, refinement, ((tau1,), GRID[1]))
    assert points == twin
    assert len({p.num_clusters for p in points}) > 5


def test_best_threshold_is_a_plateau_not_a_peak():
    scores = {(0.1, 0.1): 0.95, (0.1, 0.2): 0.1, (0.2, 0.1): 0.1, (0.2, 0.2): 0.1}
    scores |= {(a, b): 0.8 for a in (0.3, 0.4, 0.5) for b in (0.1, 0.2)} | {(0.4, 0.2): 0.85}
    assert best([Point(a, b, 0, 0, f, 0, 1) for (a, b), f in scores.items()]).tau1 >= 0.3


def test_lowest_threshold_is_within_an_error_of_the_best():
    scores = {0.2: 0.6, 0.3: 0.88, 0.4: 0.88, 0.5: 0.9, 0.6: 0.91, 0.7: 0.9, 0.8: 0.8}
    points = [Point(a, b, 0, 0, f - b / 100, 0, 1, 0.03) for a, f in scores.items() for b in (0.1, 0.2)]
    assert best(points).tau1 == 0.6
    assert lowest(points).tau1 == 0.4  # around 0.3 the mean is low
    assert lowest([replace(p, error=0.0) for p in points]) == replace(best(points), error=0.0)


@pytest.mark.long
def test_a_choice_is_stored_with_its_surface(scored, tmp_path):
    features, labels, graph, model, nodes = scored
    chosen = choose_and_store(tmp_path, features, graph, labels, model, chosen_on="some identities")
    stored = json.loads((tmp_path / "thresholds.json").read_text())
    lines = read_csv(tmp_path / "threshold_surface.csv")
    assert set(chosen) == {"fixed", "dynamic"}
    assert stored == {name: vars(point) for name, point in chosen.items()} | {"chosen_on": "some identities"}
    for refinement, point in chosen.items():
        points = sweep_thresholds(PARSE[refinement](nodes, 0.5), labels, refinement)
        assert point == best(points)
        assert load_thresholds(tmp_path, refinement) == (point.tau1, point.tau2)
        written = [line for line in lines if line["refinement"] == refinement]
        assert [float(line["fscore"]) for line in written] == pytest.approx([p.fscore for p in points], abs=1e-6)
    assert len(lines) == sum(len(a) * len(b) for a, b in GRIDS.values())
    assert (tmp_path / "threshold_surface.png").read_bytes().startswith(PNG)
    assert {p.name for p in tmp_path.iterdir()} == {
        "thresholds.json",
        "threshold_surface.csv",
        "threshold_surface.png",
    }


@pytest.mark.long
def test_an_outline_chooses_nothing(scored, tmp_path):
    features, _, graph, model, nodes = scored
    outlines = outline(tmp_path, features, graph, model)
    assert outlines["dynamic"] == sweep_outlines(parse_affinity(nodes, 0.5), "dynamic")
    lines = read_csv(tmp_path / "threshold_outline.csv")
    assert [int(line["num_singletons"]) for line in lines] == [p.num_singletons for s in outlines.values() for p in s]
    assert (tmp_path / "threshold_outline.png").read_bytes().startswith(PNG)
    assert not (tmp_path / "thresholds.json").exists()


SURFACE = [Outline(a, b, 1000 * round(10 * a) + round(10 * b), 1, a * b, 3) for b in (0.2, 0.9) for a in (0.5, 0.1)]


def test_a_surface_as_matrix_text_and_csv(tmp_path):
    tau1s, tau2s, values = matrix(SURFACE, "edges")
    assert (tau1s, tau2s) == ([0.1, 0.5], [0.2, 0.9])
    np.testing.assert_array_equal(values, [[1002, 1009], [5002, 5009]])
    assert text(SURFACE, "edges").splitlines() == [
        "tau1\\tau2   0.2   0.9",
        "0.1       1,002 1,009",
        "0.5       5,002 5,009",
    ]
    assert text(SURFACE, "largest_share").splitlines()[2].split() == ["0.5", "10.0%", "45.0%"]
    write_csv(tmp_path / "s.csv", {"fixed": SURFACE})
    assert (tmp_path / "s.csv").read_text().splitlines()[:2] == [
        "refinement,tau1,tau2,edges,num_clusters,largest_share,num_singletons",
        "fixed,0.5,0.2,5002,1,0.1,3",
    ]


def test_the_marked_pair_is_where_it_belongs(tmp_path):
    """τ2 to the right, τ1 upwards: the star's pixels lie in that quarter of the picture."""
    import matplotlib.image

    draw(tmp_path / "a.png", [[Panel("", SURFACE, "edges")]], "")
    draw(tmp_path / "b.png", [[Panel("", SURFACE, "edges", (0.5, 0.2))]], "")
    with_star = matplotlib.image.imread(tmp_path / "b.png")[..., :3]
    red = (with_star[..., 0] > 0.9) & (with_star[..., 1:].max(axis=2) < 0.1)
    rows, cols = np.nonzero(red)
    assert red.sum() > 20
    assert rows.mean() < 0.5 * red.shape[0]
    assert cols.mean() < 0.5 * red.shape[1]
    plain = matplotlib.image.imread(tmp_path / "a.png")
    assert not ((plain[..., 0] > 0.9) & (plain[..., 1:3].max(axis=2) < 0.1)).any()


PAIR = {"tau1": 0.25, "tau2": 0.5}


def test_thresholds_are_read_by_refinement(tmp_path):
    save_thresholds(tmp_path, {"fixed": PAIR, "dynamic": {"tau1": 1, "tau2": 0}}, "text")
    assert load_thresholds(tmp_path, "fixed") == load_thresholds(tmp_path) == (0.25, 0.5)
    assert load_thresholds(tmp_path, "dynamic") == (1.0, 0.0)


@pytest.mark.parametrize(
    ("content", "refinement", "message"),
    [
        ("{", "fixed", "not JSON"),
        ("[1]", "fixed", "needs an object 'fixed' with numbers tau1 and tau2 between 0 and 1; found None"),
        ("{}", "fixed", "found only nothing"),
        (json.dumps(PAIR), "fixed", "found only tau1, tau2"),
        (json.dumps({"fixed": PAIR}), "dynamic", "'dynamic' with numbers tau1 and tau2 .* found only fixed"),
        (json.dumps({"fixed": {"tau1": 0.5}}), "fixed", "found {'tau1': 0.5}"),
        (json.dumps({"fixed": PAIR | {"tau2": 1.5}}), "fixed", "'tau2': 1.5"),
        (json.dumps({"fixed": PAIR | {"tau2": True}}), "fixed", "'tau2': True"),
        (json.dumps({"fixed": PAIR | {"tau2": float("nan")}}), "fixed", "'tau2': nan"),
        (json.dumps({"fixed": 3}), "fixed", "found 3"),
    ],
)
def test_thresholds_that_are_none(tmp_path, content, refinement, message):
    (tmp_path / "thresholds.json").write_text(content)
    with pytest.raises(InputError, match=rf"thresholds.json: .*{message}.*; choose them on labelled data"):
        load_thresholds(tmp_path, refinement)


def test_missing_thresholds_name_the_keys(tmp_path):
    with pytest.raises(MissingFileError, match=r"thresholds.json: no such file, .*, or give tau1 and tau2$"):
        load_thresholds(tmp_path)
    with use(CONFIG), pytest.raises(MissingFileError, match=r", or give dynamic\.tau1 and dynamic\.tau2$"):
        load_thresholds(tmp_path, "dynamic")


@pytest.fixture
def choose(command, workspace):
    """scripts/choose_thresholds.py on the workspace's config, with identities held back."""
    with (workspace / "config.py").open("a") as file:
        file.write("validation = dict(source='none', holdout_share=0.3)\n")
    return lambda *more: command("scripts/choose_thresholds.py", "--config", workspace / "config.py", *more)


@pytest.mark.long
def test_the_command_repeats_the_choice_of_training(command, choose, workspace):
    assert command("train.py", "--config", workspace / "config.py", "--work-dir", workspace / "run")[0] == 0
    names = ("thresholds.json", "threshold_surface.csv")
    stored = [(workspace / "run" / name).read_text() for name in names]
    assert "held out of part0_train" in stored[0]
    for name in names:
        (workspace / "run" / name).unlink()
    code, out, _ = choose("--model", workspace / "run")
    assert code == 0
    assert [(workspace / "run" / name).read_text() for name in names] == stored
    chosen = json.loads(stored[0])
    for refinement in ("fixed", "dynamic"):
        line = next(line for line in out.splitlines() if line.startswith(refinement))
        assert line.split()[1:3] == [f"{chosen[refinement]['tau1']:g}", f"{chosen[refinement]['tau2']:g}"]


@pytest.mark.long
def test_the_command_takes_a_users_labelled_file(choose, workspace):
    features, labels = blobs(identities=9, seed=7)
    features[4] = 0
    np.save(workspace / "mine.npy", features)
    np.save(workspace / "mine_labels.npy", labels)
    where = ("--features", workspace / "mine.npy", "--labels", workspace / "mine_labels.npy", "--out", workspace / "o")
    assert choose(*where)[0] == 2  # a row without direction
    code, out, _ = choose(*where, "--cfg-options", "invalid_rows=singleton")
    assert code == 0
    assert str(workspace / "o") in out
    assert "9 identities (134 instances)" in json.loads((workspace / "o" / "thresholds.json").read_text())["chosen_on"]
    assert not (workspace / "model" / "thresholds.json").exists()


@pytest.mark.long
def test_the_command_without_labels_shows_and_does_not_choose(choose, workspace):
    np.save(workspace / "mine.npy", blobs(seed=7)[0])
    code, out, _ = choose("--features", workspace / "mine.npy", "--out", workspace / "o")
    assert code == 0
    assert "no labels: nothing was chosen" in out
    written = {"threshold_outline.csv", "threshold_outline.png", "files.json"}
    assert {p.name for p in (workspace / "o").iterdir()} == written
    for part in ("edges kept", "clusters", "share of the largest", "singletons"):
        assert f"fixed refinement, {part}" in out
        assert f"dynamic refinement, {part}" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cfg-options", "validation.holdout_share=0"], "held out no identities to choose thresholds on"),
        (["--labels", "x.meta"], "--labels: needs --features"),
        (["--features", "nowhere.npy"], "no such features file"),
        (["--model", "nowhere"], "no such checkpoint"),
    ],
)
def test_what_the_command_cannot_do_is_one_message(choose, workspace, arguments, message):
    code, _, err = choose(*arguments)
    assert code == 2
    assert message in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
    assert not (workspace / "model" / "thresholds.json").exists()


def test_the_bundled_thresholds_are_on_the_bundled_surface():
    folder = ROOT / "pretrained_model" / "glyph"
    stored = json.loads((folder / "thresholds.json").read_text())
    lines = read_csv(folder / "threshold_surface.csv")
    for refinement in ("fixed", "dynamic"):
        points = [
            Point(*(float(line[f]) for f in ("tau1", "tau2", "precision", "recall", "fscore", "bcubed")), 1)
            for line in lines
            if line["refinement"] == refinement
        ]
        chosen = best(points)
        assert (chosen.tau1, chosen.tau2) == load_thresholds(folder, refinement)
        assert chosen.fscore == pytest.approx(stored[refinement]["fscore"], abs=1e-6)
