"""The command that clusters on shards, and what it does after its driver was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def cluster_command(tmp_path: Path, *more: str) -> list[str]:
    """Return the command that clusters ``x.npy`` of the folder in shards of 512 rows; the store is ``store``."""
    code = "import sys; from starfc.commands import main; sys.argv[0] = 'starfc'; main()"
    folder = ("-o", str(tmp_path / "run"), "--store", str(tmp_path / "store"), "--shard-rows", "512")
    return [sys.executable, "-c", code, "cluster", str(tmp_path / "x.npy"), *folder, *more]


def killed_and_continued(tmp_path: Path, rows: NDArray, stage: str, *more: str) -> NDArray:
    """Kill the driver and its workers when a task of the stage has ended, run the command again, return the labels.

    Fails if the second run makes an array again that a task had finished before.
    """
    np.save(tmp_path / "x.npy", rows)
    command = cluster_command(tmp_path, "--engine", "local", "--threads", "1", "-q", *more)
    driver = subprocess.Popen(command, start_new_session=True)
    while not list((tmp_path / "store" / stage).glob("0*.json")) and driver.poll() is None:
        time.sleep(0.005)
    assert driver.poll() is None, "it ended before it was killed"
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("*/0*.json")}
    assert stage in {path.parent.name for path in before}
    subprocess.run(command, check=True)
    kept = {path for path, at in before.items() if path.stat().st_mtime_ns == at}
    redone = {path.parent.name for path in set(before) - kept}
    assert not {name for name in redone if not name.endswith("-given")} - {"cohort"}  # of the driver
    return np.load(tmp_path / "run" / "labels.npy")
