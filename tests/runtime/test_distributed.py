"""Test the messages between processes, and their shares of the cores."""

from __future__ import annotations

import os
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from helpers.processes import end, join, start, two
from helpers.samples import blobs, unit
from starfc.errors import InputError
from starfc.models.gcn import StarFCModel
from starfc.runtime.distributed import World, processes
from starfc.runtime.machine import set_threads
from starfc.training.basic import step_loss
from starfc.training.sampling import build_subgraph


def graph_of(seed: int):
    features, labels = blobs(identities=8, size=10, noise=0.6, seed=seed)
    return build_subgraph(unit(features), labels, 8, 0.0)


def gradients(model: StarFCModel, seed: int) -> torch.Tensor:
    graph = graph_of(seed)
    loss = step_loss(model, graph, torch.arange(0, graph.num_edges, 2))
    loss.backward()
    return loss


def average(rank: int, port: int, folder: Path) -> None:
    join(rank, port)
    with processes("cpu") as world:
        model = StarFCModel(16, 24, generator=torch.Generator().manual_seed(0))
        mean, stop = world.average_gradients(model.parameters(), gradients(model, rank), rank == 1)
        found = {"gradients": [p.grad for p in model.parameters()], "loss": mean, "stop": stop}
        model.zero_grad()
        loss = gradients(model, 7) if rank == 0 else None  # the other process has no subgraph
        mean, stop = world.average_gradients(model.parameters(), loss, False)
        found |= {"alone": [p.grad for p in model.parameters()], "alone_loss": mean, "alone_stop": stop}
        found |= {"highest": world.highest(3 + rank), "total": world.total(1.5, rank), "writes": world.writes}
    torch.save(found, folder / f"{rank}.pt")


@pytest.mark.long
def test_the_averaged_gradient_is_that_of_both_subgraphs_in_one_process(tmp_path):
    two(average, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    model = StarFCModel(16, 24, generator=torch.Generator().manual_seed(0))
    losses = [gradients(model, seed).item() for seed in (0, 1)]
    expected = [p.grad / 2 for p in model.parameters()]  # both backward passes have added up
    for ours, theirs, wanted in zip(first["gradients"], second["gradients"], expected, strict=True):
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-8)
    assert first["loss"] == second["loss"] == pytest.approx(np.mean(losses))
    assert (first["stop"], second["stop"]) == (True, True)
    model.zero_grad()
    loss = gradients(model, 7)
    for ours, theirs, wanted in zip(first["alone"], second["alone"], (p.grad for p in model.parameters()), strict=True):
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, wanted)
    assert first["alone_loss"] == pytest.approx(loss.item())
    assert not first["alone_stop"]
    assert (first["highest"], first["total"]) == (second["highest"], second["total"]) == (4, [3.0, 1.0])
    assert (first["writes"], second["writes"]) == (True, False)


def test_one_process_sends_nothing():
    world = World()
    model = StarFCModel(16, 24, generator=torch.Generator().manual_seed(0))
    loss = gradients(model, 0)
    before = [p.grad.clone() for p in model.parameters()]
    assert world.average_gradients(model.parameters(), loss, True) == (loss.item(), True)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


def test_every_process_has_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(2)), raising=False)
    before = torch.get_num_threads()
    assert (set_threads(None, 1), set_threads(None, 2), set_threads(None, 3)) == (2, 1, 1)
    assert set_threads(2, 2) == 2
    set_threads(before)
    assert np.isclose(torch.get_num_threads(), before)


def use_one_thread(folder: Path) -> None:
    assert torch.get_num_threads() > 0  # torch has been used, numba has not
    set_threads(1)
    (folder / "threads").write_text(f"{torch.get_num_threads()} {numba.get_num_threads()}")


def test_the_number_of_threads_holds_when_numba_starts_its_own(tmp_path):
    end([start(use_one_thread, tmp_path)])
    assert (tmp_path / "threads").read_text() == "1 1"


def test_more_processes_than_gpus_are_refused_before_they_connect(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    message = r"NPROC: must be at most the number of GPUs \(1\); found 2; lower it, or set device=cpu"
    with pytest.raises(InputError, match=message), processes("auto"):
        pass
