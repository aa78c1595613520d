"""Sort files into one folder per cluster, by links or copies. Nothing is replaced, and a killed export continues.

================  ====================================================================================================
``00018 Anna/``   files of a cluster: its id, and its name if it has one
``singles/``      files of instances that are alone or in no cluster
``clusters.csv``  row, file, cluster, name and confidence of every instance, and its ``place`` here
``export.json``   the digest of what the folder is to hold, written first; only an export of the same continues
================  ====================================================================================================

A file keeps its name, except for characters that a file system or a shell may not take. If two files in a folder have
one name, also in upper and lower case, the second one gets its row: ``IMG_1~123.jpg``. A file that several instances of
a cluster share is there once.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from starfc.data.instance_files import Files
from starfc.data.tables import write_table
from starfc.errors import InputError
from starfc.runtime.progress import progress
from starfc.runtime.words import advice, counted
from starfc.storage.atomic import prepare_folder, temporary_file, write_json, writes
from starfc.storage.records import ExportRecord
from starfc.storage.safe import open_regular, read_json

log = logging.getLogger("starfc")

SINGLES, TABLE, RECORD = "singles", "clusters.csv", "export.json"
_LONGEST = 120  # bytes of a name; file systems take 255, and temporary names are longer
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffd]')


def write_folders(
    out: Path, table: pa.Table, files: Files, single: NDArray[np.bool_], copy: bool = False
) -> dict[str, int]:
    """Sort files into folders.

    Parameters
    ----------
    out : path
        Output folder: new, empty, or an unfinished or finished export of the same clusters and files.
    table : pa.Table
        Row, file, cluster, name and confidence of N instances.
    files : list of path or None
        File of each of the instances.
    single : (N,) bool
        Which instances are alone or in no cluster.
    copy : bool
        Copy the files. If False, make symbolic links to them.

    Returns
    -------
    dict
        ``written``: number of new links or copies. ``kept``: number of those that were there. ``missing``: number of
        files that do not exist.

    Raises
    ------
    InputError
        None of the files exists, the folder holds something else, something else has one of the names, or the folder
        cannot be written to.
    """
    sources = [None if file is None else file.absolute() for file in files]
    _require_some(sources)
    places = placed(table, sources, single)
    record = {"format": "starfc-export", "version": 1, "copied": copy, "digest": _digest(sources, places, copy)}
    _claim(out, record)
    counts = {"written": 0, "kept": 0, "missing": 0}
    done: set[str] = set()
    there = list(places)
    gone: Path | None = None
    for number, (source, place) in enumerate(progress("files", zip(sources, places, strict=True), total=len(sources))):
        if source is None or place is None or place in done:
            continue
        done.add(place)
        if not os.path.isfile(source):
            counts["missing"] += 1
            gone = gone or source
            there[number] = None
            continue
        with writes(out / place, out):
            (out / place).parent.mkdir(exist_ok=True)
            counts["written" if _put(source, out / place, copy) else "kept"] += 1
    if gone is not None:
        log.warning(
            "%s not exist, such as %s; if they were moved, name the folder that holds them now%s",
            counted(counts["missing"], "file does", "files do"), gone, advice(" ({})", "files"),
        )  # fmt: skip
    told = table.append_column("place", pa.array(there, pa.string()))
    write_table(out / TABLE, told, "csv", overwrite=True)
    return counts


def _require_some(sources: Files) -> None:
    """Raise InputError if files are known and none of them exists."""
    named = [source for source in sources if source is not None]
    if named and not any(map(os.path.isfile, named)):
        raise InputError(
            f"folders: none of the {counted(len(named), 'known file')} exists, such as {named[0]}; name the folder "
            f"that holds them now, or a list of their paths{advice(' ({})', 'files')}"
        )


def placed(table: pa.Table, sources: Files, single: NDArray[np.bool_]) -> list[str | None]:
    """Return the place of each file, relative to the output folder, such as ``00018 Anna/IMG_1.jpg``."""
    labels, rows, names = (table[name].to_pylist() for name in ("cluster", "row", "name"))
    digits = max(5, len(str(max(labels, default=0))))
    taken: dict[str, Path] = {}  # which file has a place; places are compared without case
    places: list[str | None] = []
    for source, label, row, name, alone in zip(sources, labels, rows, names, single.tolist(), strict=True):
        if source is None:
            places.append(None)
            continue
        folder = SINGLES if alone else f"{label:0{digits}} {safe_name(name or '')}".strip()
        for file in _candidates(source, row):
            place = f"{folder}/{file}"
            if taken.setdefault(unicodedata.normalize("NFC", place).casefold(), source) == source:
                break
        places.append(place)
    return places


def safe_name(text: str) -> str:
    """Return text as a name of a file or folder: no separators or control characters, not too long, not hidden."""
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    text = _UNSAFE.sub("_", text).strip(" .")
    return text.encode()[:_LONGEST].decode(errors="ignore").strip(" .")


def _candidates(source: Path, row: int) -> Iterator[str]:
    stem = safe_name(source.stem) or str(row)
    suffix = safe_name(source.suffix[1:])[:16]
    suffix = suffix and f".{suffix}"
    yield f"{stem}{suffix}"
    yield f"{stem}~{row}{suffix}"
    for number in range(2, 1 << 62):
        yield f"{stem}~{row}~{number}{suffix}"


def _digest(sources: Files, places: list[str | None], copy: bool) -> str:
    digest = hashlib.blake2b(b"copy" if copy else b"link", digest_size=16)
    for source, place in zip(sources, places, strict=True):
        digest.update(b"\0" if source is None else os.fsencode(source) + b"\0")
        digest.update((place or "").encode() + b"\0")
    return digest.hexdigest()


def _claim(out: Path, record: dict[str, Any]) -> None:
    """Prepare the folder: it must be empty, or hold an export of the same."""
    prepare_folder(out)
    path = out / RECORD
    if os.path.lexists(path):
        if read_json(path, ExportRecord).digest != record["digest"]:
            raise InputError(f"{out}: holds an export of other clusters or files; name a new folder")
        return
    with os.scandir(out) as entries:
        if any(not entry.name.startswith(".starfc-") for entry in entries):
            raise InputError(f"{out}: is not empty and holds no export; name a new folder")
    write_json(path, record)


def _put(source: Path, place: Path, copy: bool) -> bool:
    """Link or copy a file to a place where there is nothing. Return False if the same is there already."""
    if os.path.lexists(place):
        same = place.is_symlink() and place.readlink() == source
        if copy:
            same = not place.is_symlink() and place.is_file() and place.stat().st_size == source.stat().st_size
        if not same:
            raise InputError(f"{place}: exists and is not what this export writes there; name a new folder")
        return False
    if not copy:
        try:
            place.symlink_to(source)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                message = f"{place.parent}: the file system has no symbolic links{advice('; use {}', 'copy')}"
                raise InputError(message) from None
            raise
        return True
    with temporary_file(place) as temporary:
        with open_regular(source, "file") as old, temporary.open("wb") as new:
            shutil.copyfileobj(old, new, 1 << 20)
        shutil.copystat(source, temporary)
        try:
            os.link(temporary, place)  # unlike a rename, this never replaces a file
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS) or os.path.lexists(place):
                raise
            os.replace(temporary, place)  # the file system has no hard links
    return True
