"""Gather features that are at a URL, or in a folder of parts, in one ``.npy`` of this machine.

The parts of a folder are its ``.npy`` and ``.parquet`` files, in the order of their names; names that begin with ``.``
or ``_`` are left out. Other files of features, and folders, are not read; a warning names them. A part is fetched,
appended and removed before the next one, so the disk holds one part more than all features.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from starfc.data.files import FEATURE_SUFFIXES, feature_blocks
from starfc.data.formats.npy import npy_writer
from starfc.data.instance_files import SUFFIXES, Files, files_of_parts
from starfc.errors import InputError
from starfc.storage.atomic import temporary_file
from starfc.storage.remote import file_system, is_url, reason
from starfc.storage.safe import first_line, listed

log = logging.getLogger("starfc")

PARTS = (".npy", ".parquet")


def is_gathered(source: str) -> bool:
    """Return whether features are gathered by :func:`gather`, because they are at a URL or in a folder."""
    return is_url(source) or Path(source).is_dir()


def gather(source: str, place: Path) -> None:
    """Write the features of a URL, or of a folder of parts, to ``place`` as one ``.npy``.

    Parameters
    ----------
    source : str
        URL of a ``.npy`` or ``.parquet``, or URL or path of a folder of parts, each (N_i, d) of the same dtype.
    place : path
        The file to write.

    Raises
    ------
    InputError
        There are no parts, one is damaged, they differ in dimension or dtype, or the URL cannot be read.
    """
    fs, root = file_system(source, "features")
    rows, known = 0, ""
    found, left = _parts(fs, root, source)
    if left:
        log.warning("%s: only its %s files are read; not %s", source, " and ".join(PARTS), listed(left))
    form: tuple[int, np.dtype] | None = None
    with place.open("wb") as file:
        for name in found:
            with temporary_file(place.with_name(f"part{Path(name).suffix}")) as part:
                _fetch(fs, name, part, source)
                try:
                    blocks = feature_blocks(part)
                    if form is None:
                        form, known = (blocks.dim, blocks.dtype), name
                        with npy_writer(file, 0, *form):
                            pass
                    if form != (blocks.dim, blocks.dtype):
                        raise InputError(
                            f"{part}: parts of the same dimension and dtype needed; found {blocks.dim}-d {blocks.dtype}"
                            f", but {form[0]}-d {form[1]} in {known}"
                        )
                    for block in blocks.parts:
                        file.write(np.ascontiguousarray(block).data)
                        rows += len(block)
                except InputError as error:
                    raise InputError(str(error).replace(str(part), name)) from None
        assert form is not None  # there is at least one part
        file.seek(0)
        with npy_writer(file, rows, *form):  # the header leaves room for any number of rows, so it has the same length
            pass


def files_of(source: str) -> Files | None:
    """Return the file of each instance that the tables of a folder of parts name; None if none does, and for a URL."""
    if is_url(source):
        return None
    found, _ = _parts(*file_system(source, "features"), source)
    return files_of_parts([Path(name) for name in found])


def about_pictures(names: Iterable[str]) -> str:
    """Return advice for a message about a folder without features, if some of its files are pictures; "" if not."""
    found = next((name for name in names if Path(name).suffix.lower() in SUFFIXES), None)
    if found is None:
        return ""
    return (
        f"; it holds pictures such as {found}: pictures must be embedded first, so compute a vector of each with a "
        "network, and name the file of these features"
    )


def _parts(fs: Any, root: str, source: str) -> tuple[list[str], list[str]]:
    """Return the paths of the parts, within the file system, and the names of what else is in the folder."""
    try:
        info = fs.info(root)
        entries = [info] if info["type"] == "file" else fs.ls(root, detail=True)
    except Exception as error:  # each file system has errors of its own
        raise InputError(f"{source}: cannot be read ({reason(error, root)})") from None
    kinds = {entry["name"].rstrip("/"): entry["type"] for entry in entries}
    kinds = {name: kind for name, kind in sorted(kinds.items()) if not _last(name).startswith((".", "_"))}
    found = [name for name, kind in kinds.items() if kind == "file" and name.endswith(PARTS)]
    if not found:
        needed = f"{source}: a {' or '.join(PARTS)} needed, or a folder of them; found none"
        raise InputError(needed + about_pictures(map(_last, kinds)))
    left = [
        _last(name)
        for name, kind in kinds.items()
        if name not in found and (kind == "directory" or Path(name).suffix.lower() in FEATURE_SUFFIXES)
    ]
    return found, left if info["type"] != "file" else []


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _fetch(fs: Any, name: str, part: Path, source: str) -> None:
    try:
        fs.get_file(name, str(part))
    except Exception as error:  # each file system has errors of its own
        raise InputError(f"{source}: {name} cannot be read ({first_line(error)})") from None
