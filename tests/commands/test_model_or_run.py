"""Test which model, refinement and thresholds a command uses with --config and --model, or with --run."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.paths import ROOT
from helpers.samples import blobs
from starfc.config.config import Hierarchical, ModelOptions, load_config, save_config
from starfc.config.thresholds import save_thresholds
from starfc.models.checkpoint import save_model
from starfc.models.hierarchical import HierarchicalModel

COMMANDS = {"fixed": "test_final.py", "dynamic": "test_dynamic.py"}
STORED = {"fixed": {"tau1": 0.25, "tau2": 0.5}, "dynamic": {"tau1": 0.35, "tau2": 0.6}}
EMPTY = ("tau1=None", "tau2=None", "dynamic.tau1=None", "dynamic.tau2=None")


@pytest.fixture(params=["gcn", "hierarchical"])
def run(request, workspace):
    """A folder as training leaves it, of either type of model, with thresholds that its config does not have."""
    config = load_config(workspace / "config.py")
    folder = workspace / "run"
    if request.param == "gcn":
        (workspace / "model").rename(folder)
    else:
        scales = [6, 8, 10]
        config = replace(
            config,
            model=replace(config.model, type="hierarchical"),
            hierarchical=Hierarchical(scales=scales, k_mid=40),
        )
        generator = torch.Generator().manual_seed(0)
        save_model(HierarchicalModel(16, 32, init="metric", scales=tuple(scales), generator=generator), folder)
    save_config(config, folder / "config.json")
    save_thresholds(folder, STORED, "some identities")
    return folder


def record_of(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.mark.long
@pytest.mark.parametrize("refinement", COMMANDS)
def test_a_run_brings_everything(command, run, refinement):
    code, out, _ = command(COMMANDS[refinement], "--run", run)
    record = record_of(run / "results" / f"part1_test-{refinement}")
    assert code == 0
    assert record["refinement"] == refinement
    assert record["thresholds"] == STORED[refinement]
    assert record["model"] == str(run)
    assert record["metrics"]["nmi"] > 0.5
    assert record["thresholds_source"] == f"stored in {run}, chosen on labels for components"
    assert f"{refinement} refinement, tau1 {STORED[refinement]['tau1']:g}" in out
    diagnostics = record["diagnostics"]
    assert diagnostics["candidates"] >= diagnostics["parsed"]["edges"] >= diagnostics["refined"]["edges"] > 0
    if refinement == "dynamic":  # pairs among all stored entries of the affinity graph, once each
        assert diagnostics["candidates"] < 180 * 9


@pytest.mark.long
@pytest.mark.parametrize("refinement", COMMANDS)
def test_thresholds_on_the_command_line_go_before_those_of_a_run(command, run, refinement):
    prefix = {"fixed": "", "dynamic": "dynamic."}[refinement]
    options = (f"{prefix}tau1=0.1", f"{prefix}tau2=0.2", "test_name=part0_train")
    assert command(COMMANDS[refinement], "--run", run, "--cfg-options", *options)[0] == 0
    record = record_of(run / "results" / f"part0_train-{refinement}")
    assert record["thresholds"] == {"tau1": 0.1, "tau2": 0.2}
    out = run / "one"
    assert command(COMMANDS[refinement], "--run", run, "--cfg-options", f"{prefix}tau1=0.1", "--out", out)[0] == 0
    assert record_of(out)["thresholds"] == {"tau1": 0.1, "tau2": STORED[refinement]["tau2"]}


@pytest.mark.long
def test_a_run_without_thresholds_has_those_of_its_config(command, run):
    (run / "thresholds.json").unlink()
    for refinement, pair in (("fixed", (0.7, 0.72)), ("dynamic", (0.85, 0.78))):
        assert command(COMMANDS[refinement], "--run", run)[0] == 0
        record = record_of(run / "results" / f"part1_test-{refinement}")
        assert record["thresholds"] == dict(zip(("tau1", "tau2"), pair, strict=True))


@pytest.mark.long
def test_a_run_takes_a_users_own_file(command, run, workspace):
    features, labels = blobs(seed=5)
    np.save(workspace / "mine.npy", features)
    np.save(workspace / "identities.npy", labels)
    arguments = ("--run", run, "--features", workspace / "mine.npy", "--labels", workspace / "identities.npy")
    assert command("test_dynamic.py", *arguments)[0] == 0
    assert record_of(run / "results" / "mine-dynamic")["metrics"]["nmi"] > 0.5
    assert command("test_final.py", *arguments, "--out", workspace / "there")[0] == 0
    assert record_of(workspace / "there")["features"] == str(workspace / "mine.npy")


@pytest.mark.long
def test_thresholds_are_chosen_for_a_run(command, run, workspace):
    content = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(content | {"seed": 5}))
    code, _, err = command("scripts/choose_thresholds.py", "--run", run)
    assert code == 2
    assert "held out no identities" in err
    options = ("--cfg-options", "validation.holdout_share=0.3")
    assert command("scripts/choose_thresholds.py", "--run", run, *options)[0] == 0
    chosen = json.loads((run / "thresholds.json").read_text())
    assert chosen["fixed"] != STORED["fixed"]
    assert "seed 5" in chosen["chosen_on"]  # the identities that the training held back
    for refinement, script in COMMANDS.items():
        assert command(script, "--run", run)[0] == 0
        record = record_of(run / "results" / f"part1_test-{refinement}")
        assert record["thresholds"] == {name: chosen[refinement][name] for name in ("tau1", "tau2")}


@pytest.mark.long
@pytest.mark.parametrize("script", [*COMMANDS.values(), "scripts/choose_thresholds.py"])
@pytest.mark.parametrize("other", ["--config", "--model"])
def test_a_run_excludes_config_and_model(command, run, script, other):
    value = ROOT / "configs" / "cfg_gcn_ms1m.py" if other == "--config" else run
    code, _, err = command(script, "--run", run, other, value)
    assert code == 2
    assert "not allowed with argument" in err
    assert other in err


@pytest.mark.long
@pytest.mark.parametrize("script", [*COMMANDS.values(), "scripts/choose_thresholds.py"])
@pytest.mark.parametrize("missing", ["config.json", "weights", "folder"])
def test_a_run_that_is_none_is_one_message(command, run, script, missing):
    if missing == "config.json":
        (run / missing).unlink()
    for weights in run.glob("Backbone*") if missing == "weights" else ():
        weights.unlink()
    code, _, err = command(script, "--run", run / "none" if missing == "folder" else run)
    assert code == 2
    assert "this is not the folder of a training run, or training has not finished" in err
    assert len(err.strip().splitlines()) == 1
    assert not (run / "results").exists()


@pytest.mark.parametrize("refinement", COMMANDS)
def test_thresholds_beside_the_weights(command, workspace, refinement):
    save_thresholds(workspace / "model", STORED, "some identities")
    arguments = ("--config", workspace / "config.py", "--out", workspace / "out", "--cfg-options", *EMPTY)
    assert command(COMMANDS[refinement], *arguments)[0] == 0
    assert record_of(workspace / "out")["thresholds"] == STORED[refinement]
    save_thresholds(workspace / "model", {}, "nothing")
    code, _, err = command(COMMANDS[refinement], *arguments)
    assert code == 2
    assert f"an object '{refinement}' with numbers tau1 and tau2" in err


@pytest.mark.parametrize("refinement", COMMANDS)
@pytest.mark.parametrize("run", ["gcn", "hierarchical"], indirect=True)
def test_weights_of_the_other_type_are_one_message(command, run, refinement):
    config = load_config(run / "config.json")
    found, other = config.model.type, {"gcn": "hierarchical", "hierarchical": "gcn"}[config.model.type]
    turned = replace(
        config, model=ModelOptions(other, config.model.kwargs), hierarchical=Hierarchical(scales=[6, 8, 10], k_mid=40)
    )
    save_config(turned, run / "config.json")
    code, _, err = command(COMMANDS[refinement], "--run", run)
    assert code == 2
    assert f"weights of a model of type '{found}', but model.type of the config is '{other}'" in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1


def test_a_giant_component_is_said(command, workspace):
    arguments = ("--config", workspace / "config.py", "--out", workspace / "out", "--cfg-options")
    code, out, err = command("test_final.py", *arguments, "tau1=0", "tau2=0", "knn=60")
    assert code == 0
    giants = record_of(workspace / "out")["diagnostics"]["giants"]
    assert giants[0]["size"] == np.bincount(np.load(workspace / "out" / "labels.npy")).max() > 90
    assert "more than 0.1 of all instances (giant_share)" in err
    assert "128 to 255" in out
    assert "raise tau1 or tau2" in err
    assert "more than 0.1 of all instances" in record_of(workspace / "out")["doubts"][-1]
    _, _, err = command("test_final.py", *arguments, "tau1=0", "tau2=0", "knn=60", "giant_share=1")
    assert "giant_share" not in err
