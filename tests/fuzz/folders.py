"""Damage one file of a small run's folder at a time and open the folder with the commands: only InputError may occur.

    python -m tests.fuzz.folders --inputs 1000 [--seed 0] [--unlisted]

``files.json`` reveals most changes before a command looks at the contents. With ``--unlisted`` there is no
``files.json``, like in a folder whose sender wrote a matching one, so only the contents are checked.
Every input runs in this process. faulthandler shows the origin of a signal, and a number identifies each mutation.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

WORDS = [
    b"-1",
    b"1e400",
    b"NaN",
    b"null",
    b"[]",
    b"{}",
    b'"x"',
    b"9223372036854775808",
    b"0",
    b"true",
    b"../x",
    b"\xff",
]
EDGES = [0, 1, 0x7F, 0x80, 0xFF]


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes with one to four changes: bits, edge values, cuts, repeats, swapped words."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        if not data:
            return bytes(rng.integers(0, 256, 8, dtype=np.uint8))
        at, kind = int(rng.integers(len(data))), int(rng.integers(7))
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at] = EDGES[int(rng.integers(len(EDGES)))]
        elif kind == 2:
            del data[at : at + int(rng.integers(1, 64))]
        elif kind == 3:
            data[at:at] = data[at : at + int(rng.integers(1, 64))]
        elif kind == 4:
            data[at : at + 8] = rng.integers(-2, 2**33, 1).tobytes()
        elif kind == 5:
            del data[at:]
        else:
            data = _word(data, rng)
    return bytes(data)


def _word(data: bytearray, rng: np.random.Generator) -> bytearray:
    """A value of JSON, or of a header, replaced by another."""
    places = [i for i in range(len(data)) if data[i] in b":,[ "]
    if not places:
        return data
    start = places[int(rng.integers(len(places)))] + 1
    stop = next((i for i in range(start, len(data)) if data[i] in b",]}\n"), len(data))
    data[start:stop] = WORDS[int(rng.integers(len(WORDS)))]
    return data


def commands(folder: Path, work: Path) -> dict[str, tuple]:
    """What is run on a folder, by name."""
    out = work / "out"
    return {
        "explain": ("explain", folder, "1", "2"),
        "report": ("report", folder, "-o", out),
        "info": ("info", folder),
        "evaluate": ("evaluate", work / "truth.npy", folder),
        "errors": ("evaluate", work / "truth.npy", folder, "--errors"),
        "export": ("export", folder, "--to", "json", "-o", out / "clusters.json"),
        "folders": ("export", folder, "--to", "folders", "-o", out),
        "assign": ("assign", folder, work / "more.npy", "--remove", "3"),
        "knn": ("cluster", work / "features.npy", "--knn-graph", folder / "knn" / "graph", "-o", out),
        "model": ("cluster", work / "features.npy", "--model", folder / "model", "-o", out),
    }


def reading(name: Path) -> list[str]:
    """The commands that read a file."""
    if name.parts[0] == "knn":
        return ["knn"]
    if name.parts[0] == "model":
        return ["model"]
    if name.parts[0] == "state":
        return ["assign", "explain"]
    if name.name == "labels.npy":
        return ["explain", "report", "evaluate", "errors", "export", "assign"]
    if name.name == "clusters.parquet":
        return ["report", "errors", "export", "folders", "assign"]
    if name.name == "names.json":
        return ["export", "folders"]
    if name.name == "run.json":
        return ["explain", "report", "info", "export", "assign"]
    return ["explain", "report", "errors", "assign"] if name.parts[0] == "edges" else ["assign"]


def prepare(work: Path) -> Path:
    """A small run that was added to twice, with its kNN graph and a model beside it."""
    from starfc.config.recipes import model_config
    from starfc.estimator import PRETRAINED
    from starfc.runs.assign import assign
    from starfc.runs.cluster import run_inference

    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(6, 8)), 6, axis=0) + 0.3 * rng.normal(size=(36, 8))
    features = features.astype(np.float32)
    np.save(work / "features.npy", features)
    np.save(work / "more.npy", features[:2] + np.float32(0.1))
    np.save(work / "truth.npy", np.repeat(np.arange(7), 6)[:38])
    config = model_config(PRETRAINED, {"threads": 1, "device": "cpu", "model": {"kwargs": {"feature_dim": 8}}})
    folder = work / "run"
    (work / "files.txt").write_text("".join(f"{row}.jpg\n" for row in range(36)))
    for row in range(36):
        (work / f"{row}.jpg").write_bytes(b"")
    run_inference(config, features=work / "features.npy", files=work / "files.txt", out=folder, keep_edges=True)
    (graph,) = (folder / "knn").iterdir()
    graph.rename(folder / "knn" / "graph")
    assign(folder, work / "more.npy")
    (folder / "names.json").write_text(json.dumps({"names": {"0": "Anna", "3": "Bo"}}))
    shutil.copytree(PRETRAINED.parent / "structural", folder / "model")
    (folder / "model" / "files.json").unlink()
    (folder / "model" / "config.json").write_text(
        json.dumps({"model": {"type": "gcn_structural", "kwargs": {"nhid": 64}}, "knn": 20, "test_name": "x"})
    )
    return folder


def run(inputs: int, seed: int, first: int = 0, unlisted: bool = False) -> Counter:
    """Run so many mutations, of folders with their lists of files or without; returns how they ended."""
    from starfc.commands import app

    found: Counter = Counter()
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        whole = prepare(work)
        for path in list(whole.rglob("files.json")) if unlisted else ():
            path.unlink()
        names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
        names = [n for n in names if n.name not in (".lock", "labels.meta", "threshold_surface.csv")]
        for number in range(first, first + inputs):
            rng = np.random.default_rng([seed, number])
            name = names[int(rng.integers(len(names)))]
            among = reading(name)
            command = among[int(rng.integers(len(among)))]
            folder = work / "input"
            shutil.copytree(whole, folder)
            (folder / name).write_bytes(mutated((whole / name).read_bytes(), rng))
            clock, said = time.perf_counter(), io.StringIO()
            try:
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    code = app([str(word) for word in commands(folder, work)[command]], standalone_mode=False)
                end = "refused" if code == 2 else "taken"
            except BaseException:
                end = "fault"
                print(f"--- {number}: {name}, {command}\n{traceback.format_exc(limit=-4)}", file=sys.stderr, flush=True)
            if time.perf_counter() - clock > 10:
                end = "slow"
                print(f"--- {number}: {name}, {command}: {time.perf_counter() - clock:.0f} s", file=sys.stderr)
            found[end] += 1
            shutil.rmtree(folder)
            shutil.rmtree(work / "out", ignore_errors=True)
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--unlisted", action="store_true", help="without files.json: contents alone are checked")
    arguments = parser.parse_args()
    faulthandler.enable()
    found = run(arguments.inputs, arguments.seed, arguments.first, arguments.unlisted)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{arguments.inputs} inputs: {dict(found)}; peak memory {peak:,.0f} MB")
    sys.exit(1 if set(found) - {"taken", "refused"} else 0)


if __name__ == "__main__":
    main()
