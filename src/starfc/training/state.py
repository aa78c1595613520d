"""The position of a training run, and its checkpoints.

All random numbers of training come from streams that are identified by seed, epoch, subgraph and step. For this reason
a position and the states of model, optimisers and schedule are enough to continue a run. The result is equal, bit for
bit, to that of a run without a stop.
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

# keys that may differ between a run and its continuation, because they do not change the weights
_FREE = (
    "device", "threads", "memory_limit", "device_memory", "log_level", "log_config", "checkpoint_config",
    "giant_share", "tau1", "tau2", "dynamic", "metrics", "pretrained", "prefix", "train_data", "test_data", "test_name",
    "knn_method", "knn_params", "knn_recall",
)  # fmt: skip


@dataclass
class Position:
    """The position in a training run.

    Attributes
    ----------
    epoch : int
        The present epoch, from 1.
    rounds : int
        Finished rounds of this epoch. A round is one subgraph of every process.
    steps : int
        Finished steps of the present round.
    done : int
        Finished subgraphs in total.
    terms : list of dict
        Loss terms of these steps.
    journal_bytes : int
        Length of metrics.jsonl.
    best : float
        Best edge accuracy of a validation so far.
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
        """Move to the next round, after a round of ``subgraphs`` subgraphs."""
        self.rounds, self.steps, self.done, self.terms = self.rounds + 1, 0, self.done + subgraphs, []

    def next_epoch(self) -> None:
        """Move to the next epoch."""
        self.epoch, self.rounds = self.epoch + 1, 0


class OtherRunError(InputError):
    """A checkpoint is complete, but it belongs to another run."""


class Checkpoints:
    """The checkpoints of a run: the newest ``keep``, and ``best.pt``, the best one in validation.

    Parameters
    ----------
    folder : path
        Folder ``checkpoints`` in the run's folder.
    config : Config
        Config of the run.
    fingerprint : str
        Fingerprint of the training features.
    processes : int
        Number of processes.
    """

    def __init__(self, folder: Path, config: Config, fingerprint: str, processes: int) -> None:
        self.folder, self._keep = folder, config.checkpoint_config.keep
        self._about: dict[str, Any] = {
            "config": {key: value for key, value in config.as_dict().items() if key not in _FREE},
            "data": fingerprint,
            "processes": processes,
        }

    def save(self, position: Position, method: Any, schedule: Schedule, best: bool = False) -> Path:
        """Write the state of a run as ``best.pt`` or as the newest checkpoint, and delete the oldest checkpoints.

        Raises
        ------
        InputError
            Weights are NaN or infinite. The message names the last good checkpoint.
        """
        path = self.folder / ("best.pt" if best else f"{position.name}.pt")
        if not all(torch.isfinite(p).all() for p in method.model.parameters()):
            raise InputError(f"{path}: was not written, because weights are NaN or infinite; {self.last_good()}")
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
        """Return the paths of the numbered checkpoints, oldest first."""
        found = []
        for path in self.folder.glob("subgraph_*.pt"):
            if match := re.fullmatch(r"subgraph_(\d+)(?:_step_(\d+))?\.pt", path.name):
                found.append((int(match[1]), int(match[2] or 0), path))
        return [path for *_, path in sorted(found)]

    def last_good(self) -> str:
        """Return the sentence about the newest checkpoint for a message."""
        newest = self.all()[-1:]
        return f"the last good checkpoint is {newest[0]}" if newest else "there is no earlier checkpoint"

    def restore(self, path: Path, method: Any, schedule: Schedule) -> Position:
        """Restore the state of a run from a checkpoint.

        Raises
        ------
        InputError
            The file is damaged or no checkpoint (the message names an earlier good one), or it has another config,
            other data or another number of processes.
        """
        try:
            content = read_checkpoint(path)
            training = content["training"]
            assert isinstance(training, dict)  # read_checkpoint has checked it
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
        except Exception as error:  # torch and the optimisers may raise any error for a state of another model
            raise InputError(
                f"{path}: holds no training state of this run ({first_line(error)}){self._alternative(path)}"
            ) from None
        return position

    def _alternative(self, path: Path) -> str:
        earlier = [p for p in self.all() if p.resolve() != path.resolve() and p.name < path.name and _readable(p)]
        return f"; use an earlier one: --resume {earlier[-1]}" if earlier else "; there is no earlier good checkpoint"

    def _compare(self, path: Path, about: dict[str, Any]) -> None:
        if about["processes"] != self._about["processes"]:
            raise OtherRunError(
                f"{path}: was written by a run of {about['processes']} process(es), but this run has "
                f"{self._about['processes']}; set NPROC={about['processes']}"
            )
        if about["data"] != self._about["data"]:
            raise OtherRunError(f"{path}: was written with other training features; set train_data to these features")
        was, now = _flat(about["config"]), _flat(self._about["config"])
        other = [f"{key} {was.get(key)!r} there, {now.get(key)!r} here" for key in now if was.get(key) != now[key]]
        if other:
            raise OtherRunError(
                f"{path}: was written with another config: {'; '.join(other)}; use config.json in the run's folder, or "
                "start a new run in another --work-dir"
            )


def find_checkpoint(resume: str | None, checkpoints: Checkpoints) -> Path | None:
    """Return the path of the checkpoint to continue from. None for a new run.

    Parameters
    ----------
    resume : str or None
        A path, 'auto' for the newest checkpoint (or a new run if there is none), or None for a new run.
    checkpoints : Checkpoints
        The checkpoints in the folder of the run.

    Raises
    ------
    InputError
        A new run would replace the checkpoints of an earlier run.
    """
    newest = checkpoints.all()[-1:]
    if resume is None:
        if newest:
            raise InputError(
                f"{checkpoints.folder.parent}: already holds a run ({newest[0].name}); continue it with --resume auto, "
                "or name another --work-dir"
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
