"""Test the folder of a finished run: its stored edges, and opening it again."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.paths import STRUCTURAL
from helpers.samples import blobs, unit
from starfc.clustering.components import components, largest_first
from starfc.clustering.parsing import ParsedEdges
from starfc.clustering.pipeline import REFINEMENTS, cluster, with_singletons
from starfc.clustering.refinement import node_intimacy
from starfc.data.dataset import Features
from starfc.errors import InputError, MissingFileError
from starfc.graph.edges import EdgeList
from starfc.graph.knn import build_knn
from starfc.models.checkpoint import load_model
from starfc.runs.folder import Run
from starfc.runs.outputs import read_edges, write_edges


@pytest.fixture(scope="module")
def clustered():
    features = unit(blobs(noise=0.8)[0])
    graph = build_knn(Features(features, normalise=False), 80, "exact")
    return {
        name: refine(features, graph, load_model(STRUCTURAL), tau1=0.6, tau2=0.5, keep_edges=True)
        for name, refine in REFINEMENTS.items()
    } | {
        "infomap": cluster(
            features, graph, load_model(STRUCTURAL), tau1=0.6, tau2=0.5, partition="infomap", keep_edges=True
        )
    }


@pytest.mark.parametrize("how", ["fixed", "dynamic", "infomap"])
def test_edges_that_stayed_are_those_of_the_clusters(clustered, how):
    result = clustered[how]
    parsed = result.parsed
    assert 0 < parsed.kept.sum() < len(parsed.edges) or how == "infomap"
    refined = parsed.edges.select(parsed.kept)
    assert refined.num_edges == result.edges_refined
    if how == "infomap":
        assert (result.labels[refined.rows] == result.labels[refined.cols]).all()
    else:
        np.testing.assert_array_equal(largest_first(components(refined)), result.labels)


def test_edges_come_back_from_their_folder(clustered, tmp_path):
    parsed = clustered["fixed"].parsed
    write_edges(tmp_path, parsed)
    back = read_edges(tmp_path)
    for name in ("indptr", "cols", "scores"):
        np.testing.assert_array_equal(getattr(back.edges, name), getattr(parsed.edges, name))
    assert back.edges.symmetric
    np.testing.assert_array_equal(back.intimacy, parsed.intimacy)
    np.testing.assert_array_equal(back.kept, parsed.kept)


def test_intimacy_of_directed_edges_may_be_above_1(tmp_path):
    # 0 leads to 1, 2, 3 and 4; 1, 2 and 3 lead to 4, whose own list has one entry: c = 3, n = 4 and 1
    rows, cols = np.array([0, 0, 0, 0, 1, 2, 3, 4]), np.array([1, 2, 3, 4, 4, 4, 4, 0], np.int32)
    edges = EdgeList.from_rows(rows, cols, np.full(8, 0.9, np.float32), 5)
    intimacy = node_intimacy(edges)
    assert intimacy.max() == 3
    write_edges(tmp_path, ParsedEdges(edges, intimacy, intimacy > 0.5))
    assert np.array_equal(read_edges(tmp_path).intimacy, intimacy)


def test_invalid_rows_have_no_edges_and_the_others_keep_theirs(clustered):
    result = clustered["fixed"]
    rows = np.array([0, 7, len(result.labels) + 2])
    wider = with_singletons(result, rows)
    others = np.setdiff1d(np.arange(len(wider.labels)), rows)
    edges = wider.parsed.edges
    assert (np.diff(edges.indptr)[rows] == 0).all()
    np.testing.assert_array_equal(edges.rows, others[result.parsed.edges.rows])
    np.testing.assert_array_equal(edges.cols, others[result.parsed.edges.cols])


def test_a_folder_that_is_no_run_is_refused(clustered, tmp_path):
    with pytest.raises(MissingFileError, match=r"no run\.json"):
        Run.open(tmp_path)
    with pytest.raises(MissingFileError, match="stored no edges"):
        read_edges(tmp_path)
    write_edges(tmp_path, clustered["fixed"].parsed)
    np.save(tmp_path / "edges" / "kept.npy", np.zeros(3, bool))
    with pytest.raises(InputError, match="sizes of the arrays differ from manifest"):
        read_edges(tmp_path)
