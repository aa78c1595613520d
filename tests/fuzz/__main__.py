"""Run ``python -m tests.fuzz``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from .drive import fuzz, verdict
from .readers import READERS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Read damaged files and count faults.")
    parser.add_argument("--reader", choices=[*READERS, "all"], default="all")
    parser.add_argument("--inputs", type=int, default=2000, help="of each reader (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the inputs of faults")
    parser.add_argument("--guided", action="store_true", help="by coverage, with atheris; it ends at the first fault")
    arguments = parser.parse_args()
    names = list(READERS) if arguments.reader == "all" else [arguments.reader]
    if arguments.guided:
        return guided(names[0], arguments.inputs, arguments.seed)
    print(f"{'reader':<18}{'inputs':>9}{'read':>9}{'refused':>9}{'faults':>8}{'seconds':>9}", flush=True)
    faults = 0
    for name in names:
        found = fuzz(name, arguments.inputs, arguments.seed, arguments.keep)
        faults += len(found.faults)
        counts = f"{found.inputs:>9,}{found.read:>9,}{found.refused:>9,}{len(found.faults):>8,}{found.seconds:>9.1f}"
        print(f"{name:<18}{counts}", flush=True)
        for number, what in found.faults[:20]:
            print(f"  input {number}: {what}", flush=True)
    return int(faults > 0)


def guided(name: str, inputs: int, seed: int) -> int:
    """Let atheris find inputs for one reader."""
    import atheris

    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, content in enumerate(READERS[name].seeds()):
            (corpus / str(number)).write_bytes(content)
        path = Path(folder) / f"input{READERS[name].suffix}"

        def one(data: bytes) -> None:
            path.write_bytes(data)
            what = verdict(name, path)
            if what not in ("", "refused"):
                raise AssertionError(what)

        atheris.instrument_all()
        options = [f"-runs={inputs}", f"-seed={seed + 1}", "-timeout=10", "-rss_limit_mb=2048", str(corpus)]
        atheris.Setup([sys.argv[0], *options], one)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
