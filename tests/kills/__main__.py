"""Kill every command that writes, or fill its disk, and check the files that are left.

    python -m tests.kills --kills 300            # spread over the commands and their system calls
    python -m tests.kills --kills 0 --full       # full disk: eight fill levels for each command

Each command runs in a child process over the result of an earlier run. A kill comes before the n-th call that changes
a file or a name (opening to write, fsync, rename, unlink, mkdir, rmdir, truncate, allocate). Every third kill comes
during a write: the part of the file written so far is first cut in half. Afterwards the folder must hold the whole old
result or the whole new one, with the user's files unchanged. The same command again must give the new result and leave
no other files.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")
os.environ.update(dict.fromkeys(THREADS, "1"))  # so that children can be forked from a process that has computed

import numpy as np  # noqa: E402

from starfc.storage.safe import digest  # noqa: E402

LEVELS = 8
SEEN = ("kills", "old", "new", "mixed", "lost", "left")
CHANGING = ("run.json", "assign.json", "marks.json", "files.json")  # hold times and ids
APART = ("knn", "checkpoints", "metrics.jsonl")  # caches and logs, which are written as the work goes on


@dataclass
class Command:
    """A command over an earlier result: ``old`` makes that, ``new`` is what is killed; all get the output's path."""

    name: str
    old: Callable[[Path], list[str]] | None  # None: there is no result yet
    new: Callable[[Path], list[str]]
    single: bool = False  # one file, not a folder
    before: Callable[[Path], list[str]] | None = None  # what the old result is made from, in place
    again: Callable[[Path], list[str]] | None = None  # what is given after a kill, the same again otherwise
    calls: int = 0
    seen: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("kills", "old", "new", "mixed", "lost", "left"), 0)
    )


def commands(data: Path) -> list[Command]:
    x, y, z, more = (str(data / name) for name in ("x.npy", "y.npy", "z.npy", "more.npy"))
    run, quiet = str(data / "run"), "-q"
    tiny = ["--type", "structural", "--epochs", "1", "--k", "10", "--set", "cluster_num=6", "--set",
            "sampling.subgraphs_per_epoch=2", "--set", "sampling.min_nodes=10", "--set", "model.kwargs.nhid=8",
            "--set", "checkpoint_config.interval=1", "--set", "structural.candidates=4"]  # fmt: skip
    return [
        Command("cluster", lambda o: ["cluster", x, "-o", o, "--adapt", "off", quiet],
                lambda o: ["cluster", z, "-o", o, "--adapt", "off", "--copies", "keep", quiet]),
        Command("cluster --no-edges", lambda o: ["cluster", x, "-o", o, "--adapt", "off", quiet],
                lambda o: ["cluster", z, "-o", o, "--adapt", "off", "--no-edges", quiet]),
        Command("knn", lambda o: ["knn", x, "-o", o, "--k", "20", quiet],
                lambda o: ["knn", z, "-o", o, "--k", "30", quiet]),
        Command("report", lambda o: ["report", run, "-o", o, "--json"],
                lambda o: ["report", str(data / "other"), "-o", o, "--json"]),
        Command("assign", lambda o: ["assign", o, more, quiet], lambda o: ["assign", o, "--remove", "3,5", quiet],
                before=lambda o: ["cluster", x, "-o", o, "--adapt", "off", quiet]),
        Command("apply", lambda o: ["apply", o, str(data / "one.json"), quiet],
                lambda o: ["apply", o, str(data / "two.json"), quiet],
                before=lambda o: ["cluster", x, "-o", o, "--adapt", "off", quiet]),
        Command("undo", lambda o: ["apply", o, str(data / "two.json"), quiet], lambda o: ["undo", o, quiet],
                before=lambda o: ["cluster", x, "-o", o, "--adapt", "off", "--marks", str(data / "one.json"), quiet]),
        Command("convert", lambda o: ["convert", x, o, quiet], lambda o: ["convert", z, o, quiet], single=True),
        Command("tune", lambda o: ["tune", x, y, "-o", o, "--k", "20", quiet],
                lambda o: ["tune", x, y, "-o", o, "--k", "30", quiet]),
        Command("train", None, lambda o: ["train", x, y, "-o", o, *tiny, quiet],
                again=lambda o: ["train", x, y, "-o", o, *tiny, quiet, "--resume"]),
    ]  # fmt: skip


def inputs(data: Path, rows: int) -> None:
    """Noisy directions around random centres, and their identities; those of z are other ones.

    So every result of z differs from that of x, whatever the model is sure of.
    """
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(0, rows // 12, rows))
    centres = rng.normal(size=(rows // 12, 32))
    for name, of, noise in (("x", labels, 0.5), ("z", rng.permutation(labels), 0.6)):
        np.save(data / f"{name}.npy", (centres[of] + noise * rng.normal(size=(rows, 32))).astype(np.float32))
    np.save(data / "y.npy", labels)
    for name, must, cannot in (("one", [[0, 1]], [[2, rows - 1]]), ("two", [[0, rows - 1]], [[0, rows // 2]])):
        marks = {
            "format": "starfc-marks",
            "version": 1,
            "num_instances": rows,
            "must_link": must,
            "cannot_link": cannot,
        }
        (data / f"{name}.json").write_text(json.dumps(marks))
    np.save(data / "more.npy", (centres[:6] + 0.5 * rng.normal(size=(6, 32))).astype(np.float32))


def child(arguments: list[str], hook: Callable[[], None] | None = None, log: Path | None = None) -> int:
    """Run a command in a child of this process; returns its exit code, minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            out = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.argv = ["starfc", *map(str, arguments)]
            if hook is not None:
                hook()
            from starfc.commands import app

            app(prog_name="starfc")
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def warm_up(arguments: list[str]) -> None:
    """Run a command in this process: what it loads and compiles, all children have then."""
    from starfc.commands import app

    with contextlib.redirect_stdout(io.StringIO()):
        app([*map(str, arguments)], standalone_mode=False)


def dying(at: int | None, told: Path, torn: bool = False) -> Callable[[], None]:
    """What makes this process die before its ``at``-th call; None: count them, into a file."""

    def install() -> None:
        count = itertools.count()
        real_open, real_write, kill = io.open, os.write, os.kill
        if at is None:
            note = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def before(subject: object = None) -> None:
            n = next(count)
            if at is None:
                real_write(note, b".")
            elif n == at:
                if torn and isinstance(subject, int):
                    with contextlib.suppress(OSError):
                        os.truncate(subject, os.fstat(subject).st_size // 2)
                kill(os.getpid(), signal.SIGKILL)

        def wrapped(name: str) -> None:
            real = getattr(os, name)

            def call(*arguments, **options):
                before(arguments[0])
                return real(*arguments, **options)

            setattr(os, name, call)

        def opening(file, mode="r", *arguments, **options):
            if set(mode) & set("wax+") and not isinstance(file, int):
                before()
            return real_open(file, mode, *arguments, **options)

        for name in ("replace", "rename", "unlink", "remove", "fsync", "mkdir", "rmdir", "pwrite", "posix_fallocate"):
            wrapped(name)
        io.open = builtins.open = opening

    return install


def held(path: Path) -> dict[str, Path]:
    """The files that a result consists of: those that still wait for their places where they were committed."""
    if path.is_file():
        return {path.name: path}
    waiting, gone = path / ".next", set()
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    files = {name: file for name, file in files.items() if not name.startswith(".")}
    if (waiting / "commit.json").is_file():
        gone = set(json.loads((waiting / "remove.json").read_text()))
        for name in json.loads((waiting / "commit.json").read_text()):
            if (waiting / name).is_file():
                files[name] = waiting / name
    return {name: file for name, file in files.items() if name not in gone and name.split("/")[0] not in APART}


def signature(path: Path) -> dict[str, str]:
    """Which files a result has, and the digests of those that are the same in every run."""
    return {name: "" if name in CHANGING else digest(file) for name, file in held(path).items()}


def whole(path: Path) -> bool:
    """Whether a folder's files are those that its list says."""
    if path.is_file():
        return True
    files = held(path)
    listed = json.loads(files["files.json"].read_text())["files"]
    known = {name: entry for name, entry in listed.items() if name.split("/")[0] not in APART}
    if set(files) - {"files.json", "notes.txt"} != set(known):
        return False
    return all(entry["digest"] in (None, digest(files[name])) for name, entry in known.items())


def leftovers(path: Path, temporary: Path) -> list[str]:
    """What no finished command leaves."""
    places = [*path.rglob("*"), *path.parent.iterdir(), *temporary.iterdir()]
    marks = (".next", ".lock", ".starfc-", "starfc-", ".scratch-")
    return sorted({str(place) for place in places if place.name.startswith(marks)})


class Trial:
    """A command with its old and new result, tried over and over in a folder."""

    def __init__(self, command: Command, work: Path, temporary: Path, sources: Path) -> None:
        self.command, self.temporary, self.sources = command, temporary, sources
        self.place = work / command.name.replace(" ", "") / ("out.npy" if command.single else "out")
        self.store = work / (command.name.replace(" ", "") + ".old")
        self.place.parent.mkdir()
        for step in (command.before, command.old):
            if step is not None:
                self.run(step(self.place))
        if not command.single:
            self.place.mkdir(exist_ok=True)
            (self.place / "notes.txt").write_text("mine\n")
        self.copy(self.place, self.store)
        self.old, self.mine = signature(self.place), signature(sources)
        self.run(command.new(self.place), dying(None, work / "calls"))
        command.calls = (work / "calls").stat().st_size
        (work / "calls").unlink()
        self.new = signature(self.place)
        if self.old == self.new or not whole(self.place):
            raise SystemExit(f"{command.name}: the old and the new result are not two whole ones")

    def run(self, arguments: list[str], hook: Callable[[], None] | None = None) -> None:
        log = self.place.parent.with_suffix(".log")
        code = child(arguments, hook, log)
        if code != 0:
            raise SystemExit(f"{self.command.name}: exit code {code}\n{log.read_text(errors='replace')}")

    def copy(self, source: Path, target: Path) -> None:
        if self.command.single:
            shutil.copy2(source, target)
        else:
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)

    def state(self, place: Path) -> str:
        """'old', 'new', 'mixed' or 'lost'."""
        if signature(self.sources) != self.mine or (not self.command.single and not (place / "notes.txt").is_file()):
            return "lost"
        found = signature(place)
        if self.command.old is None and "files.json" not in found:
            return "old"  # no result is none, whatever the work has left to go on from
        if found == self.old and whole(place):
            return "old"
        return "new" if found == self.new and whole(place) else "mixed"

    def kill(self, at: int, torn: bool) -> None:
        seen = self.command.seen
        self.copy(self.store, self.place)
        code = child(self.command.new(self.place), dying(at, self.place, torn))
        if code != -signal.SIGKILL:
            return
        seen["kills"] += 1
        state = self.state(self.place)
        seen[state] += 1
        if state in ("mixed", "lost"):
            print(f"{self.command.name}: {state} after a kill at call {at}", flush=True)
            return
        # rows that are gone cannot be removed again, and the step before is not to be undone
        done = self.command.name in ("assign", "undo") and state == "new"
        again = self.command.old if done else self.command.again or self.command.new
        self.run(again(self.place))
        if not done and self.state(self.place) != "new":
            seen["mixed"] += 1
            print(f"{self.command.name}: not the new result after a kill at call {at} and the command again")
        left = leftovers(self.place, self.temporary)
        seen["left"] += bool(left)
        if left:
            print(f"{self.command.name}: left after a kill at call {at}: {left}", flush=True)

    def apart(self) -> list[Path]:
        """Caches and logs that the new result has and the old one had not: they take room, too, and come first."""
        files = {file.relative_to(self.place): file for file in self.place.rglob("*") if file.is_file()}
        new = {name: file for name, file in files.items() if not (self.store / name).exists()}
        return [file for name, file in new.items() if name.parts[0] in APART]

    def full(self, level: int) -> dict[str, object]:
        """Run with room for ``level`` of LEVELS parts of what the command writes."""
        with disk(self) as (place, fill):
            self.copy(self.store, place)
            need = sum(file.stat().st_size for file in (*held(self.place).values(), *self.apart()))
            limit = fill(level * need // LEVELS, level)
            log = self.place.parent.with_suffix(".log")
            code = child(self.command.new(place), limit, log)
            errors = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error: ")]
            state = self.state(place)
            right = (code, state) == (0, "new") or (code == 2 and state == "old" and len(errors) == 1)
            told = errors[0].replace(str(place), "OUT").replace(str(self.temporary), "TMP") if errors else ""
            return {"right": right, "code": code, "state": state, "told": told}


@contextlib.contextmanager
def disk(trial: Trial):
    """A place on a disk of its own where this user may mount one, else one where files are limited in size."""
    mounted = Path(tempfile.mkdtemp(dir=trial.place.parent))
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", mounted], capture_output=True, check=False
    )
    place = mounted / trial.place.name

    def fill(room: int, level: int) -> Callable[[], None] | None:
        if done.returncode == 0:
            free = shutil.disk_usage(mounted).free
            with (mounted / "filler").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, free - max(room, 1 << 13)))
            return None

        def limit() -> None:
            import resource

            largest = max(file.stat().st_size for file in held(trial.place).values())
            resource.setrlimit(resource.RLIMIT_FSIZE, (room and largest * level // LEVELS,) * 2)

        return limit

    try:
        yield place, fill
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", mounted], check=True)
        shutil.rmtree(mounted, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=48, help="in all (default: %(default)s)")
    parser.add_argument("--full", action="store_true", help="also fill the disk")
    parser.add_argument("--only", nargs="+", help="of these commands")
    parser.add_argument("--rows", type=int, default=240)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # commands take all cores, and what has threads cannot be forked
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data, temporary = work / "data", work / "tmp"
        data.mkdir()
        temporary.mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
        inputs(data, arguments.rows)
        chosen = [c for c in commands(data) if arguments.only is None or c.name.split()[0] in arguments.only]
        warm_up(["cluster", str(data / "x.npy"), "-o", str(data / "run"), "--adapt", "off", "-q"])
        warm_up(["cluster", str(data / "z.npy"), "-o", str(data / "other"), "--adapt", "off", "-q"])
        for command in chosen:
            place = work / ("warm.npy" if command.single else "warm")
            for step in (command.before, command.old, command.new):
                if step is not None:
                    warm_up(step(place))
            place.unlink() if command.single else shutil.rmtree(place)
        wrong = 0
        for index, command in enumerate(chosen):
            trial = Trial(command, work, temporary, data)
            share = arguments.kills // len(chosen) + (index < arguments.kills % len(chosen))
            for n in range(share):
                trial.kill((2 * n + 1) * command.calls // (2 * share), torn=n % 3 == 2)
            seen = command.seen
            print(
                f"{command.name:<20}{command.calls:>6} calls  " + "  ".join(f"{k} {v}" for k, v in seen.items()),
                flush=True,
            )
            wrong += seen["mixed"] + seen["lost"] + seen["left"]
            for level in range(LEVELS) if arguments.full else ():
                found = trial.full(level)
                wrong += not found["right"]
                print(f"  full {level}/{LEVELS}: " + "  ".join(f"{k} {v}" for k, v in found.items()), flush=True)
        total = {k: sum(c.seen[k] for c in chosen) for k in chosen[0].seen}
        print("all: " + "  ".join(f"{k} {v}" for k, v in total.items()))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
