"""Test why two instances are together or apart: paths against a slow twin, ties, and the printed text."""

from __future__ import annotations

import json
from itertools import combinations, pairwise

import numpy as np
import pytest

from helpers.review import clique, labels_of, parsed
from helpers.samples import blobs
from starfc import InputError, StarFC
from starfc.clustering.parsing import Decision
from starfc.commands.explain import explain
from starfc.commands.report import report
from starfc.config.config import load_config
from starfc.data.dataset import Features
from starfc.review.explain import explain_pair, strongest_path
from starfc.review.pairs import Pairs
from starfc.runs.cluster import run_inference

FIXED = Decision(0.6, 0.5)


def nodes(explanation) -> list[int]:
    return [explanation.path[0].a, *(link.b for link in explanation.path)] if explanation.path else []


def slow_strongest(n: int, edges: dict, a: int, b: int) -> tuple[float, int] | None:
    """Strength and length of the best simple path, of all of them."""
    best = None
    stack = [(a, (a,), np.inf)]
    while stack:
        i, path, width = stack.pop()
        if i == b:
            best = max(best or (-np.inf, 0), (width, -len(path)))
            continue
        for pair, strength in edges.items():
            if i in pair:
                j = sum(pair) - i
                if j not in path:
                    stack.append((j, (*path, j), min(width, strength)))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_paths_against_all_paths(seed):
    rng = np.random.default_rng(seed)
    n = 8
    pairs = [pair for pair in combinations(range(n), 2) if rng.random() < 0.4]
    edges = {pair: np.float32(rng.integers(1, 5) / 5) for pair in pairs}
    graph = Pairs.of(parsed(n, [(a, b, p, 0.9) for (a, b), p in edges.items()]))
    for a, b in combinations(range(n), 2):
        path = strongest_path(graph.indptr, graph.cols, graph.scores, graph.kept, a, b).tolist()
        best = slow_strongest(n, edges, a, b)
        if best is None:
            assert path == []
            continue
        assert (path[0], path[-1]) == (a, b)
        strength = min(edges[min(i, j), max(i, j)] for i, j in pairwise(path))
        assert (strength, -len(path)) == best


def test_of_equally_strong_paths_the_shortest():
    edges = parsed(
        5, [(0, 1, 0.9, 0.9), (1, 2, 0.8, 0.9), (2, 3, 0.9, 0.9), (0, 4, 0.8, 0.9), (4, 3, 0.8, 0.9), (0, 3, 0.7, 0.9)]
    )
    found = explain_pair(Pairs.of(edges), labels_of(edges), FIXED, 0, 3)
    assert nodes(found) == [0, 4, 3]
    assert found.together
    assert found.failed == ()
    assert found.weakest.score == pytest.approx(0.8)
    assert found.summary() == "0 and 3 are both in cluster 0: joined by 2 edges, the weakest with p 0.800"


def test_apart_names_the_edge_that_failed_and_by_how_much():
    edges = parsed(
        7,
        [*clique(range(3)), *clique(range(3, 6)), (0, 3, 0.95, 0.2), (2, 5, 0.7, 0.46)],
    )
    pairs, labels = Pairs.of(edges), labels_of(edges)
    found = explain_pair(pairs, labels, FIXED, 0, 3)
    assert nodes(found) == [0, 2, 5, 3]  # not the edge 0-3 of higher p: intimacy decided
    assert [(link.a, link.b) for link in found.failed] == [(2, 5)]
    assert found.weakest.threshold - found.weakest.intimacy == pytest.approx(0.04)
    assert "failed: 0.040 below 0.500" in found.text()
    assert found.summary().endswith("on the strongest path of 3 edges, 1 edge failed (intimacy up to 0.040 too low)")
    alone = explain_pair(pairs, labels, FIXED, 0, 6)
    assert alone.path == ()
    assert alone.weakest is None
    assert alone.summary().endswith("no path of parsed edges (p > 0.6) joins them")


def test_between_communities_no_threshold_is_named():
    edges = parsed(6, [*clique(range(3)), *clique(range(3, 6)), (0, 3, 0.95, 0.2), (2, 5, 0.7, 0.46)])
    found = explain_pair(Pairs.of(edges), labels_of(edges), Decision(0.6, 0.5, partition="infomap"), 0, 3)
    assert nodes(found) == [0, 2, 1, 3] or nodes(found) == [0, 3]
    assert found.failed[0].threshold is None
    assert "1 edge between two communities" in found.summary()


def test_a_dynamic_threshold_depends_on_the_degrees():
    edges = parsed(6, [*clique(range(3)), *clique(range(3, 6)), (2, 3, 0.9, 0.4)])
    found = explain_pair(Pairs.of(edges), labels_of(edges), Decision(0.6, 0.78, "dynamic"), 0, 5)
    assert found.failed[0].threshold == pytest.approx(0.6517, abs=1e-4)


def test_similarities_and_ranks():
    features = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1], [np.nan, 0]], np.float32)
    edges = parsed(5, [(0, 1, 0.9, 0.9), (1, 2, 0.9, 0.9)])
    pairs, labels = Pairs.of(edges), labels_of(edges)
    found = explain_pair(pairs, labels, FIXED, 0, 2, Features(features, "X"), 3)
    assert [link.similarity for link in found.path] == pytest.approx([0.8, 0.96])
    assert found.similarity == pytest.approx(0.6)
    assert found.ranks == (2, 3)  # 1 is nearer to 0; 1 and 3 (0.96, 0.8) are nearer to 2
    assert (
        "2 is neighbour number 2 of 0, 0 is neighbour number 3 of 2; a list of the kNN graph holds 3 neighbours"
        in found.text()
    )
    nowhere = explain_pair(pairs, labels, FIXED, 0, 4, Features(features, "X"), 3)
    assert nowhere.similarity is nowhere.ranks is None


def test_rows_that_are_none():
    edges = parsed(3, [(0, 1, 0.9, 0.9)])
    for a, b, message in (
        (0, 3, "B: must be a row between 0 and 2; found 3"),
        (-1, 0, "A: must be a row"),
        (1, 1, "1 twice"),
    ):
        with pytest.raises(InputError, match=message):
            explain_pair(Pairs.of(edges), labels_of(edges), FIXED, a, b)


def test_clusters_left_out_as_too_small():
    edges = parsed(5, [*clique(range(3)), (3, 4, 0.9, 0.9)])
    labels = np.array([0, 0, 0, -1, -1])
    found = explain_pair(Pairs.of(edges), labels, FIXED, 3, 4)
    assert found.together
    assert found.clusters == (-1, -1)
    assert "left out" in found.summary()


def test_the_estimator_explains_its_clusters():
    features, _ = blobs(identities=40, noise=0.8)  # 600 rows: of fewer, shorter lists are tried too
    estimator = StarFC(tau1=0.6, tau2=0.5).fit(features)
    members = np.flatnonzero(estimator.labels_ == 0)[:2]
    found = estimator.explain(*members.tolist())
    assert found.together
    assert all(link.kept for link in found.path)
    assert found.columns == 79
    other = int(np.flatnonzero(estimator.labels_ == 1)[0])
    assert not estimator.explain(int(members[0]), other).together
    assert json.loads(json.dumps(found.as_dict()))["path"][0]["a"] == members[0]


@pytest.fixture
def run_folder(workspace):
    """A run that kept its edges."""
    config = load_config(workspace / "config.py", {"tau1": 0.3, "tau2": 0.4})
    run_inference(config, out=workspace / "run", keep_edges=True)
    return workspace / "run"


@pytest.mark.long
def test_the_command_explains_a_run(run_folder, workspace, capsys):
    labels = np.load(run_folder / "labels.npy")
    a, b = np.flatnonzero(labels == 0)[:2].tolist()
    capsys.readouterr()
    explain(run_folder, a, b, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["together"]
    assert found["clusters"] == [0, 0]
    assert found["columns"] == 9
    record = json.loads((run_folder / "run.json").read_text())
    record["knn_graph"]["k"] = 6  # as of few rows, whose lists are shorter than the config's
    (run_folder / "run.json").write_text(json.dumps(record))
    (run_folder / "files.json").unlink()
    explain(run_folder, a, b, as_json=True)
    assert json.loads(capsys.readouterr().out)["columns"] == 5
    assert found["path"][found["weakest"]]["score"] == min(link["score"] for link in found["path"])
    features = np.fromfile(workspace / "data" / "features" / "part1_test.bin", np.float32).reshape(-1, 16)
    x, y = (features[row] / np.linalg.norm(features[row]) for row in (a, b))
    assert found["similarity"] == pytest.approx(float(x @ y), abs=1e-5)
    (workspace / "data" / "features" / "part1_test.bin").unlink()
    explain(run_folder, a, int(np.flatnonzero(labels == 1)[0]))
    out, err = capsys.readouterr()
    assert "is in cluster 0" in out
    assert "the explanation leaves out similarities" in err
    with pytest.raises(InputError, match="B: must be a row between 0 and 179; found 180"):
        explain(run_folder, 0, 180)


@pytest.mark.long
def test_the_command_writes_a_report(run_folder, workspace, capsys):
    np.save(workspace / "images.npy", np.zeros((180, 10, 10), np.uint8))
    capsys.readouterr()
    report(run_folder, workspace / "report", images=workspace / "images.npy", as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["instances"] == 180
    assert (workspace / "report" / "index.html").is_file()
    assert found["page"] == str(workspace / "report" / "index.html")
    report(run_folder, workspace / "report")
    assert "180 instances" in capsys.readouterr().out
    text = (workspace / "report" / "data" / "index.js").read_text()
    index = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert index["thumbs"] is None
    assert set(index["metrics"]) == {"pairwise", "bcubed", "nmi"}
    stages = index["stages"]
    assert stages["candidates"] >= stages["parsed"]["edges"] > stages["refined"]["edges"] > 0
