"""Test training with two processes on the CPU, over gloo, as torchrun starts them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers.paths import ROOT
from helpers.processes import join, kill, start_two, two
from helpers.samples import blobs
from helpers.training import COMMON, METHODS, journal, same_weights
from starfc.config.config import load_config, save_config
from starfc.models.checkpoint import load_model
from starfc.training import trainer
from starfc.training.trainer import run_training


def train_and_keep(rank: int, port: int, config_path: Path, overrides: dict, folder: Path) -> None:
    join(rank, port)
    train = trainer.train

    def kept(run, position, request):
        train(run, position, request)
        numbers = [run.data.identities.tolist(), position.done]
        torch.save({"weights": run.method.model.state_dict(), "numbers": numbers}, folder / f"{rank}.pt")

    trainer.train = kept
    run_training(load_config(config_path, overrides), folder / "run")


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_ranks_end_with_equal_weights_of_different_subgraphs(workspace, method):
    # 5 subgraphs an epoch: in the last round of an epoch one process has none
    overrides = COMMON | METHODS[method] | {"sampling.subgraphs_per_epoch": 5}
    two(train_and_keep, workspace / "config.py", overrides, workspace)
    first, second = (torch.load(workspace / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, second["weights"][key]) for key, value in first["weights"].items())
    assert first["numbers"] == second["numbers"]
    assert first["numbers"][1] == 10
    entries = [e for e in journal(workspace / "run") if e["kind"] == "train"]
    assert [e["subgraph"] for e in entries] == [2, 4, 5, 7, 9, 10]
    assert entries[0]["nodes"] > 1.5 * entries[2]["nodes"]  # of both processes together
    weights = load_model(workspace / "run").state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in first["weights"].items())
    run_training(load_config(workspace / "config.py", overrides), workspace / "one")
    assert not same_weights(workspace / "run", workspace / "one")


@pytest.mark.long
def test_a_world_of_two_trains_to_the_same_accuracy(workspace):
    features, labels = blobs(identities=30, size=12, noise=0.6, seed=3)
    for split in ("part0_train", "part1_test"):
        features.tofile(workspace / "data" / "features" / f"{split}.bin")
        (workspace / "data" / "labels" / f"{split}.meta").write_text("\n".join(map(str, labels)) + "\n")
    overrides = {"sampling.subgraphs_per_epoch": 60, "optimizer.lr": 1e-2}
    overrides |= {"cluster_num": 12, "sampling.nearest": 20}
    two(train_and_keep, workspace / "config.py", overrides, workspace)
    run_training(load_config(workspace / "config.py", overrides), workspace / "one")
    run_training(load_config(workspace / "config.py", overrides | {"optimizer.lr": 0.0}), workspace / "start")
    accuracy = [journal(workspace / folder)[-1]["edge_accuracy"] for folder in ("run", "one", "start")]
    assert accuracy[0] == pytest.approx(accuracy[1], abs=0.01)
    assert min(accuracy[:2]) > accuracy[2] + 0.05


def prepare(workspace: Path, method: str, **more: object) -> None:
    """The config that both ways of starting processes read, in the folders of two runs."""
    overrides = COMMON | METHODS[method] | {"sampling.subgraphs_per_epoch": 40} | more
    for folder in ("whole", "other"):
        (workspace / folder).mkdir()
        save_config(load_config(workspace / "config.py", overrides), workspace / folder / "config.json")


def go_on(rank: int, port: int, folder: Path) -> None:
    """What train.py does in one of two processes."""
    join(rank, port)
    run_training(load_config(folder / "config.json"), folder, resume="auto")


def launch(workspace: Path, folder: str) -> subprocess.Popen:
    """The same as a command, from torchrun."""
    arguments = ["--config", workspace / folder / "config.json", "--work-dir", workspace / folder, "--resume", "auto"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*launcher, ROOT / "train.py", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for(folder: Path, checkpoints: int, ended: Callable[[], bool]) -> None:
    while len(list((folder / "checkpoints").glob("subgraph_*.pt"))) < checkpoints:
        assert not ended()
        time.sleep(0.005)


@pytest.mark.long
@pytest.mark.parametrize(
    "method", [m if m == "hierarchical" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
)
def test_two_processes_killed_and_resumed_the_weights_are_the_same(workspace, method):
    prepare(workspace, method)
    two(go_on, workspace / "whole")
    rng, other = random.Random(method), workspace / "other"
    for wanted in (2, 25):
        processes = start_two(go_on, other)
        wait_for(other, wanted, lambda processes=processes: any(process.exitcode is not None for process in processes))
        time.sleep(rng.random() * 0.05)
        assert kill(processes)
    if method == "basic":
        process = launch(workspace, "other")
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, out
        assert "continuing from subgraph_" in out
    else:
        two(go_on, other)
    assert same_weights(workspace / "whole", other)
    assert journal(other) == journal(workspace / "whole")
    record = json.loads((other / "run.json").read_text())
    assert record["processes"] == 2
    assert len(record["resumed"]) == 2
    assert all(resumed["from"].startswith("subgraph_") for resumed in record["resumed"])


def workers_of(process: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes in /proc")
def test_when_one_process_dies_all_end(workspace):
    prepare(workspace, "basic", total_epochs=500)
    process = launch(workspace, "other")
    wait_for(workspace / "other", 2, lambda: process.poll() is not None)
    workers = workers_of(process)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    out, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert "error: process 0 of 2: another process of this run has ended" in out
    assert not list((workspace / "other" / "checkpoints").glob(".*tmp*"))


@pytest.mark.long
def test_a_request_to_stop_ends_all_processes_with_one_checkpoint(workspace):
    prepare(workspace, "basic", total_epochs=500)
    process = launch(workspace, "other")
    wait_for(workspace / "other", 2, lambda: process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert out.count("SIGTERM: stopped after step") == 1
    assert "continue with: torchrun --standalone --nproc-per-node 2" in out


@pytest.mark.long
def test_another_number_of_processes_is_refused(workspace):
    overrides = COMMON | METHODS["basic"]
    two(train_and_keep, workspace / "config.py", overrides, workspace)
    with pytest.raises(ValueError, match=r"a run of 2 process\(es\), but this run has 1; set NPROC=2"):
        run_training(load_config(workspace / "config.py", overrides), workspace / "run", resume="auto")
