"""Check that the same weights give the same thresholds and clusters through every interface.

Interfaces: ``starfc cluster``, test_final.py and test_dynamic.py with --model and with --run, and
:class:`starfc.StarFC` on a folder and on a loaded model.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from helpers.samples import blobs
from starfc import InputError, StarFC
from starfc.commands import app
from starfc.config.thresholds import save_thresholds
from starfc.models.checkpoint import PRETRAINED, load_model, save_model
from starfc.models.gcn import StarFCModel
from starfc.models.hierarchical import HierarchicalModel
from starfc.models.kinds import PUBLISHED

SCRIPTS = {"fixed": "test_final.py", "dynamic": "test_dynamic.py"}
STORED = {"fixed": {"tau1": 0.25, "tau2": 0.5}, "dynamic": {"tau1": 0.35, "tau2": 0.6}}
OF_CONFIG = {"tau1": 0.3, "tau2": 0.55, "dynamic": {"tau1": 0.4, "tau2": 0.65}}
TRAINING = {"threads": 1, "device": "cuda:7", "memory_limit": "1MB", "seed": 5, "invalid_rows": "singleton"}


def published(folder):
    save_model(StarFCModel(16, 32, init="metric", generator=torch.Generator().manual_seed(0)), folder)
    return {"model": {"type": "gcn", "kwargs": {"feature_dim": 16, "nhid": 32}}, "knn": 12}


def hierarchical(folder):
    generator = torch.Generator().manual_seed(0)
    save_model(HierarchicalModel(16, 32, init="metric", scales=(6, 8, 10), generator=generator), folder)
    kwargs = {"feature_dim": 16, "nhid": 32}
    scales = {"scales": [6, 8, 10], "k_mid": 40}
    return {"model": {"type": "hierarchical", "kwargs": kwargs}, "hierarchical": scales, "knn": 10}


def structural(folder):
    shutil.copytree(
        PRETRAINED.parent / "structural", folder, ignore=shutil.ignore_patterns("*.json"), dirs_exist_ok=True
    )
    return {"model": {"type": "gcn_structural", "kwargs": {"nhid": 64, "feature_dim": 16}}, "knn": 40}


def contextual(folder):
    shutil.copytree(PRETRAINED, folder, ignore=shutil.ignore_patterns("*.json"), dirs_exist_ok=True)
    kwargs = {"nhid": load_model(PRETRAINED).nhid, "feature_dim": 16}
    return {"model": {"type": "gcn_structural_any", "kwargs": kwargs}, "knn": 60, "partition": {"type": "infomap"}}


MODELS = {"gcn": published, "hierarchical": hierarchical, "structural": structural, "any": contextual}


@pytest.fixture
def features(tmp_path):
    rows = blobs(identities=12, size=15)[0]
    np.save(tmp_path / "rows.npy", rows)
    return tmp_path / "rows.npy"


def through(command, folder, features, refinement, *, config=None, **given):
    """(τ1, τ2), where they are from (None: not said) and the labels, by the name of the door."""
    found, place = {}, folder.parent / "out"
    prefix = "" if refinement == "fixed" else "dynamic."
    options = [f"{prefix}{name}={value}" for name, value in given.items()]

    def written(name):
        record = json.loads((place / name / "run.json").read_text())
        pair = (record["thresholds"]["tau1"], record["thresholds"]["tau2"])
        found[name] = (*pair, record["thresholds_source"], np.load(place / name / "labels.npy"))

    more = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    arguments = ["cluster", str(features), "--model", str(folder), "-o", str(place / "command"), "-q", *more]
    done = CliRunner().invoke(app, [*arguments, "--refinement", refinement], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    written("command")
    doors = {"--model": ["--config", config, "--model", folder], "--run": ["--run", folder]}
    if refinement == "dynamic" and (folder / "Contextual.pth").exists():
        options.append("partition.type=components")
    for name, arguments in doors.items() if config is not None else ():
        arguments += ["--features", features, "--out", place / name, "--overwrite"]
        assert command(SCRIPTS[refinement], *arguments, *(["--cfg-options", *options] if options else []))[0] == 0
        written(name)
    for name, model in {"folder": folder, "loaded": load_model(folder)}.items():
        estimator = StarFC(model, refinement=refinement, **given).fit(np.load(features))
        found[name] = (estimator.tau1_, estimator.tau2_, None, estimator.labels_)
    return found


def same(found):
    """(τ1, τ2) and their source, which all doors agree on, and the labels too."""
    tau1, tau2, source, labels = found["command"]
    for name, (first, second, said, clusters) in found.items():
        assert (first, second) == (tau1, tau2), name
        assert said in (source, None), name
        np.testing.assert_array_equal(clusters, labels, err_msg=name)
    return (tau1, tau2), source


@pytest.mark.long
@pytest.mark.parametrize("refinement", SCRIPTS)
@pytest.mark.parametrize("kind", MODELS)
def test_weights_alone(command, features, tmp_path, kind, refinement):
    folder = tmp_path / "model"
    folder.mkdir()
    if MODELS[kind](folder)["model"]["type"] == "hierarchical":
        (folder / "config.json").write_text(json.dumps({**hierarchical(folder), "tau1": None}))
    pair, source = same(through(command, folder, features, refinement))
    if kind != "any":
        assert (pair, source) == (PUBLISHED[refinement], "the published value")
    elif refinement == "fixed":
        assert source == "the data"
    else:
        assert (pair, source) == ((0.5, 0.78), "the default of the model")


@pytest.mark.long
@pytest.mark.parametrize("refinement", SCRIPTS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_training_run(command, features, tmp_path, kind, refinement):
    """Its thresholds go before its config's, what is given before both; its machine and its seed play no part."""
    folder = tmp_path / "model"
    folder.mkdir()
    content = MODELS[kind](folder) | OF_CONFIG
    (folder / "config.json").write_text(json.dumps(content | TRAINING))
    (tmp_path / "config.json").write_text(json.dumps(content))  # one that names the same thresholds
    given = {"config": tmp_path / "config.json"}
    pair, source = same(through(command, folder, features, refinement, **given))
    of_config = OF_CONFIG if refinement == "fixed" else OF_CONFIG["dynamic"]
    assert (pair[0], source) == (of_config["tau1"], "the config's")
    assert pair[1] == (0.0 if kind == "any" and refinement == "fixed" else of_config["tau2"])
    save_thresholds(folder, STORED, "some identities")
    pair, source = same(through(command, folder, features, refinement, **given))
    if kind == "any" and refinement == "fixed":  # communities, of which nothing is stored
        assert (pair[0], source) == (0.3, "the config's")
    else:
        assert pair == tuple(STORED[refinement].values())
        assert source == f"stored in {folder}, chosen on labels for components"
    pair, source = same(through(command, folder, features, refinement, **given, tau1=0.45))
    assert pair[0] == 0.45
    assert source.startswith("given" if kind == "any" and refinement == "fixed" else "tau1: given; tau2: stored in ")


def test_weights_that_are_gone(features, tmp_path):
    published(tmp_path / "model")
    model = load_model(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(InputError, match="model: the model was loaded from there, but it no longer exists"):
        StarFC(model).fit(np.load(features))
