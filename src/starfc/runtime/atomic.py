"""Writing files so that a kill at any moment leaves the old file or the new one, never a part."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starfc.errors import InputError


def prepare_folder(path: str | Path) -> Path:
    """Make a folder for results, before the work that fills it.

    Raises
    ------
    InputError
        It cannot be made or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: a folder for the results cannot be made there ({error.strerror}); name another"
        ) from None
    if not os.access(path, os.W_OK):
        raise InputError(f"{path}: the folder for the results cannot be written to; name another")
    return path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends well, flush it and rename it over ``path``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_array(path: str | Path, array: NDArray) -> None:
    """Write an array as .npy, atomically."""
    with replacing(path) as temporary:
        np.save(temporary, array)


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=False) + "\n", encoding="utf-8")
