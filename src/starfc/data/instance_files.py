"""Find the file of each instance, such as the picture that an embedding was made of.

The files may be given as a list, as a folder, or as a column of a table:

=========  ======================================================================================
list       text, one path per line; an empty line means that there is no file
folder     pictures named after rows (``00017.jpg``; some may be missing), or N pictures in the order
           of their paths; subfolders are searched too
table      ``.parquet`` with a column of paths, ``.npz`` with an array of them, called as in
           :data:`starfc.data.names.FILE_NAMES`
=========  ======================================================================================

Paths in a list or a table are relative to its folder. ``clusters.parquet`` of a run holds the absolute paths, if they
are known, in the column ``file``. If a run or a table of features names the files, a folder is searched for these
instead.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from starfc.data.files import feature_blocks
from starfc.data.formats.parquet import opened_parquet
from starfc.data.names import FILE_NAMES, alternatives
from starfc.errors import InputError, MissingFileError
from starfc.storage.safe import Npz, read_lines

if TYPE_CHECKING:
    import pyarrow as pa

HEIF_SUFFIXES = {".heic", ".heif", ".hif"}
SUFFIXES = HEIF_SUFFIXES | {
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip

Files = list[Path | None]  # None: this instance has no file


def read_files(source: str | Path, num_instances: int, run: Path | None = None, known: Files | None = None) -> Files:
    """Return the file of each of N instances.

    Parameters
    ----------
    source : path
        A list, a folder or a table, as in the docstring of this module.
    num_instances : int
        Number of instances N.
    run : path, optional
        Folder of a run. The run may be from another person, so a list in this folder may name only files in it.
    known : list of path or None, optional
        The file that a run or a table of features names for each instance. A folder is then searched for these, by
        path or by name.

    Raises
    ------
    MissingFileError, InputError
        There is nothing at the path, it does not have one file for each instance, or a folder lacks known files.
    """
    path = Path(source)
    if os.path.isdir(path):
        if known is not None and any(known):
            return _known_in_folder(path, known)
        return _in_folder(path, num_instances)
    if not os.path.isfile(path):
        raise MissingFileError(f"{path}: no such files; a list of files, a folder or a table with paths is needed")
    names: Sequence[str | None]
    if path.suffix in (".parquet", ".npz"):
        found = _of_table(path)
        if found is None:
            raise InputError(f"{path}: has no paths of files; they must be text called {alternatives(FILE_NAMES)}")
        names, what = found, "paths"
    else:
        names, what = read_lines(path, "list of files"), "lines"
    if len(names) != num_instances:
        raise InputError(f"{path}: has {len(names):,} {what}; needs one path for each of {num_instances:,} instances")
    files = [path.parent / name.strip() if name and name.strip() else None for name in names]
    if run is not None and _lies_in(path, run):
        for file in files:
            if file is not None and not _lies_in(file, run):
                raise InputError(f"{path}: is in {run} but names {file}, which is not; copy the list to another folder")
    return files


def files_beside(features: str | Path, num_instances: int) -> Files | None:
    """Return the files that a table of features names. None if it names none, or if the features are no table."""
    path = Path(features)
    if path.suffix not in (".parquet", ".npz") or not path.is_file() or (names := _of_table(path)) is None:
        return None
    return read_files(path, num_instances) if len(names) == num_instances else None


def files_of_parts(parts: Sequence[Path]) -> Files | None:
    """Return the files that some of the parts of a set of features name (``.npy``, ``.parquet``). None without any."""
    named = [_of_table(part) if part.suffix == ".parquet" else None for part in parts]
    if all(names is None for names in named):
        return None
    files: Files = []
    for part, names in zip(parts, named, strict=True):
        count = feature_blocks(part).rows
        files += [None] * count if names is None else [part.parent / name if name else None for name in names]
    return files


def text_of(file: Path | None) -> str:
    """Return a path as text; bytes that are not UTF-8 become �. No file is an empty text."""
    return "" if file is None else os.fsencode(file).decode("utf-8", "replace")


def file_column(files: Files) -> pa.Array:
    """Return the absolute paths as a column of ``clusters.parquet``: text, null without a file."""
    import pyarrow as pa

    return pa.array([None if file is None else text_of(file.absolute()) for file in files], pa.string())


def _of_table(path: Path) -> Sequence[str | None] | None:
    """Return the text of the first column or array with one of :data:`FILE_NAMES`. None without one."""
    if path.suffix == ".npz":
        with Npz(path) as archive:
            called = {name.lower(): name for name in reversed(archive.names)}
            found = [called[name] for name in FILE_NAMES if name in called]
            return archive.array(found[0], "US", 1).astype(str).tolist() if found else None
    import pyarrow.types as kinds

    def is_text(kind: pa.DataType) -> bool:
        return (
            kinds.is_string(kind)
            or kinds.is_large_string(kind)
            or (kinds.is_dictionary(kind) and is_text(kind.value_type))
        )

    with opened_parquet(path) as table:
        text = {field.name.lower(): field.name for field in reversed(list(table.schema_arrow)) if is_text(field.type)}
        found = [text[name] for name in FILE_NAMES if name in text]
        return table.read(columns=found[:1]).column(0).to_pylist() if found else None


def _lies_in(path: Path, folder: Path) -> bool:
    """Return whether a path is inside a folder after all symbolic links are resolved."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _known_in_folder(folder: Path, known: Files) -> Files:
    """Find known pictures in another folder, such as a copy of the folder that held them.

    All pictures are found in one way: below ``folder`` as they are below one of the folders that hold all of them, or
    by their names alone, if each name is there once. So two of them never become one.
    """
    pictures = _pictures(folder)
    below = {os.path.relpath(path, folder): path for path in pictures}
    files = {file: os.fspath(file.absolute()) for file in known if file is not None}
    of_name, there = (Counter(map(os.path.basename, paths)) for paths in (set(files.values()), pictures))
    named = {path.name: path for path in pictures if of_name[path.name] == there[path.name] == 1}
    common = Path(os.path.commonpath([file.absolute().parent for file in files]))
    above = reversed([common, *common.parents])  # the longest relative paths first
    roots = [str(root).rstrip(os.sep) + os.sep for root in above]
    by_path = ({file: below.get(path.removeprefix(root)) for file, path in files.items()} for root in roots)
    by_name = {file: named.get(file.name) for file in files}
    found = max(chain(by_path, [by_name]), key=lambda way: sum(path is not None for path in way.values()))
    missing = [file for file, path in found.items() if path is None]
    if missing:
        raise InputError(
            f"{folder}: lacks {len(missing):,} of the {len(files):,} pictures that the rows have, such as {missing[0]} "
            "(sought by path, and by name where a name is there once); name a folder with all of them, or a list of "
            "files"
        )
    return [None if file is None else found[file] for file in known]


def _pictures(folder: Path) -> list[Path]:
    """Return the pictures in a folder and its subfolders, in the order of their paths.

    Raises
    ------
    InputError
        There are none, but tables: the folder is one of parts of features.
    """
    files = [Path(place) / name for place, _, names in os.walk(folder) for name in names]
    found = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
    tables = sorted(path.name for path in files if path.suffix == ".parquet")
    if tables and not found:
        raise InputError(
            f"{folder}: holds no pictures, but tables such as {tables[0]}; name a folder of pictures, a list or one "
            "table with paths (a run of such a folder keeps the paths of its tables in its clusters.parquet)"
        )
    return found


def _in_folder(folder: Path, num_instances: int) -> Files:
    found = _pictures(folder)
    if found and all(path.stem.isdecimal() for path in found):
        files: Files = [None] * num_instances
        for path in found:
            row = int(path.stem)
            if row >= num_instances:
                raise InputError(
                    f"{path}: is named after a row, but the rows are 0 to {num_instances - 1:,}; rename it"
                )
            if files[row] is not None:
                raise InputError(f"{path}: is named after the same row as {files[row]}; remove one of them")
            files[row] = path
        return files
    if len(found) != num_instances:
        raise InputError(
            f"{folder}: has {len(found):,} images; needs one for each of {num_instances:,} instances, or files named "
            "after their rows (00017.jpg); or give a list of files"
        )
    return list(found)
