"""What the benchmarks share: each side in a process of its own, and a record with machine, versions and commit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from starfc.runtime.atomic import write_json
from starfc.runtime.machine import choose_device, environment
from starfc.runtime.stages import Stages


def run_side(script: str, side: str, folder: Path, *arguments: object) -> dict[str, Any]:
    """Run ``script --side SIDE --folder FOLDER ...`` in a fresh process; returns what :func:`finish_side` wrote."""
    command = [sys.executable, script, "--side", side, "--folder", str(folder), *map(str, arguments)]
    subprocess.run(command, check=True)
    return json.loads((folder / f"{side}.json").read_text())


def finish_side(side: str, folder: Path, stages: Stages, **more: Any) -> None:
    """Write a side's seconds by stage, their sum, and the highest of the stages' peaks of resident memory."""
    content = {
        "seconds": sum(stage.seconds for stage in stages.finished),
        "peak_rss_mb": max(stage.peak_rss_mb for stage in stages.finished),
        "stages": {stage.name: stage.seconds for stage in stages.finished},
        **more,
    }
    write_json(folder / f"{side}.json", content)


def report(result: dict[str, Any], threads: int, path: Path | None) -> None:
    """Print the result as JSON and write it, with the environment, where asked."""
    print(json.dumps(result, indent=1))
    if path is not None:
        write_json(path, with_environment(result, threads))


def with_environment(result: dict[str, Any], threads: int) -> dict[str, Any]:
    """The result, and machine, versions, commit and command beside it."""
    record = {**result, **environment(threads, choose_device("cpu"))}
    record["command"] = [Path(word).name for word in record["command"]]  # folders of this machine say nothing to others
    return record
