"""What the review page shows of an instance, and the files of the page."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from starfc.data.dataset import Features
from starfc.data.instance_files import Files
from starfc.storage.atomic import write_bytes


@dataclass(frozen=True)
class Served:
    """What the server of `starfc review` has for a page that it serves.

    Attributes
    ----------
    thumbs : dict, optional
        What :func:`starfc.review.images.write_sheets` returned, if there are pictures.
    places : (N,) int64
        Place of each instance among the thumbnails.
    files : (N,) bool
        Which instances have a picture file, at the address ``../picture/ROW``.
    state : dict
        ``steps`` and ``answers`` of the run.
    """

    thumbs: dict[str, int] | None
    places: NDArray[np.int64]
    files: NDArray[np.bool_]
    state: dict[str, Any]


class Shown:
    """The data that the page shows of an instance: its row, the position of its thumbnail, its cluster and name."""

    def __init__(
        self,
        labels: NDArray[np.int64],
        places: NDArray[np.int64],
        names: Sequence[str] | None,
        features: Features | None,
    ) -> None:
        self.labels, self.places, self.names, self.features = labels, places, names, features
        self.files: list[str] | None = None  # paths of the pictures, quoted as in an address

    def instance(self, row: int) -> list[Any]:
        told = [int(row), int(self.places[row]), int(self.labels[row])]
        return told if self.names is None else [*told, self.names[row]]

    def similarity(self, a: int, b: int) -> float | None:
        if self.features is None:
            return None
        x, y = self.features.rows(np.array([a, b]))
        return short(x @ y)

    def question(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return a question (``Question.record()``) with what the page shows of its most telling rows."""
        return {**question, "shown": [[self.instance(row) for row in rows] for rows in question["shown"]]}


def originals(files: Files | None, report: Path) -> tuple[str | None, list[str] | None]:
    """Return the folder of the pictures, relative to the page, and their paths in it, quoted as in an address.

    Relative paths still hold if page and pictures are moved together. There is an empty path where there is no picture.
    """
    known = [] if files is None else [file.absolute() for file in files if file is not None]
    if files is None or not known:
        return None, None
    base = os.path.commonpath([file.parent for file in known])

    def quoted(path: Path, start: str | Path) -> str:
        return quote(os.fsencode(os.path.relpath(path, start)))

    each = ["" if file is None else quoted(file.absolute(), base) for file in files]
    return quoted(Path(base), report.absolute()), each


def thousandths(values: NDArray[np.floating]) -> list[int]:
    return np.rint(1000 * np.nan_to_num(values)).astype(int).tolist()


def short(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


class Writer:
    """Writes the files of the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, name: str, value: Any) -> None:
        """Write a value as a script that passes it to the page."""
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        self._write(f"data/{name}.js", f'starfc.put("{name}",{text});\n')

    def page(self, served: bool) -> None:
        """Copy the files of the page, index.html last. Only a page that a server sends can make requests to it."""
        page = resources.files("starfc.review") / "page"
        for source in sorted(page.iterdir(), key=lambda item: item.name == "index.html"):
            where = source.name if source.name == "index.html" else f"page/{source.name}"
            text = source.read_text(encoding="utf-8")
            if source.name == "index.html" and served:
                text = text.replace('file: data:">', "file: data:; connect-src 'self'\">", 1)
                text = text.replace(
                    '<script src="page/server.js">',
                    '<script src="page/api.js"></script>\n<script src="page/server.js">',
                    1,
                )
            if source.name != "api.js" or served:
                self._write(where, text)

    def _write(self, name: str, text: str) -> None:
        write_bytes(self.folder / name, text.encode())
