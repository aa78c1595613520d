"""Train a model for any embedding (:mod:`starfc.models.contextual`) on many kinds of data.

    for kinds 0 .. A - 1:        columns of the first round                       -> an early first scorer
    for kinds A .. A + B - 1:    columns of both rounds, after the early scorer   -> second scorer
    for all kinds:               columns of the first round                       -> first scorer

The second scorer must not be trained on probabilities of a scorer that was fitted to the same labels. For this reason
it is trained on other kinds than the early scorer. At the end the first scorer, trained on all kinds, replaces the
early one.

A kind (:mod:`starfc.training.kinds`) is a complete data set with its own kNN graph, strangers and contexts. At most
``edges`` of its candidate edges are used for training. Every kind has the same weight. One kind in twelve is held out,
to measure the loss on kinds that the scorers have not seen.

The samples of the kinds are kept in ``work_dir/kinds`` until the end, so that a stopped run can continue from them,
with the same result as a run without a stop (:mod:`starfc.training.sample_files`). A file whose digest differs is made
again. So are all samples of both rounds if the early scorer differs: with other threads or on another device, its last
bits do. The fits take a few minutes and are repeated.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
import signal
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from starfc.config.config import Config, Kinds, save_config
from starfc.config.splits import open_train_split
from starfc.data.dataset import Features
from starfc.errors import InputError, MissingFileError
from starfc.graph.knn import build_knn
from starfc.graph.strangers import Strangers
from starfc.graph.structure import EdgeLogits, Structure, encode, smooth
from starfc.models.checkpoint import load_model, save_model, weights_digest
from starfc.models.contextual import (
    COLUMNS_FIRST,
    CONTEXT_FIRST,
    CONTEXT_NOISE,
    ContextScorer,
    ContextualModel,
    MeanScorer,
    first_context,
    sampled_nodes,
    second_context,
)
from starfc.runtime import threads
from starfc.runtime.device import device_limit
from starfc.runtime.interrupts import Stopped, stop_requests
from starfc.runtime.machine import choose_device, environment, set_threads
from starfc.runtime.processes import end_with_parent
from starfc.runtime.products import slices
from starfc.runtime.progress import progress
from starfc.runtime.stages import Stages
from starfc.scoring.structural import ROW_BLOCK
from starfc.storage.atomic import prepare_folder, write_json
from starfc.storage.commit import Change, changing
from starfc.storage.opened import opened
from starfc.storage.owners import TRAIN
from starfc.storage.records import Anything
from starfc.training.kinds import DataKind, Real, make_kind
from starfc.training.sample_files import Edges, Sample, SampleFiles, read_samples, write_samples

log = logging.getLogger("starfc")

_CHUNK = 10  # kinds per file
_HELD_BACK = 12  # one of so many kinds is held out
_EDGES_OF_A_KIND = 64  # edges per kind and step
_STANDARD = 400  # edges per kind from which means and standard deviations are computed
_DROPPED = 0.1  # share of the context's hidden units that a step drops


def run_kinds_training(
    config: Config, work_dir: str | Path, inputs: Iterable[str | Path | None] = (), overwrite: bool = False
) -> dict[str, Any]:
    """Train on kinds of data, and write ``config.json``, ``Contextual.pth`` and ``run.json`` to ``work_dir``.

    The parameters are those of :func:`starfc.training.trainer.run_training`.

    Returns
    -------
    dict
        The record, which is also in ``run.json``.
    """
    with changing(work_dir, TRAIN, inputs=inputs, overwrite=overwrite) as change:
        torch.set_flush_denormal(True)  # products with weights that decay to denormal numbers would be slow
        try:
            with device_limit(config.device_memory_bytes()):
                record = _train(config, change)
        finally:
            torch.set_flush_denormal(False)  # features in the same process may be denormal numbers
    shutil.rmtree(change.folder / "kinds", ignore_errors=True)
    return record


def _train(config: Config, change: Change) -> dict[str, Any]:
    work_dir, settings = change.folder, config.kinds
    count, device = set_threads(config.threads), choose_device(config.device)
    stages = Stages(config.memory_limit_bytes())
    generator = torch.Generator().manual_seed(config.seed)
    shape = {"columns": config.knn - 1, "candidates": config.structural.candidates}
    model = ContextualModel(
        config.model.kwargs.nhid,
        **shape,
        smoothing=config.structural.smoothing,
        members=settings.members,
        generator=generator,
    )
    record: dict[str, Any] = {"config": config.as_dict(), **environment(count, device)}
    real = _real_paths(config)
    _require_same_settings(config, real, prepare_folder(work_dir / "kinds"))
    with stages.stage("kinds, early"):
        early = _samples(config, real, work_dir, "early", 0, settings.first, count)["first"]
    with stages.stage("fit, early"):
        record["early"] = _fit_members(model.first.to(device), early, settings, generator, "early first round")
    save_model(model, work_dir / "kinds")
    before, last = weights_digest(model), settings.first + settings.second
    with stages.stage("kinds, both rounds"):
        later = _samples(config, real, work_dir, "both", settings.first, last, count, before)
    with stages.stage("fit, both rounds"):
        record["second"] = _fit_members(model.second.to(device), later["second"], settings, generator, "second round")
        model.first = MeanScorer(COLUMNS_FIRST, CONTEXT_FIRST, model.nhid, settings.members, generator).to(device)
        record["first"] = _fit_members(model.first, early + later["first"], settings, generator, "first round")
    record["stages"] = [vars(stage) for stage in stages.finished]
    save_model(model, change.place)
    save_config(config, change.place / "config.json")
    write_json(change.place / "run.json", record)
    return record


def _samples(
    config: Config,
    real: tuple[str, str] | None,
    work_dir: Path,
    name: str,
    start: int,
    stop: int,
    processes: int,
    before: str = "",
) -> dict[str, list[Sample]]:
    """Return the training edges of kinds ``start`` to ``stop - 1``, by round. Several processes make them.

    ``before`` is the digest of the early scorer that makes the samples of both rounds.
    """
    files = SampleFiles(work_dir / "kinds", name, before)
    chunks = [range(first, min(first + _CHUNK, stop)) for first in range(start, stop, _CHUNK)]
    todo = [chunk for chunk in chunks if not files.has(chunk)]
    todo.sort(key=lambda chunk: -(chunk.start % 60))  # start with chunks that have a huge kind
    early = files.folder if before else None
    shape = (config.structural.candidates, config.knn, config.structural.smoothing)
    given = (early, asdict(config.kinds), config.seed, real, *shape)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _alone)
    with progress(f"kinds, {name}", total=sum(map(len, todo)), unit="kind") as bar, pool, stop_requests() as request:
        running = {pool.submit(_make_chunk, files.path(chunk), chunk, *given): chunk for chunk in todo}

        def note(future: Future[str]) -> None:
            chunk = running.pop(future)
            files.note(chunk, future.result())
            bar.update(len(chunk))

        while running:
            for future in wait(running, timeout=1, return_when=FIRST_COMPLETED)[0]:
                note(future)
            if request.signal is not None:
                pool.shutdown(wait=True, cancel_futures=True)
                for future in [future for future in running if not future.cancelled()]:
                    note(future)
                raise Stopped(
                    f"training: stopped by {request.signal.name}; the samples of the kinds are in {files.folder}; run "
                    "the same command to continue from them",
                    request.signal,
                )
    samples: dict[str, list[Sample]] = {"first": [], "second": []}
    for chunk in chunks:
        for of_round, sample in read_samples(files.path(chunk)):
            samples[of_round].append(sample)
    return samples


def _require_same_settings(config: Config, real: tuple[str, str] | None, folder: Path) -> None:
    """Raise InputError if the samples in ``folder`` were made with other settings. Without samples, write settings."""
    ours = {name: value for name, value in asdict(config.kinds).items() if name != "second"}
    ours |= {"seed": config.seed, "knn": config.knn, "nhid": config.model.kwargs.nhid, **asdict(config.structural)}
    ours |= {"real": real}
    at, ours = opened(folder), json.loads(json.dumps(ours))
    if not at.has("settings.json"):
        write_json(folder / "settings.json", ours)
        return
    theirs = at.json("settings.json", Anything).root
    other = {name: theirs.get(name) for name, value in ours.items() if theirs.get(name) != value}
    if other:
        now = {name: ours[name] for name in other}
        raise InputError(
            f"{folder}: was made by a run with {other}, but the config now has {now}; delete this folder, or name "
            "another folder for this run"
        )


def _alone() -> None:
    """Prepare a worker process."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    set_threads(1)
    torch.set_flush_denormal(True)  # products with weights that decay to denormal numbers would be slow


def _real_paths(config: Config) -> tuple[str, str] | None:
    """Return the paths of the config's training split. None if it does not exist: kinds then have no real data."""
    try:
        split = open_train_split(config)
    except MissingFileError as error:
        log.warning("kinds: without the family 'real', which needs labelled features (%s)", error)
        return None
    data = config.train_data
    del split
    return str(config.path(data.feat_path)), str(config.path(data.label_path))


_real: Real | None = None


def _make_chunk(
    path: Path,
    numbers: range,
    early: Path | None,
    settings: dict[str, Any],
    seed: int,
    real_paths: tuple[str, str] | None,
    candidates: int,
    knn: int,
    smoothing: int,
) -> str:
    """Make a file of samples, and return its digest. This runs in a worker process.

    ``numbers`` are those of the kinds, and ``early`` is the folder of the early scorer, for samples of both rounds.
    """
    from starfc.data.dataset import open_split

    global _real
    if real_paths is not None and _real is None:
        split = open_split(*real_paths, feature_dim=None)
        assert split.labels is not None  # open_train_split has checked that there are labels
        _real = Real(split.features, split.labels)
    before = None if early is None else load_model(early)
    assert before is None or isinstance(before, ContextualModel)
    samples = {}
    for number in numbers:
        kind = make_kind(seed, number, _real)
        if kind is not None:
            rng = np.random.default_rng([seed, number, 1])
            edges = sample_edges(kind, rng, settings["edges"], before, candidates, knn, smoothing)
            samples[number] = kind.family, edges
    return write_samples(path, samples)


def sample_edges(
    kind: DataKind,
    rng: np.random.Generator,
    count: int,
    before: ContextualModel | None,
    candidates: int = 40,
    knn: int = 80,
    smoothing: int = 10,
) -> dict[str, Edges]:
    """Draw training edges of a kind, for the 'first' round, and with ``before`` also for the 'second' round.

    Parameters
    ----------
    kind : Kind
        The data set.
    rng : Generator
        Random numbers of the draw.
    count : int
        Maximum number of edges.
    before : ContextualModel, optional
        Model whose first round computes the probabilities that the second round uses.
    candidates, knn, smoothing : int
        Settings of the structural features; see the config.

    Returns
    -------
    dict
        By round: columns (m, f) float16, whether both ends have the same identity (m,) bool, context (c,) float32.
    """
    features = Features(kind.features)
    valid = features.valid("singleton")[0]
    labels = kind.labels if len(valid) == len(features) else np.delete(kind.labels, features.invalid_rows)
    n = len(valid)
    graph = build_knn(valid, min(knn, n - 1))
    strangers = Strangers.of(valid)
    structure = Structure(graph, knn - 1, candidates, smooth(graph, valid, smoothing), strangers=strangers)
    sampled = sampled_nodes(n)
    pairs = structure.first_round(sampled)
    same = labels[pairs.rows] == labels[graph.ids[pairs.rows, pairs.slots]]
    context = first_context(pairs.features, n, valid.dim, strangers)
    chosen = rng.permutation(len(same))[:count]
    samples = {"first": (pairs.features[chosen].astype(np.float16), same[chosen], context)}
    if before is not None:
        pairs = structure.second_round(sampled, first_logits(before, structure, context))
        context = second_context(context, pairs.features)
        samples["second"] = pairs.features[chosen].astype(np.float16), same[chosen], context
    return samples


def first_logits(model: ContextualModel, structure: Structure, context: NDArray[np.float32]) -> EdgeLogits:
    """Compute the first round's logits of all candidate edges."""
    scorer, logits, n = model.first.of(context), EdgeLogits(structure), structure.graph.num_nodes

    @torch.inference_mode()
    def work(rows: slice) -> None:
        pairs = structure.first_round(np.arange(rows.start, rows.stop))
        logits.put(pairs, encode(scorer(torch.from_numpy(pairs.features)).numpy()))

    threads.each(work, slices(n, ROW_BLOCK))
    logits.sum_degrees(np.arange(n))
    return logits


def _fit_members(
    scorer: MeanScorer, samples: list[Sample], settings: Kinds, generator: torch.Generator, name: str
) -> list[dict[str, Any]]:
    of = [f"{name}, scorer {number} of {len(scorer.members)}" for number in range(1, len(scorer.members) + 1)]
    return [fit(member, samples, settings, generator, of[at]) for at, member in enumerate(scorer.members)]


def fit(
    scorer: ContextScorer,
    samples: list[Sample],
    settings: Kinds,
    generator: torch.Generator,
    name: str = "",
) -> dict[str, Any]:
    """Fit a scorer by cross-entropy. Every step draws some kinds, and 64 edges of each of them.

    Returns
    -------
    dict
        Numbers of kinds and of families in the training, the mean loss of the last tenth of the steps, and the mean
        cross-entropy on the kinds that are held out.
    """
    held = samples[_HELD_BACK // 2 :: _HELD_BACK]
    learnt = [sample for at, sample in enumerate(samples) if at % _HELD_BACK != _HELD_BACK // 2]
    device = scorer.feature_mean.device
    contexts = torch.from_numpy(np.stack([sample[2] for sample in learnt])).to(device)
    some = torch.from_numpy(np.concatenate([sample[0][:_STANDARD] for sample in learnt]).astype(np.float32))
    scorer.standardise(some.to(device), contexts)
    features = torch.from_numpy(np.concatenate([sample[0] for sample in learnt]))
    targets = torch.from_numpy(np.concatenate([sample[1] for sample in learnt]))
    counts = torch.tensor([len(sample[1]) for sample in learnt])
    starts = torch.cumsum(counts, 0) - counts
    kinds = max(1, settings.batch // _EDGES_OF_A_KIND)
    optimizer = torch.optim.AdamW(scorer.parameters(), settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.steps, pct_start=0.15)
    first, _ = scorer.context
    units, losses = first.out_features, []
    scorer.train()
    for _ in progress(f"fit, {name}", range(settings.steps), unit="step"):
        of = torch.randint(len(learnt), (kinds,), generator=generator)
        picks = (torch.rand(kinds, _EDGES_OF_A_KIND, generator=generator) * counts[of][:, None]).long()
        edges = (starts[of][:, None] + picks).flatten()
        noise = CONTEXT_NOISE * torch.randn(kinds, contexts.shape[1], generator=generator)
        kept = (torch.rand(kinds, units, generator=generator) >= _DROPPED).float() / (1 - _DROPPED)
        modulation = scorer.modulation(contexts[of.to(device)], noise.to(device), kept.to(device))
        logits = scorer(features[edges].float().to(device), modulation.repeat_interleave(_EDGES_OF_A_KIND, dim=0))
        loss = _cross_entropy(logits, targets[edges].float().to(device))
        if not torch.isfinite(loss):
            raise InputError("training on kinds: the loss is not finite; lower kinds.lr")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    scorer.eval()
    found = {
        "kinds": len(learnt),
        "families": dict(Counter(sample[3] for sample in learnt)),
        "loss": float(np.mean(losses[-max(1, settings.steps // 10) :])),
        "held_back": held_back_loss(scorer, held),
    }
    log.info("%s: loss %.4f, on held-out kinds %.4f", name, found["loss"], found["held_back"])
    return found


@torch.no_grad()
def held_back_loss(scorer: ContextScorer, samples: list[Sample]) -> float:
    """Return the mean over kinds of the cross-entropy of their edges; NaN without kinds."""
    device, losses = scorer.feature_mean.device, []
    for features, same, context, _ in samples:
        modulation = scorer.modulation(torch.from_numpy(context)[None].to(device))
        logits = scorer(torch.from_numpy(features.astype(np.float32)).to(device), modulation)
        losses.append(_cross_entropy(logits, torch.from_numpy(same.astype(np.float32)).to(device)).item())
    return float(np.mean(losses)) if losses else float("nan")


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, targets)
