"""Code that the benchmarks share: sides in separate processes, records with machine and versions, runs of baselines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from baselines import Baseline
from starfc.data.dataset import Features, Split
from starfc.graph.knn import build_knn
from starfc.graph.neighbours import KnnGraph
from starfc.runtime.machine import choose_device, environment
from starfc.runtime.stages import Stages
from starfc.storage.atomic import write_json


def run_side(script: str, side: str, folder: Path, *arguments: object) -> dict[str, Any]:
    """Run ``script --side SIDE --folder FOLDER ...`` in a new process, and return what :func:`finish_side` wrote."""
    command = [sys.executable, script, "--side", side, "--folder", str(folder), *map(str, arguments)]
    subprocess.run(command, check=True)
    return json.loads((folder / f"{side}.json").read_text())


def finish_side(side: str, folder: Path, stages: Stages, **more: Any) -> None:
    """Write a side's seconds by stage, their sum, and the highest peak of resident memory of the stages."""
    content = {
        "seconds": sum(stage.seconds for stage in stages.finished),
        "peak_rss_mb": max(stage.peak_rss_mb for stage in stages.finished),
        "stages": {stage.name: stage.seconds for stage in stages.finished},
        **more,
    }
    write_json(folder / f"{side}.json", content)


def report(result: dict[str, Any], threads: int, path: Path | None) -> None:
    """Print the result as JSON. Write it with the environment to ``path``, if one is given."""
    print(json.dumps(result, indent=1))
    if path is not None:
        write_json(path, with_environment(result, threads))


def with_environment(result: dict[str, Any], threads: int) -> dict[str, Any]:
    """Return the result with machine, versions, commit and command added."""
    record = {**result, **environment(threads, choose_device("cpu"))}
    record["command"] = [Path(word).name for word in record["command"]]  # the folders of this machine do not matter
    return record


def finished(path: Path) -> dict[str, Any] | None:
    """Read the result of a side. Return None if it has not written one."""
    return json.loads(path.read_text()) if path.is_file() else None


def cluster(baseline: Baseline, graph: KnnGraph, split: Split, parameters: dict[str, Any]) -> np.ndarray:
    told = {"num_clusters": len(np.unique(split.labels))} if baseline.told_clusters else {}
    return baseline.run(graph, split.features, **parameters, **told)


def small_features(dim: int, k: int) -> np.ndarray:
    """Return more than k noisy directions around a few centres, float32."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(8, dim))
    return (np.repeat(centres, k // 4, axis=0) + 0.5 * rng.normal(size=(8 * (k // 4), dim))).astype(np.float32)


def small_graph(k: int) -> tuple[KnnGraph, Split]:
    """Return a small graph and its split with read-only arrays, as the real ones: numba compiles these separately."""
    features = Features(small_features(16, k))
    graph = build_knn(features, k)
    for array in (graph.ids, graph.sims):
        array.flags.writeable = False
    return graph, Split(features, np.repeat(np.arange(8), k // 4), "small")
