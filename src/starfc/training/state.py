"""Where a training run stands: its position, and the checkpoints that keep it.

Everything random in training is drawn from streams that are numbered by seed, epoch, subgraph and step, so a position
and the states of model, optimisers and schedule are all that going on needs: the result is that of a run never stopped,
bit for bit.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from starfc.config.config import Config
from starfc.errors import InputError
from starfc.models.checkpoint import read_checkpoint, write_checkpoint
from starfc.storage.safe import first_line
from starfc.training.optimisers import Schedule

# what may differ between a run and its continuation: it changes no weight
_FREE = (
    "device", "threads", "memory_limit", "log_level", "log_config", "checkpoint_config", "giant_share", "tau1", "tau2",
    "dynamic", "metrics", "pretrained", "prefix", "train_data", "test_data", "test_name", "knn_method", "knn_params",
    "knn_recall",
)  # fmt: skip


@dataclass
class Position:
    """How far training has come.

    ``epoch`` counts from 1; ``rounds`` of it are done (a round is one subgraph of every process), and ``steps`` of the
    next one, with the terms of their losses; ``done`` subgraphs in all.
    """

    epoch: int = 1
    rounds: int = 0
    steps: int = 0
    done: int = 0
    terms: list[dict[str, float]] = field(default_factory=list)
    journal_bytes: int = 0
    best: float = -1.0

    @property
    def name(self) -> str:
        return f"subgraph_{self.done:06d}" + (f"_step_{self.steps:04d}" if self.steps else "")

    def next_round(self, subgraphs: int) -> None:
        """A round of so many subgraphs is over."""
        self.rounds, self.steps, self.done, self.terms = self.rounds + 1, 0, self.done + subgraphs, []

    def next_epoch(self) -> None:
        """An epoch is over."""
        self.epoch, self.rounds = self.epoch + 1, 0


class OtherRunError(InputError):
    """A checkpoint that is whole, but of another run."""


class Checkpoints:
    """The checkpoints of a run: the newest ``keep``, and ``best.pt`` by validation.

    Parameters
    ----------
    folder : path
        ``checkpoints`` of the run's folder.
    """

    def __init__(self, folder: Path, config: Config, fingerprint: str, processes: int) -> None:
        self.folder, self._keep = folder, config.checkpoint_config.keep
        self._about: dict[str, Any] = {
            "config": {key: value for key, value in config.as_dict().items() if key not in _FREE},
            "data": fingerprint,
            "processes": processes,
        }

    def save(self, position: Position, method: Any, schedule: Schedule, best: bool = False) -> Path:
        """Write the state of a run, as ``best.pt`` or as the newest checkpoint, of which the oldest are dropped.

        Raises
        ------
        InputError
            Weights are NaN or infinite; the last good checkpoint is named.
        """
        path = self.folder / ("best.pt" if best else f"{position.name}.pt")
        if not all(torch.isfinite(p).all() for p in method.model.parameters()):
            raise InputError(f"{path}: not written, because weights are NaN or infinite; {self.last_good()}")
        training = {
            "about": self._about,
            "position": asdict(position),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in method.optimizers.items()},
            "schedule": schedule.state_dict(),
            "carried": method.carried(),
        }
        write_checkpoint(path, method.model, training)
        for old in self.all()[: -self._keep]:
            old.unlink()
        return path

    def all(self) -> list[Path]:
        """The numbered checkpoints, oldest first."""
        found = []
        for path in self.folder.glob("subgraph_*.pt"):
            if match := re.fullmatch(r"subgraph_(\d+)(?:_step_(\d+))?\.pt", path.name):
                found.append((int(match[1]), int(match[2] or 0), path))
        return [path for *_, path in sorted(found)]

    def last_good(self) -> str:
        """The newest checkpoint, in words."""
        newest = self.all()[-1:]
        return f"the last good checkpoint is {newest[0]}" if newest else "there is no checkpoint before it"

    def restore(self, path: Path, method: Any, schedule: Schedule) -> Position:
        """Put a run into the state that a checkpoint holds.

        Raises
        ------
        InputError
            The file is truncated or foreign (the good one before it is named), or of another config, other data or
            another number of processes.
        """
        try:
            content = read_checkpoint(path)
            training = content["training"]
            assert isinstance(training, dict)  # as a checkpoint that was read has it
            position = TypeAdapter(Position).validate_python(training["position"])
            self._compare(path, training["about"])
            method.model.load_state_dict(content["model"])
            for name, optimizer in method.optimizers.items():
                optimizer.load_state_dict(training["optimizers"][name])
            schedule.load_state_dict(training["schedule"])
            method.restore(training["carried"])
        except OtherRunError:
            raise
        except InputError as error:
            raise InputError(f"{error}{self._alternative(path)}") from None
        except Exception as error:  # whatever torch and the optimisers raise of states that are not theirs
            raise InputError(
                f"{path}: no training state of this run in it ({first_line(error)}){self._alternative(path)}"
            ) from None
        return position

    def _alternative(self, path: Path) -> str:
        earlier = [p for p in self.all() if p.resolve() != path.resolve() and p.name < path.name and _readable(p)]
        return f"; the good one before it: --resume {earlier[-1]}" if earlier else "; there is no good one before it"

    def _compare(self, path: Path, about: dict[str, Any]) -> None:
        if about["processes"] != self._about["processes"]:
            raise OtherRunError(
                f"{path}: a run of {about['processes']} process(es) where this one has {self._about['processes']}; set "
                f"NPROC={about['processes']}"
            )
        if about["data"] != self._about["data"]:
            raise OtherRunError(
                f"{path}: the training features are not those of the checkpoint; point train_data to them"
            )
        was, now = _flat(about["config"]), _flat(self._about["config"])
        other = [f"{key} {was.get(key)!r} there, {now.get(key)!r} here" for key in now if was.get(key) != now[key]]
        if other:
            raise OtherRunError(
                f"{path}: of another config: {'; '.join(other)}; take the run's own, config.json in its folder, or "
                "start a new run in another --work-dir"
            )


def find_checkpoint(resume: str | None, checkpoints: Checkpoints) -> Path | None:
    """The checkpoint to go on from: None for a new run; 'auto' is the newest one, None where there is none.

    Raises
    ------
    InputError
        A new run would write over another one's checkpoints.
    """
    newest = checkpoints.all()[-1:]
    if resume is None:
        if newest:
            raise InputError(
                f"{checkpoints.folder.parent}: holds a run already ({newest[0].name}); go on with --resume auto, or "
                "name another --work-dir"
            )
        return None
    if resume == "auto":
        return newest[0] if newest else None
    return Path(resume)


def _readable(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except InputError:
        return False
    return True


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
