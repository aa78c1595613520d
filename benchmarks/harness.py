"""What the benchmarks share: each side in a process of its own, and a record with machine, versions and commit."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from starfc.runtime.atomic import write_json
from starfc.runtime.machine import choose_device, environment


class Clock:
    """Seconds by name: ``with clock('refinement'): ...``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str) -> Clock:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + time.perf_counter() - self._start


def run_side(script: str, side: str, folder: Path, *arguments: object) -> dict[str, Any]:
    """Run ``script --side SIDE --folder FOLDER ...`` in a fresh process; returns what :func:`finish_side` wrote."""
    command = [sys.executable, script, "--side", side, "--folder", str(folder), *map(str, arguments)]
    subprocess.run(command, check=True)
    return json.loads((folder / f"{side}.json").read_text())


def finish_side(side: str, folder: Path, stages: dict[str, float], **more: Any) -> None:
    """Write a side's seconds by stage, their sum and the process's peak memory."""
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write_json(
        folder / f"{side}.json", {"seconds": sum(stages.values()), "peak_rss_mb": peak_mb, "stages": stages, **more}
    )


def report(result: dict[str, Any], threads: int, path: Path | None) -> None:
    """Print the result as JSON and write it, with the environment, where asked."""
    record = {**result, **environment(threads, choose_device("cpu"))}
    print(json.dumps(result, indent=1))
    if path is not None:
        write_json(path, record)
