"""Training of the edge classifier on structure-preserved subgraphs, spec section 5.

    for every epoch, for every seed identity (shuffled):
        subgraph <- SPSS, kNN graph and Â built anew
        for every pass, for every patch of its edges (shuffled):
            loss = cross-entropy of the patch; one optimiser step

Cross-entropy over two classes is the logistic loss of z[1] - z[0]. ÂF does not change within a subgraph and is made
once; the backbone runs afresh for every patch, because its weights changed. The next subgraph is built while the
current one trains: its random numbers are its own, so this changes no result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, OneCycleLR

from starfc.clustering.scoring import project_nodes, score_entries
from starfc.config import Config
from starfc.errors import InputError
from starfc.evaluation.thresholds import choose_and_store
from starfc.graph.knn import check_k, exact_knn
from starfc.graph.neighbours import KnnGraph
from starfc.models.checkpoint import save_model
from starfc.models.gcn import StarFCModel
from starfc.runtime.atomic import prepare_folder, write_json
from starfc.runtime.machine import choose_device, environment, set_threads
from starfc.runtime.progress import progress
from starfc.runtime.stages import Stages
from starfc.splits import knn_graph, open_test_split, open_train_split
from starfc.training.holdout import held_back, holdout_text
from starfc.training.journal import Journal
from starfc.training.prefetch import prefetched
from starfc.training.sampling import (
    Subgraph,
    SubgraphSampler,
    build_subgraph,
    patches,
    random_rotation,
)

log = logging.getLogger("starfc")


@dataclass(frozen=True)
class LabelledGraph:
    """Features (N, d), labels (N,) and the kNN graph of instances to validate on."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    graph: KnnGraph


def run_training(config: Config, work_dir: str | Path) -> dict[str, Any]:
    """Train on the configured split and leave a complete record in ``work_dir``.

    Writes ``Backbone.pth`` and ``Head.pth`` (also under ``checkpoints/`` on the way), ``metrics.jsonl``, TensorBoard
    events where asked for, ``run.json``, and, where identities are held back, ``thresholds.json`` and
    ``threshold_surface.csv`` with its picture.

    Raises
    ------
    InputError
        Anything a user can mend, before training starts.
    """
    work_dir = prepare_folder(work_dir)
    threads, device = set_threads(config.threads), choose_device(config.device)
    stages = Stages(config.memory_limit_bytes())
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")

    with stages.stage("data"):
        features, labels, held = _training_data(config)
        validation = _validation_data(config, held, work_dir)
    generator = torch.Generator().manual_seed(config.seed)
    model = StarFCModel(**vars(config.model.kwargs), generator=generator).to(device)
    record = {"config": config.as_dict(), "seed": config.seed, "started": started, **environment(threads, device)}
    write_json(work_dir / "run.json", record)

    with stages.stage("training"), Journal(work_dir, config.log_config) as journal, torch.random.fork_rng():
        torch.manual_seed(config.seed)  # dropout
        train(config, model, features, labels, validation, device, work_dir, journal)
        save_model(model, work_dir)
    if held is not None:
        with stages.stage("thresholds"):
            text = holdout_text(config, held.labels)
            chosen = choose_and_store(
                work_dir, held.features, held.graph, held.labels, model,
                th_sim=config.th_sim, device=device, chosen_on=text,
            )  # fmt: skip
            record["thresholds"] = {refinement: vars(point) for refinement, point in chosen.items()}
    record["stages"] = [vars(stage) for stage in stages.finished]
    write_json(work_dir / "run.json", record)
    print(stages.table())
    print(f"written to {work_dir}: Backbone.pth, Head.pth, metrics.jsonl, run.json")
    return record


def train(
    config: Config,
    model: StarFCModel,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    validation: LabelledGraph | None,
    device: torch.device,
    work_dir: Path,
    journal: Journal,
) -> None:
    """The training loop; ``labels`` are 0..C-1 and the model is changed in place."""
    s, rng = config.sampling, np.random.default_rng(config.seed)
    nearest = s.nearest if s.nearest is not None else config.cluster_num + 200
    sampler = SubgraphSampler(
        features, labels, nearest=nearest, identities=config.cluster_num, instance_share=s.instance_share
    )
    per_epoch = s.subgraphs_per_epoch or sampler.num_identities
    optimizer = make_optimizer(config, model)
    schedule = make_schedule(config, optimizer, config.total_epochs * per_epoch * s.passes * s.patches)
    done = 0
    for epoch in range(1, config.total_epochs + 1):
        draws = _draws(config, sampler, features, labels, _seeds(sampler.num_identities, per_epoch, rng), done)
        with closing(prefetched(draws, config.threads)) as coming:
            clock = time.perf_counter()
            for draw in progress(f"epoch {epoch}", coming, total=per_epoch, unit="subgraph"):
                done += 1
                if draw.subgraph is None:
                    log.info("subgraph %d of identity %d skipped: %d instances", done, draw.seed, draw.num_nodes)
                    continue
                subgraph = draw.subgraph.to(device)
                loss = train_on_subgraph(
                    model, optimizer, schedule, subgraph, s.patches, s.passes, draw.rng, s.rotation
                )
                if not np.isfinite(loss):
                    raise InputError(
                        f"loss is {loss} at subgraph {done} (seed identity {draw.seed}); lower optimizer.lr"
                    )
                if done % config.log_config.interval == 0:
                    entry = {
                        "epoch": epoch,
                        "subgraph": done,
                        "loss": loss,
                        "lr": optimizer.param_groups[0]["lr"],
                        "nodes": subgraph.num_nodes,
                        "edges": subgraph.num_edges,
                        "build_seconds": draw.seconds,
                        "seconds": time.perf_counter() - clock,
                    }
                    journal.write("train", done, entry)
                if done % config.checkpoint_config.interval == 0:
                    save_model(model, work_dir / "checkpoints" / f"subgraph_{done:06d}")
                clock = time.perf_counter()
        if isinstance(schedule, MultiStepLR):
            schedule.step()
        save_model(model, work_dir / "checkpoints" / f"epoch_{epoch:03d}")
        if validation is not None:
            accuracy = edge_accuracy(model, validation, config.th_sim, device)
            journal.write("validation", done, {"epoch": epoch, "edge_accuracy": accuracy})


def train_on_subgraph(
    model: StarFCModel,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    subgraph: Subgraph,
    count: int,
    passes: int,
    rng: np.random.Generator,
    rotation: float = 0.0,
) -> float:
    """``passes`` times over the subgraph's edges in ``count`` patches, one step each; returns the mean loss.

    With ``rotation`` above 0 every step sees the features turned by a small random rotation
    (:func:`~starfc.training.sampling.random_rotation`).
    """
    model.train()
    device, losses = subgraph.features.device, []
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    for _ in range(passes):
        for patch in patches(subgraph.num_edges, count, rng):
            turn = random_rotation(model.feature_dim, rotation, generator).to(device) if rotation else None
            losses.append(train_step(model, optimizer, subgraph, torch.from_numpy(patch).to(device), turn))
            if isinstance(schedule, OneCycleLR):
                schedule.step()
    return float(torch.stack(losses).mean())


def train_step(
    model: StarFCModel,
    optimizer: torch.optim.Optimizer,
    subgraph: Subgraph,
    edges: Tensor,
    turn: Tensor | None = None,
) -> Tensor:
    """One optimiser step on the edges of these numbers, the features turned where a rotation is given -> the loss."""
    rows, cols, targets = (x[edges] for x in (subgraph.rows, subgraph.cols, subgraph.targets))
    logits = model(subgraph.features, subgraph.aggregated, rows, cols, turn)
    loss = functional.binary_cross_entropy_with_logits(logits, targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def make_optimizer(config: Config, model: StarFCModel) -> torch.optim.Optimizer:
    """SGD (published) or AdamW over all parameters."""
    o = config.optimizer
    if o.type == "SGD":
        return torch.optim.SGD(model.parameters(), o.lr, momentum=o.momentum, weight_decay=o.weight_decay)
    return torch.optim.AdamW(model.parameters(), o.lr, weight_decay=o.weight_decay)


def make_schedule(config: Config, optimizer: torch.optim.Optimizer, total_steps: int) -> LRScheduler:
    """A tenth at the given epochs (published), or one cycle over all optimiser steps."""
    policy = config.lr_config
    if policy.policy == "step":
        return MultiStepLR(optimizer, policy.step, gamma=0.1)
    # one more than it takes: torch counts the step of its own construction
    return OneCycleLR(optimizer, config.optimizer.lr, total_steps=total_steps + 1, pct_start=policy.warmup)


def edge_accuracy(model: StarFCModel, data: LabelledGraph, th_sim: float, device: torch.device) -> float:
    """Share of kNN pairs on which p > 0.5 agrees with same identity."""
    nodes = project_nodes(model, data.features, data.graph, th_sim, device)
    right = total = 0
    for rows, entries in score_entries(nodes):
        same = data.labels[rows[entries.local]] == data.labels[entries.cols]
        right += int(((entries.scores > 0.5) == same).sum())
        total += len(same)
    return right / total


@dataclass(frozen=True)
class _Draw:
    """A subgraph (None where it is too small or too large), and the generator that is to shuffle its edges."""

    seed: int
    num_nodes: int
    subgraph: Subgraph | None
    rng: np.random.Generator
    seconds: float


def _draws(
    config: Config,
    sampler: SubgraphSampler,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    seeds: NDArray[np.int64],
    done: int,
) -> Iterator[_Draw]:
    """The subgraphs of some seed identities. Each has a stream of random numbers of its own, numbered from ``done``."""
    s = config.sampling
    for number, seed in enumerate(seeds, done + 1):
        clock, rng = time.perf_counter(), np.random.default_rng([config.seed, 2, number])
        instances = sampler.sample(int(seed), rng)
        fits = s.min_nodes <= len(instances) <= s.max_nodes
        subgraph = build_subgraph(features[instances], labels[instances], config.knn, config.th_sim) if fits else None
        yield _Draw(int(seed), len(instances), subgraph, rng, time.perf_counter() - clock)


def _seeds(num_identities: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Seed identities of an epoch: shuffled, each once before any comes again."""
    rounds = -(-count // num_identities)
    return np.concatenate([rng.permutation(num_identities) for _ in range(rounds)])[:count]


def _training_data(config: Config) -> tuple[NDArray[np.float32], NDArray[np.int64], LabelledGraph | None]:
    """Features and labels 0..C-1 to train on, and the held-back part as a labelled graph, if any."""
    split = open_train_split(config)
    valid, invalid = split.features.valid(config.invalid_rows)
    features = valid.all()
    _, labels = np.unique(np.delete(split.labels, invalid), return_inverse=True)
    if labels.max(initial=-1) < 1:
        raise InputError(
            f"{split.features.name}: training needs at least 2 identities; found {labels.max(initial=-1) + 1}"
        )
    share = config.validation.holdout_share
    if share == 0:
        return features, labels, None
    held = held_back(features, labels, config.validation, config.seed)
    if not held.any() or len(np.unique(labels[~held])) < 2:
        raise InputError(
            f"validation.holdout_share: {share} of {labels.max() + 1} identities leaves too few on one side"
        )
    check_k(config.knn, int(held.sum()), "the held-back identities")
    held_graph = LabelledGraph(features[held], labels[held], exact_knn(features[held], config.knn))
    _, kept_labels = np.unique(labels[~held], return_inverse=True)
    return features[~held], kept_labels, held_graph


def _validation_data(config: Config, held: LabelledGraph | None, work_dir: Path) -> LabelledGraph | None:
    if config.validation.source != "test":
        return held if config.validation.source == "holdout" else None
    split, graph_path = open_test_split(config, None, None)
    if split.labels is None:
        log.warning("validation: the test split %s has no labels; skipped", split.name)
        return None
    split.features.require_valid()
    check_k(config.knn, len(split), split.features.name)
    matrix = split.features.all()
    return LabelledGraph(matrix, split.labels, knn_graph(config, split.features, graph_path, work_dir))
