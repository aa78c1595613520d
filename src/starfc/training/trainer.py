"""Train on structure-preserved subgraphs (SPSS, CVPR 2021, section 3.3): the loop that all methods share.

    for every epoch, for every seed identity (shuffled):
        subgraph <- SPSS, with its own kNN graphs
        for every patch of its edges: loss; mean gradient over all processes; one optimiser step

The method defines the subgraph, the loss and the step (:mod:`starfc.training.basic`,
:mod:`starfc.training.hierarchical`, :mod:`starfc.training.structural`). The next subgraph is built while the current
one is in training. Each of several processes has its own subgraphs; a *round* is one subgraph of each process.
"""

from __future__ import annotations

import logging
import math
import shlex
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.config.config import Config, save_config
from starfc.errors import InputError
from starfc.evaluation.calibration import calibrate, labelled_logits
from starfc.evaluation.labelled import LabelledGraph
from starfc.evaluation.thresholds import choose_and_store
from starfc.models.checkpoint import Model, save_model
from starfc.models.gcn import StarFCModel
from starfc.models.hierarchical import HierarchicalModel
from starfc.models.kinds import GCN, KINDS, STRUCTURAL
from starfc.models.structural import StructuralModel
from starfc.runtime.device import device_limit
from starfc.runtime.distributed import World, processes
from starfc.runtime.interrupts import Stopped, StopRequest, stop_requests
from starfc.runtime.machine import choose_device, environment, set_threads
from starfc.runtime.progress import progress
from starfc.runtime.stages import Stage, Stages
from starfc.runtime.words import advice
from starfc.scoring.projections import project_nodes, score_entries
from starfc.storage.atomic import prepare_folder, write_json
from starfc.storage.commit import FILES, Change, changing
from starfc.storage.opened import opened
from starfc.storage.owners import TRAIN
from starfc.storage.records import TrainingRecord
from starfc.training.basic import BasicTraining
from starfc.training.data import (
    TrainingData,
    held_back_graph,
    holdout_text,
    read_training_data,
    validation_data,
    whole_graph,
)
from starfc.training.hierarchical import HierarchicalTraining
from starfc.training.journal import Journal, require_hooks
from starfc.training.optimisers import Schedule
from starfc.training.prefetch import prefetched
from starfc.training.sampling import SubgraphSampler
from starfc.training.state import Checkpoints, Position, find_checkpoint
from starfc.training.streams import epoch_stream, step_generator, subgraph_stream
from starfc.training.structural import StructuralTraining

log = logging.getLogger("starfc")

Method = BasicTraining | HierarchicalTraining | StructuralTraining


def run_training(
    config: Config,
    work_dir: str | Path,
    resume: str | None = None,
    go_on: str | None = None,
    inputs: Iterable[str | Path | None] = (),
    overwrite: bool = False,
) -> dict[str, Any] | None:
    """Train on the training split of a config, and write a complete record to ``work_dir``.

    Writes ``config.json``, ``run.json``, ``checkpoints/``, ``metrics.jsonl``, and TensorBoard events if configured. At
    the end it writes, all at once: the weights (``Backbone.pth`` and ``Head.pth``, or the files of the other models),
    the thresholds chosen on held-out identities, if there are any, with the whole surface, the config and the record.

    Parameters
    ----------
    config : Config
        All settings.
    work_dir : path
        Folder of the run.
    resume : str, optional
        A checkpoint to continue from, or 'auto' for the newest one in ``work_dir``, if there is one.
    go_on : str, optional
        The command that continues a stopped run, for the message. Default: that of train.py.
    inputs : paths, optional
        Files that are read. They are never replaced.
    overwrite : bool
        Whether to replace files in ``work_dir`` that no earlier training wrote.

    Returns
    -------
    dict or None
        The record, which is also written to ``run.json``; :func:`training_text` formats it. Of several processes, all
        but the one that writes return None.

    Raises
    ------
    InputError
        There is a mistake in the input (raised before training starts), or the loss is not finite.
    Stopped
        SIGTERM or SIGINT came. A checkpoint has been written, and the message says how to continue.
    """
    if config.kind.contextual:
        from starfc.training.contextual import run_kinds_training

        return run_kinds_training(config, work_dir, inputs, overwrite)
    require_hooks(config.log_config)
    with processes(config.device) as world, device_limit(config.device_memory_bytes()):
        if not world.writes:
            return _run(config, prepare_folder(work_dir), resume, go_on, world, None)
        with changing(work_dir, TRAIN, inputs=inputs, overwrite=overwrite) as change:
            return _run(config, change.folder, resume, go_on, world, change)


def _run(
    config: Config, work_dir: Path, resume: str | None, go_on: str | None, world: World, change: Change | None
) -> dict[str, Any] | None:
    threads = set_threads(config.threads, world.local_size)
    device = choose_device(config.device, world.local_rank)
    stages = Stages(config.memory_limit_bytes())
    with stages.stage("data"):
        data = read_training_data(config)
        whole = whole_graph(config, data) if config.kind.structural else None
        held = None
        if world.writes and data.held is not None:
            held = whole or held_back_graph(config, data)
        validation = validation_data(config, held, work_dir) if world.writes else None
    method = make_method(config, device, whole)
    rounds = config.total_epochs * _epoch_size(config, len(data.identities), world)[1]
    schedule = Schedule(config, method.optimizer, rounds)
    checkpoints = Checkpoints(work_dir / "checkpoints", config, data.fingerprint, world.size)
    start = find_checkpoint(resume, checkpoints)
    position = Position() if start is None else checkpoints.restore(start, method, schedule)
    world.highest(0)  # wait until every process has read, before files are written
    record = _record(work_dir, config, start, environment(threads, device) | {"processes": world.size})
    if change is not None:
        log.info("%s: %s", work_dir, "a new run" if start is None else f"continuing from {start.name}")
        if start is None:
            _require_own_journal(work_dir, change)
        if not (work_dir / FILES).is_file():  # files of a finished run stay until this run has ended
            save_config(config, work_dir / "config.json")
            write_json(work_dir / "run.json", record)
            change.wrote("config.json")
            change.wrote("run.json")
    opened = Journal(work_dir, config.log_config, position.journal_bytes, position.done) if world.writes else None
    session = Session(config, method, schedule, data, validation, world, device, work_dir, checkpoints, opened, go_on)
    random = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with stages.stage("training"), opened or nullcontext(), random, stop_requests() as request:
        train(session, position, request)
    if change is None:
        return None
    if held is not None and isinstance(method.model, StructuralModel):
        with stages.stage("calibration"):
            record["calibration"] = calibrate(method.model, held, change.place, device)
    save_model(method.model, change.place)
    if held is not None and data.held is not None:
        with stages.stage("thresholds"):
            chosen = choose_and_store(
                change.place, held.features, held.graph, held.labels, method.model, scored=held.held,
                th_sim=config.th_sim, device=device, chosen_on=holdout_text(config, data.held),
            )  # fmt: skip
            record["thresholds"] = {refinement: vars(point) for refinement, point in chosen.items()}
    record["stages"] = [vars(stage) for stage in stages.finished]
    save_config(config, change.place / "config.json")
    write_json(change.place / "run.json", record)
    return record


def _require_own_journal(work_dir: Path, change: Change) -> None:
    """Raise InputError if metrics.jsonl exists and no training wrote it."""
    path = work_dir / "metrics.jsonl"
    trained = any(file.by == "train" for file in change.owned.values())
    if path.exists() and path.stat().st_size and not (trained or change.overwrite):
        remedy = advice(", or add {}", "overwrite")
        raise InputError(f"{path}: no earlier training wrote this file; name another folder{remedy}")


def training_text(record: dict[str, Any], work_dir: str | Path) -> str:
    """Return the record of a finished training as the text that commands print."""
    table = Stages(finished=[Stage(**stage) for stage in record["stages"]]).table()
    logs = "" if KINDS[record["config"]["model"]["type"]].contextual else "checkpoints, metrics.jsonl, "
    return f"{table}\nwritten to {work_dir}: weights, config.json, {logs}run.json"


@dataclass(frozen=True)
class Session:
    """The objects that the training loop uses. ``journal`` is None except in the process that writes.

    ``go_on`` is the command that continues a stopped run. None: that of train.py.
    """

    config: Config
    method: Any
    schedule: Schedule
    data: TrainingData
    validation: LabelledGraph | None
    world: World
    device: torch.device
    work_dir: Path
    checkpoints: Checkpoints
    journal: Journal | None
    go_on: str | None

    def save(self, position: Position, best: bool = False) -> Path:
        """Write a checkpoint, or ``best.pt``."""
        assert self.journal is not None  # only the process that writes calls this
        position.journal_bytes = self.journal.bytes
        return self.checkpoints.save(position, self.method, self.schedule, best)


def train(session: Session, position: Position, request: StopRequest) -> None:
    """Run the training loop from a position to the end, or until the process is asked to stop."""
    config, world, s = session.config, session.world, session.config.sampling
    sampler = SubgraphSampler(
        session.data.train.features,
        session.data.train.labels,
        nearest=s.nearest if s.nearest is not None else config.cluster_num + 200,
        identities=config.cluster_num,
        instance_share=s.instance_share,
    )
    per_epoch, rounds = _epoch_size(config, sampler.num_identities, world)
    while position.epoch <= config.total_epochs:
        seeds = _seeds(sampler.num_identities, per_epoch, epoch_stream(config.seed, position.epoch))
        first = (position.epoch - 1) * per_epoch + 1  # number of the epoch's first subgraph
        mine = [at * world.size + world.rank for at in range(position.rounds, rounds)]
        draws = (_draw(session, sampler, first + n, int(seeds[n])) if n < per_epoch else None for n in mine)
        with closing(prefetched(draws, config.threads, world.local_size)) as coming:
            bar = progress(f"epoch {position.epoch}", coming, total=rounds, done=position.rounds, unit="round")
            clock = time.perf_counter()
            for draw in bar if world.writes else coming:
                before, entry = position.done, _train_round(session, draw, position, request)
                position.next_round(min(world.size, per_epoch - position.rounds * world.size))
                if entry["steps"]:
                    session.schedule.after_round()
                if session.journal is not None:
                    entry["seconds"] = time.perf_counter() - clock
                    _keep_record(session, session.journal, position, before, entry)
                clock = time.perf_counter()
        if session.journal is not None and session.validation is not None and config.validation.interval is None:
            _validate(session, session.journal, session.validation, position)
        session.schedule.after_epoch()
        position.next_epoch()
        if session.journal is not None:
            session.save(position)


@dataclass(frozen=True)
class _Draw:
    """A subgraph (None if it is too small or too large), and the generator of its offsets and patches."""

    number: int
    seed: int
    instances: NDArray[np.int64]
    subgraph: Any
    rng: np.random.Generator
    seconds: float


def _draw(session: Session, sampler: SubgraphSampler, number: int, seed: int) -> _Draw:
    """Draw and build subgraph ``number`` around the identity ``seed``."""
    clock, rng = time.perf_counter(), subgraph_stream(session.config.seed, number)
    instances = sampler.sample(seed, rng)
    fits = session.config.sampling.min_nodes <= len(instances) <= session.config.sampling.max_nodes
    subgraph = session.method.build(session.data.train, instances) if fits else None
    return _Draw(number, seed, instances, subgraph, rng, time.perf_counter() - clock)


def _train_round(session: Session, draw: _Draw | None, position: Position, request: StopRequest) -> dict[str, float]:
    """Train on one subgraph of every process, from the step of the position, and return the values to log.

    A process whose subgraph is skipped, or that has none left, makes the steps with the gradients of the others.
    """
    method, world, work = session.method, session.world, None
    if draw is not None and draw.subgraph is None:
        identity = session.data.identities[draw.seed]
        log.info("subgraph %d of identity %s is skipped: %d instances", draw.number, identity, len(draw.instances))
    elif draw is not None:
        work = method.start(draw.subgraph, draw.rng, session.device)
    steps = world.highest(0 if work is None else method.num_steps(work))
    patches = [] if draw is None or work is None else method.deal(work, steps, draw.rng)
    method.model.train()
    for step in range(position.steps, steps):
        method.model.zero_grad(set_to_none=True)
        loss, terms = None, {}
        if draw is not None and step < len(patches):
            loss, terms = method.loss(work, patches[step], step_generator(session.config.seed, draw.number, step))
            loss.backward()
        mean, stop = world.average_gradients(method.model.parameters(), loss, bool(request))
        if not math.isfinite(mean):
            raise InputError(_not_finite(session, position, draw, loss))
        method.update()
        position.steps = step + 1
        position.terms.append({"loss": mean, **terms})
        if stop:
            _stop(session, position, request)
    if steps:
        method.finish()
    mine = 0 if draw is None or work is None else len(draw.instances)
    nodes, seconds = world.total(mine, 0.0 if draw is None else draw.seconds)
    means = {key: float(np.mean([t[key] for t in position.terms])) for key in (position.terms or [{}])[0]}
    return means | {"nodes": int(nodes), "steps": steps, "build_seconds": seconds / world.size}


def _keep_record(session: Session, journal: Journal, position: Position, before: int, entry: dict[str, float]) -> None:
    """Log a finished round, validate, and write a checkpoint, each if its interval has passed."""

    def due(interval: int | None) -> bool:
        return interval is not None and position.done // interval > before // interval

    if entry["steps"] and due(session.config.log_config.interval):
        where = {
            "epoch": position.epoch,
            "subgraph": position.done,
            "lr": session.method.optimizer.param_groups[0]["lr"],
        }
        journal.write("train", position.done, where | entry)
    if session.validation is not None and due(session.config.validation.interval):
        _validate(session, journal, session.validation, position)
    if due(session.config.checkpoint_config.interval):
        session.save(position)


def _validate(session: Session, journal: Journal, data: LabelledGraph, position: Position) -> None:
    """Log the edge accuracy. If it is the best so far, write ``best.pt``."""
    accuracy = edge_accuracy(session.method.model, data, session.config.th_sim, session.device)
    journal.write("validation", position.done, {"epoch": position.epoch, "edge_accuracy": accuracy})
    if accuracy > position.best:
        position.best = accuracy
        session.save(position, best=True)


def edge_accuracy(model: Model, data: LabelledGraph, th_sim: float, device: torch.device) -> float:
    """Return the share of candidate edges for which p > 0.5 agrees with whether both ends have the same identity."""
    if isinstance(model, StructuralModel):
        logits, same = labelled_logits(model, data.features, data.graph, data.labels, data.held, device)
        return float(((logits > 0) == same).mean())
    nodes = project_nodes(model, data.features, data.graph, th_sim, device)
    right = total = 0
    for rows, entries in score_entries(nodes):
        ends = rows[entries.local], entries.cols
        known = data.held[ends[0]] & data.held[ends[1]]
        same = data.labels[ends[0]] == data.labels[ends[1]]
        right += int(((entries.scores > 0.5) == same)[known].sum())
        total += int(known.sum())
    return right / max(total, 1)


def _stop(session: Session, position: Position, request: StopRequest) -> None:
    """Write a checkpoint in the middle of a subgraph, and raise Stopped with the command that continues from it."""
    number = request.signal or signal.SIGTERM
    if not session.world.writes:
        raise Stopped("", number)
    path = session.save(position)
    start = "python" if session.world.size == 1 else f"torchrun --standalone --nproc-per-node {session.world.size}"
    places = [sys.argv[0], "--config", session.work_dir / "config.json", "--work-dir", session.work_dir]
    command = session.go_on or " ".join([start, *(shlex.quote(str(p)) for p in places), "--resume auto"])
    raise Stopped(
        f"{number.name}: stopped after step {position.steps} of the round that follows subgraph {position.done}; "
        f"checkpoint {path}; continue with: {command}",
        number,
    )


def _not_finite(session: Session, position: Position, draw: _Draw | None, loss: Tensor | None) -> str:
    """Return a message about the batch whose loss was NaN or infinite. Write its identities and instances to a file."""
    state = session.checkpoints.last_good()
    if draw is None or loss is None or math.isfinite(loss.item()):
        return f"loss: not finite in another process; its message names the identities; {state}"
    identities = session.data.identities[np.unique(session.data.train.labels[draw.instances])]
    path = session.work_dir / f"not_finite_subgraph_{draw.number:06d}.json"
    batch = {
        "subgraph": draw.number,
        "step": position.steps + 1,
        "loss": str(loss.item()),
        "seed_identity": session.data.identities[draw.seed].item(),
        "identities": identities.tolist(),
        "instances": session.data.rows[draw.instances].tolist(),
    }
    write_json(path, batch)
    first = ", ".join(map(str, identities[:10].tolist())) + (", …" if len(identities) > 10 else "")
    return (
        f"loss: {loss.item()} at step {position.steps + 1} of subgraph {draw.number}, around identity "
        f"{batch['seed_identity']}, with the {len(identities)} identities {first} (all of them and the rows of their "
        f"instances are in {path}); {state}; usually a lower optimizer.lr in a new run helps"
    )


def make_method(config: Config, device: torch.device, whole: LabelledGraph | None = None) -> Method:
    """Create the network of a config and its training method. A structural model is trained on the graph ``whole``."""
    generator = torch.Generator().manual_seed(config.seed)
    kwargs, h = vars(config.model.kwargs), config.hierarchical
    if config.kind is STRUCTURAL:
        shape = {"columns": config.knn - 1, **vars(config.structural)}
        assert whole is not None  # _run builds it for a structural model
        structural = StructuralModel(kwargs["nhid"], **shape, generator=generator)
        return StructuralTraining(config, structural.to(device), whole)
    if config.kind is GCN:
        return BasicTraining(config, StarFCModel(**kwargs, generator=generator).to(device))
    extended = HierarchicalModel(**kwargs, offsets=tuple(h.offsets), scales=tuple(h.scales), generator=generator)
    return HierarchicalTraining(config, extended.to(device))


def _epoch_size(config: Config, num_identities: int, world: World) -> tuple[int, int]:
    """Return the numbers of subgraphs and of rounds per epoch."""
    subgraphs = config.sampling.subgraphs_per_epoch or num_identities
    return subgraphs, -(-subgraphs // world.size)


def _seeds(num_identities: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the shuffled seed identities of an epoch. Each identity comes once before any comes again."""
    rounds = -(-count // num_identities)
    return np.concatenate([rng.permutation(num_identities) for _ in range(rounds)])[:count]


def _record(work_dir: Path, config: Config, start: Path | None, where: dict[str, Any]) -> dict[str, Any]:
    """Return the record of the run: a new one, or that of the run that is continued."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    at = opened(work_dir)
    if start is None or not at.has("run.json"):
        return {"config": config.as_dict(), "seed": config.seed, "started": now, **where}
    record = at.json("run.json", TrainingRecord).as_dict()
    record.setdefault("resumed", []).append({"from": start.name, "at": now, **where})
    return record
