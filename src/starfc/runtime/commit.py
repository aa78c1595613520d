"""Replacing several files of a folder at once: a kill at any moment leaves all the old ones or all the new ones.

New files are written to ``.next/`` in the folder. When all of them are on the disk, ``.next/commit.json`` is, which
lists them; from then on the new ones count. They are renamed over the old ones, the list goes, and the folder with it.
A kill before the list leaves the old files, and what lies in ``.next/`` is thrown away by the next writer; one after it
leaves renames to be done, and whoever opens the folder next does them (:func:`settle`).

One process writes at a time: it holds the lock file ``.lock``, which the system gives back when the process ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starfc.errors import InputError
from starfc.runtime.atomic import write_json
from starfc.runtime.opened import OpenedFolder

NEXT, LIST, LOCK = ".next", "commit.json", ".lock"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Be the one process that changes a folder while the block runs; what an earlier one left is settled first.

    Raises
    ------
    InputError
        Another process is at it.
    """
    with _lock(folder, wait=False):
        _roll_forward(folder)
        shutil.rmtree(folder / NEXT, ignore_errors=True)
        yield


@contextmanager
def replacing_together(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; when the block ends well, its files take the places of those of the same names.

    Only within :func:`writing`.
    """
    place = folder / NEXT
    place.mkdir()
    try:
        yield place
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    files = sorted(path for path in place.rglob("*") if path.is_file())
    for path in files:
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    write_json(place / LIST, [str(path.relative_to(place)) for path in files])
    _sync(place)
    _roll_forward(folder)


def settle(folder: Path) -> None:
    """Before a folder is read: finish what a process that was killed had committed."""
    if (folder / NEXT / LIST).is_file():
        with _lock(folder, wait=True):
            _roll_forward(folder)


def _roll_forward(folder: Path) -> None:
    place = folder / NEXT
    if not (place / LIST).is_file():
        return
    for name in sorted(OpenedFolder(folder).waiting):
        if (place / name).is_file():  # renamed before otherwise
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(place / name, folder / name)
    _sync(folder)
    (place / LIST).unlink()
    shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _lock(folder: Path, wait: bool) -> Iterator[None]:
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise InputError(
                f"{folder}: another process is changing it (it holds {LOCK}); wait until that has ended"
            ) from None
        yield


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
