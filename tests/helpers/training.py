"""Small training runs of every method, and the values by which two runs are compared."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from starfc.models.checkpoint import load_model
from starfc.training.basic import step_loss

METHODS = {
    "basic": {"model.kwargs.dropout": 0.1, "sampling.rotation": 0.2},  # everything that draws random numbers
    "hierarchical": {
        "model.type": "hierarchical",
        "model.kwargs.dropout": 0.1,
        "sampling.rotation": 0.2,
        "knn": 12,
        "hierarchical": {
            "k_mid": 10,
            "offsets": [2, 3, 4],
            "scales": [8, 10, 12],
            "patch_edges": 300,
            "offset_lr": 0.1,
        },
    },
    "structural": {
        "model.type": "gcn_structural",
        "model.kwargs.nhid": 16,
        "structural.candidates": 6,
    },
}  # fmt: skip
COMMON = {
    "validation": {"source": "holdout", "holdout_share": 0.3, "interval": 3},
    "total_epochs": 2,
    "checkpoint_config": {"interval": 1, "keep": 100},
}


def same_weights(a: Path, b: Path) -> bool:
    first, second = load_model(a).state_dict(), load_model(b).state_dict()
    return all(torch.equal(first[key], second[key]) for key in first)


def journal(folder: Path) -> list[dict]:
    """Entries without the times."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in e.items() if "seconds" not in key} for e in entries]


def train_step(model, optimizer, graph, edges, turn=None):
    """Make one optimiser step on some edges, and return the loss."""
    loss = step_loss(model, graph, edges, turn)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()
