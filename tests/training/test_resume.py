"""Test resuming of training bit for bit, requests to stop, broken files, and losses that are not finite."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.paths import ROOT
from helpers.processes import kill, start
from helpers.training import COMMON, METHODS, journal, same_weights
from starfc.config.config import load_config
from starfc.config.thresholds import load_thresholds
from starfc.errors import InputError
from starfc.models.checkpoint import load_model
from starfc.runtime.interrupts import Stopped
from starfc.storage.atomic import mark
from starfc.training.basic import BasicTraining
from starfc.training.hierarchical import HierarchicalTraining
from starfc.training.structural import StructuralTraining
from starfc.training.trainer import run_training

KINDS = {"basic": BasicTraining, "hierarchical": HierarchicalTraining, "structural": StructuralTraining}


@pytest.fixture
def config(workspace):
    return lambda method="basic", **more: load_config(
        workspace / "config.py", copy.deepcopy(COMMON | METHODS[method] | more)
    )


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_from_every_checkpoint_the_run_ends_as_if_never_stopped(workspace, config, method):
    run_training(config(method), workspace / "whole")
    checkpoints = sorted((workspace / "whole" / "checkpoints").glob("subgraph_*.pt"))
    assert len(checkpoints) == 8
    for checkpoint in (checkpoints[0], checkpoints[3], checkpoints[5]):
        again = workspace / checkpoint.stem
        run_training(config(method), again, resume=str(checkpoint))
        assert same_weights(workspace / "whole", again)
        assert journal(again) == journal(workspace / "whole")[-len(journal(again)) :]
        assert (again / "thresholds.json").read_text() == (workspace / "whole" / "thresholds.json").read_text()


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [*(pytest.param(at, marks=pytest.mark.slow) for at in ((1, 0), (2, 1))), (6, 2)])
def test_asked_to_stop_after_any_step_it_goes_on_from_there(workspace, config, method, at, monkeypatch):
    """The signal comes while a step of subgraph ``at[0]`` runs; ``at[1]`` steps of it are over."""
    run_training(config(method), workspace / "whole")
    kind = KINDS[method]
    calls, update = [], kind.update
    steps = [entry["steps"] for entry in journal(workspace / "whole") if entry["kind"] == "train"]

    def interrupted(self):
        calls.append(0)
        if len(calls) == sum(steps[: at[0] - 1]) + at[1] + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        update(self)

    monkeypatch.setattr(kind, "update", interrupted)
    with pytest.raises(Stopped, match="SIGTERM: stopped after step") as stop:
        run_training(config(method), workspace / "stopped")
    monkeypatch.setattr(kind, "update", update)
    assert stop.value.exit_code == 128 + signal.SIGTERM
    path = re.search(r"checkpoint (\S+);", str(stop.value))[1]
    assert Path(path).name.startswith(f"subgraph_{at[0] - 1:06d}_step_") or at[1] + 1 == steps[at[0] - 1]
    assert "--resume auto" in str(stop.value)
    run_training(config(method), workspace / "stopped", resume="auto")
    assert same_weights(workspace / "whole", workspace / "stopped")
    assert journal(workspace / "stopped") == journal(workspace / "whole")
    record = json.loads((workspace / "stopped" / "run.json").read_text())
    assert [r["from"] for r in record["resumed"]] == [Path(path).name]


def command(workspace: Path, folder: str, *more: str) -> list[str]:
    config, train = workspace / folder / "config.json", ROOT / "train.py"
    return [sys.executable, str(train), "--config", str(config), "--work-dir", str(workspace / folder), *more]


def go_on(folder: Path) -> None:
    """What the command does with ``--resume auto``."""
    run_training(load_config(folder / "config.json"), folder, resume="auto")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["basic", "hierarchical"])
def test_killed_at_random_moments_and_resumed_the_weights_are_the_same(workspace, config, method):
    more = {"sampling.subgraphs_per_epoch": 40}
    run_training(config(method, **more), workspace / "whole")
    (workspace / "killed").mkdir()
    (workspace / "killed" / "config.json").write_bytes((workspace / "whole" / "config.json").read_bytes())
    checkpoints, rng = workspace / "killed" / "checkpoints", random.Random(method)
    kills = 0
    for wanted in (1, 20, 45):
        process = start(go_on, workspace / "killed")
        while process.exitcode is None and len(list(checkpoints.glob("subgraph_*.pt"))) < wanted:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        kills += kill([process])
    assert kills >= 2
    left = f".starfc-{mark().split('-')[1]}-{2**22 + 1}-1-0.tmp.pt"  # no process has a higher number than 2^22
    (checkpoints / left).write_bytes(b"of a killed process")
    done = subprocess.run(command(workspace, "killed", "--resume", "auto"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "continuing from subgraph_" in done.stderr
    assert not list(checkpoints.glob(".*"))
    assert same_weights(workspace / "whole", workspace / "killed")
    assert journal(workspace / "killed") == journal(workspace / "whole")


@pytest.mark.long
def test_a_signal_ends_the_command_with_the_one_that_goes_on(workspace, config):
    more = {"sampling.subgraphs_per_epoch": 80}
    run_training(config(**more), workspace / "whole")
    (workspace / "run").mkdir()
    (workspace / "run" / "config.json").write_bytes((workspace / "whole" / "config.json").read_bytes())
    process = subprocess.Popen(command(workspace, "run"), stderr=subprocess.PIPE, text=True)
    while not list((workspace / "run").glob("checkpoints/subgraph_00001*.pt")):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    go_on = re.search(r"continue with: python (.*)", err)[1]
    done = subprocess.run(f"{sys.executable} {go_on}", shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert same_weights(workspace / "whole", workspace / "run")


@pytest.mark.long
def test_the_newest_checkpoints_and_the_best_are_kept(workspace, config):
    run_training(config(**{"checkpoint_config.keep": 2}), workspace / "run")
    names = {p.name for p in (workspace / "run" / "checkpoints").iterdir()}
    assert names == {"subgraph_000007.pt", "subgraph_000008.pt", "best.pt"}
    entries = [e for e in journal(workspace / "run") if e["kind"] == "validation"]
    best = max(entries, key=lambda e: e["edge_accuracy"])
    stored = torch.load(workspace / "run" / "checkpoints" / "best.pt", weights_only=True)["training"]["position"]
    assert (stored["best"], stored["done"]) == (best["edge_accuracy"], best["step"])
    assert load_model(workspace / "run" / "checkpoints" / "best.pt").nhid == 32
    assert load_thresholds(workspace / "run" / "checkpoints" / "best.pt") == load_thresholds(workspace / "run")


@pytest.mark.long
def test_a_truncated_or_foreign_checkpoint_is_refused_and_the_good_one_named(workspace, config):
    run_training(config(), workspace / "run")
    checkpoints = sorted((workspace / "run" / "checkpoints").glob("subgraph_*.pt"))
    content = checkpoints[-1].read_bytes()
    for broken in (content[: len(content) // 2], b"", b"not a checkpoint"):
        checkpoints[-1].write_bytes(broken)
        with pytest.raises(InputError, match="not a readable checkpoint") as error:
            run_training(config(), workspace / "run", resume="auto")
        assert f"use an earlier one: --resume {checkpoints[-2]}" in str(error.value)
    torch.save({"weights": torch.zeros(3)}, checkpoints[-1])
    with pytest.raises(InputError, match="not a training checkpoint of this package"):
        run_training(config(), workspace / "run", resume="auto")
    checkpoints[-2].write_bytes(b"")
    with pytest.raises(InputError, match=re.escape(f"--resume {checkpoints[-3]}")):
        run_training(config(), workspace / "run", resume="auto")
    with pytest.raises(InputError, match="no such checkpoint"):
        run_training(config(), workspace / "run", resume=str(workspace / "nowhere.pt"))


@pytest.mark.long
def test_a_checkpoint_of_another_run_is_refused(workspace, config):
    run_training(config(), workspace / "run")
    with pytest.raises(InputError, match=r"with another config: optimizer.lr 0.001 there, 0.5 here"):
        run_training(config(**{"optimizer.lr": 0.5}), workspace / "run", resume="auto")
    with pytest.raises(InputError, match=r"already holds a run \(subgraph_000008.pt\)"):
        run_training(config(), workspace / "run")
    path = workspace / "data" / "features" / "part0_train.bin"
    features = np.fromfile(path, np.float32)
    features[0] += 1
    features.tofile(path)
    with pytest.raises(InputError, match="with other training features"):
        run_training(config(), workspace / "run", resume="auto")


@pytest.mark.long
def test_resuming_a_finished_run_makes_its_results_again(workspace, config):
    run_training(config(), workspace / "run")
    before = load_model(workspace / "run").state_dict()
    for name in ("Backbone.pth", "thresholds.json"):
        (workspace / "run" / name).unlink()
    run_training(config(), workspace / "run", resume="auto")
    assert all(torch.equal(v, before[k]) for k, v in load_model(workspace / "run").state_dict().items())
    assert (workspace / "run" / "thresholds.json").is_file()


@pytest.mark.long
def test_auto_without_a_checkpoint_is_a_new_run(workspace, config):
    run_training(config(), workspace / "a", resume="auto")
    run_training(config(), workspace / "b")
    assert same_weights(workspace / "a", workspace / "b")


def test_a_loss_that_is_not_finite_stops_before_the_weights_do(workspace, config, monkeypatch):
    (workspace / "data" / "labels" / "part0_train.meta").write_text(
        "".join(f"{1000 + int(x)}\n" for x in (workspace / "data" / "labels" / "part0_train.meta").read_text().split())
    )
    loss, calls = BasicTraining.loss, []

    def broken(self, graph, edges, generator):
        calls.append(0)
        value, terms = loss(self, graph, edges, generator)
        return (value * float("nan") if len(calls) == 8 else value), terms

    monkeypatch.setattr(BasicTraining, "loss", broken)
    with pytest.raises(InputError, match=r"loss: nan at step 2 of subgraph 3, around identity 10\d\d") as error:
        run_training(config(), workspace / "run")
    assert "subgraph_000002.pt" in str(error.value)
    batch = json.loads((workspace / "run" / "not_finite_subgraph_000003.json").read_text())
    labels = np.loadtxt(workspace / "data" / "labels" / "part0_train.meta", dtype=int)
    assert sorted(set(labels[batch["instances"]].tolist())) == batch["identities"]
    assert batch["seed_identity"] in batch["identities"]
    assert str(batch["identities"][0]) in str(error.value)
    load_model(workspace / "run" / "checkpoints" / "subgraph_000002.pt")


def test_a_refused_training_leaves_no_folder(workspace, config):
    (workspace / "data" / "labels" / "part0_train.meta").write_text("1\n2\n")
    with pytest.raises(InputError, match="needs one label for each row"):
        run_training(config(), workspace / "runs" / "new")
    assert not (workspace / "runs").exists()
