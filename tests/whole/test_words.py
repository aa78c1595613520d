"""Test messages: numbers agree with their nouns, and commands are named only where the interface has them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.paths import ROOT
from starfc.commands import cluster, words_of
from starfc.commands.assign import _text
from starfc.config.recipes import model_config
from starfc.config.thresholds import load_thresholds
from starfc.data.names import FEATURE_NAMES, LABEL_COLUMNS, LABEL_NAMES, alternatives
from starfc.errors import InputError, MissingFileError
from starfc.incremental.clusters import ClusterMerge, ClusterSplit
from starfc.incremental.state import Assigned
from starfc.models.checkpoint import PRETRAINED
from starfc.runs.cluster import run_inference
from starfc.runs.folder import Run
from starfc.runtime.stages import Stages
from starfc.runtime.words import CONFIG, PYTHON, anew, counted, maker, use
from starfc.storage.commit import changing
from starfc.storage.opened import opened
from starfc.storage.owners import CLUSTER

COMMAND = words_of(cluster)


def test_numbers_have_their_nouns():
    assert [counted(n, "split") for n in (0, 1, 2, 1200)] == ["0 splits", "1 split", "2 splits", "1,200 splits"]
    assert [counted(n, "identity", "identities") for n in (1, 2)] == ["1 identity", "2 identities"]


def assigned(times: int) -> Assigned:
    """What a step did, everything so many times."""
    merge = ClusterMerge((0, 4), 0.8, 0.9, 1, [(1, 5, 0.8, 0.9)], [5], 0)
    split = ClusterSplit(3, [3, 2], [[0, 1]], None)
    return Assigned(
        np.zeros(times, np.int64), 8, times, list(range(times)), [merge] * times, [split] * times, True,
        list(range(times)), times, [], 0.0,
    )  # fmt: skip


def test_what_assign_prints_counts_in_good_english():
    one, two = _text(assigned(1), Path("run")), _text(assigned(2), Path("run"))
    for words in ("1 instance added", "form 1 new cluster;", "1 merge (done)", "1 split (done)", "1 cluster; run"):
        assert words in one
    for words in ("2 instances added", "form 2 new clusters;", "2 merges (done)", "2 splits (done)", "2 clusters; run"):
        assert words in two


@pytest.mark.parametrize(
    ("words", "again", "made"),
    [
        (COMMAND, "run starfc cluster again", "starfc cluster"),
        (CONFIG, "run starfc cluster again", "starfc cluster"),
        (PYTHON, "create it again", "'cluster'"),
    ],
    ids=["cluster", "config", "python"],
)
def test_folders_are_made_anew_in_words_of_the_interface(tmp_path, words, again, made):
    listed = {"run.json": {"bytes": 9, "digest": None}}
    (tmp_path / "files.json").write_text(json.dumps({"format": 1, "id": "1", "command": "cluster", "files": listed}))
    (tmp_path / "labels.npy").write_text("mine")
    with use(words):
        with pytest.raises(MissingFileError, match=f"lists it; {again}, or if you changed it yourself"):
            opened(tmp_path).verified("run.json")
        (tmp_path / "files.json").unlink()
        with (
            pytest.raises(InputError, match=f"no earlier run of {made} wrote this file"),
            changing(tmp_path, CLUSTER) as change,
        ):
            (change.place / "labels.npy").write_text("new")


@pytest.mark.parametrize("words", [COMMAND, CONFIG, PYTHON], ids=["cluster", "config", "python"])
@pytest.mark.parametrize("name", ["rm -rf", "x\nerror: y", "{0}", ""])
def test_a_name_that_a_folder_makes_up_is_advised_nowhere(words, name):
    with use(words):
        assert (anew(name), maker(name)) == ("create it again", repr(name))


def test_python_is_not_told_to_run_commands(tmp_path):
    config = model_config(PRETRAINED, {"model": {"kwargs": {"feature_dim": 4}}})
    np.save(tmp_path / "x.npy", np.eye(4, dtype=np.float32))
    calls = (
        lambda: load_thresholds(tmp_path),
        lambda: Run.open(tmp_path),
        lambda: run_inference(config, features=tmp_path / "x.npy", out=tmp_path / "o", knn_graph=tmp_path / "none"),
    )
    for call in calls:
        with pytest.raises(MissingFileError) as found:
            call()
        assert "starfc " not in str(found.value)
        with use(COMMAND), pytest.raises(MissingFileError, match="starfc "):
            call()


def test_a_limit_below_what_the_process_holds_can_only_be_raised():
    for held, words, name in ((True, COMMAND, "--memory"), (False, PYTHON, "memory_limit")):
        stages = Stages(1 << 20)
        with (
            use(words),
            pytest.raises(InputError, match=f"^{name}: the process itself uses .*, above the") as found,
        ):
            stages.memory_left() if held else stages.stage("features", 1 << 20).__enter__()
        assert str(found.value).endswith("set a limit above the sum of this and the memory for the data")
        assert ("'features' needs about 1 MB more" in str(found.value)) is not held
    with (
        use(COMMAND),
        pytest.raises(InputError, match=r"--memory: stage 'x' needs about .*raise the limit, lower --k, or"),
    ):
        Stages(1 << 40).stage("x", 1 << 41).__enter__()


def test_names_that_are_found_by_themselves_are_said_as_they_are():
    assert alternatives(("a",)) == "a"
    assert alternatives(("a", "b", "c")) == "a, b or c"
    page = (ROOT / "docs" / "file-formats.md").read_text(encoding="utf-8")
    for names in (FEATURE_NAMES, LABEL_NAMES, LABEL_COLUMNS):
        assert alternatives(tuple(f"`{name}`" for name in names)) in page
    for command in ("cluster", "convert"):
        section = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8").split(f"\n## starfc {command}\n")[1]
        said = " ".join(section.split("\n## ")[0].split())
        assert f"called {alternatives(FEATURE_NAMES)}" in said
        assert (f"for labels: {alternatives(LABEL_NAMES)}." in said) is (command == "convert")
