"""Write the log of a training run: metrics.jsonl, and text lines and TensorBoard scalars if the config has the hook."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from types import TracebackType

from starfc.config.config import LogConfig
from starfc.runtime.extras import require
from starfc.runtime.words import word
from starfc.storage.atomic import writes

log = logging.getLogger("starfc")


def require_hooks(config: LogConfig) -> None:
    """Raise :class:`InputError` if a hook needs a package that is not installed."""
    if any(hook["type"] == "TensorboardLoggerHook" for hook in config.hooks):
        require("tensorboard", f"{word('log_config.hooks')}: TensorboardLoggerHook")


class Journal:
    """The log of a training run. It appends one JSON object per entry to ``work_dir/metrics.jsonl``.

    ``TextLoggerHook`` adds a line to the log for every entry. ``TensorboardLoggerHook`` adds scalars in
    ``work_dir/tensorboard``.

    Parameters
    ----------
    work_dir : path
        Folder of the run.
    config : LogConfig
        The hooks.
    start, step : int
        Bytes of the file, and number of subgraphs, from which a run continues. Later entries are removed. 0 for a new
        run.
    """

    def __init__(self, work_dir: Path, config: LogConfig, start: int = 0, step: int = 0) -> None:
        hooks = {hook["type"] for hook in config.hooks}
        self._text = "TextLoggerHook" in hooks
        self._events = None
        if "TensorboardLoggerHook" in hooks:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(work_dir / "tensorboard"), purge_step=step + 1 if start else None)
        work_dir.mkdir(parents=True, exist_ok=True)
        self._path = path = work_dir / "metrics.jsonl"
        with writes(path, work_dir):
            path.touch()
            os.truncate(path, min(start, path.stat().st_size))
            self._file = path.open("a", encoding="utf-8", buffering=1)

    @property
    def bytes(self) -> int:
        """Return the length of metrics.jsonl in bytes."""
        return os.fstat(self._file.fileno()).st_size

    def write(self, kind: str, step: int, entry: dict[str, float]) -> None:
        """Log one entry. ``kind`` is 'train' or 'validation', ``step`` the number of subgraphs so far."""
        with writes(self._path, self._path.parent):
            self._file.write(json.dumps({"kind": kind, "step": step, **entry}) + "\n")
        if self._text:
            log.info(
                "%s %s",
                kind,
                " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in entry.items()),
            )
        if self._events is not None:
            for key, value in entry.items():
                self._events.add_scalar(f"{kind}/{key}", value, step)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with writes(self._path, self._path.parent):  # closing writes the buffer, which may fail
            self._file.close()
        if self._events is not None:
            self._events.close()
