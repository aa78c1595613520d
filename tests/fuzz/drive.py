"""Make and read inputs in child processes, so that a killed process counts as a fault and does not end the run."""

from __future__ import annotations

import faulthandler
import mmap
import os
import random
import resource
import signal
import struct
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from starfc.errors import InputError

from .mutate import mutate
from .readers import READERS

MEMORY = 1 << 30  # bytes that a reader may take beyond what reading the seeds takes
SECONDS = 10  # that an input may take
BATCH = 5000  # inputs of a child


@dataclass
class Found:
    """How many inputs were read, refused, and what went wrong: (input's number, what)."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    faults: list[tuple[int, str]] = field(default_factory=list)


def fuzz(name: str, inputs: int, seed: int = 0, keep: Path | None = None) -> Found:
    """Read damaged files, ``inputs`` of them; the files of faults are kept in ``keep``."""
    found, started = Found(), time.monotonic()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # files that are opened again and again
    with tempfile.TemporaryDirectory(dir=memory) as folder, mmap.mmap(-1, 32) as shared:
        while found.inputs < inputs:
            first, last = found.inputs, min(found.inputs + BATCH, inputs)
            shared[:24] = struct.pack("3q", first, 0, 0)
            log = Path(folder) / "faults"
            log.write_text("")
            status = _in_child(name, seed, first, last, Path(folder), shared, log)
            done, read, refused = struct.unpack("3q", shared[:24])
            found.read, found.refused = found.read + read, found.refused + refused
            for line in log.read_text().splitlines():
                number, _, what = line.partition(" ")
                found.faults.append((int(number), what))
            if status:
                hung = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
                died = f"more than {SECONDS} s" if hung else f"process ended, status {status:#x}"
                found.faults.append((done, died))
                done += 1
            found.inputs = done
    for number, _ in found.faults if keep is not None else ():
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{name}-{seed}-{number}{READERS[name].suffix}").write_bytes(damaged(name, seed, number))
    found.seconds = time.monotonic() - started
    return found


def damaged(name: str, seed: int, number: int, seeds: list[bytes] | None = None) -> bytes:
    """The input of a number: always the same."""
    reader = READERS[name]
    seeds = list(reader.seeds()) if seeds is None else seeds
    rng = random.Random(f"{name} {seed} {number}")
    return mutate(rng, rng.choice(seeds), seeds, reader.tokens)


def verdict(name: str, path: Path) -> str | None:
    """Read a file: '' where that went well, 'refused' where it ended as one message, else what went wrong."""
    try:
        READERS[name].read(path)
    except InputError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError):
                return f"an allocation above {MEMORY >> 20} MiB ({error})"
            cause = cause.__context__
        return "refused" if "\n" not in str(error) else f"a message of several lines: {error!r}"
    except MemoryError:
        return f"an allocation above {MEMORY >> 20} MiB"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})".replace("\n", " ")
    return ""


def _in_child(name: str, seed: int, first: int, last: int, folder: Path, shared: mmap.mmap, log: Path) -> int:
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    try:
        faulthandler.disable()  # a signal is a finding, and is reported by the parent
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        path, seeds = folder / f"input{READERS[name].suffix}", list(READERS[name].seeds())
        for content in seeds:  # what is loaded and compiled once is not an input's
            path.write_bytes(content)
            verdict(name, path)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        read = refused = 0
        for number in range(first, last):
            path.write_bytes(damaged(name, seed, number, seeds))
            signal.alarm(SECONDS)
            what = verdict(name, path)
            signal.alarm(0)
            if what not in ("", "refused"):
                with log.open("a") as file:
                    file.write(f"{number} {what}\n")
            read, refused = read + (what == ""), refused + (what == "refused")
            shared[:24] = struct.pack("3q", number + 1, read, refused)
        os._exit(0)
    except BaseException:
        os._exit(70)
