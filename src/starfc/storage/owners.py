"""The files that each command writes to a folder, and the commands whose files it may replace.

Folders of earlier versions have no ``files.json``. Their records show which command wrote them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from starfc.errors import InputError
from starfc.storage.records import ListedFile
from starfc.storage.safe import open_regular, read_json


@dataclass(frozen=True)
class Owner:
    """A command that writes a folder.

    Parameters
    ----------
    command : str
        Name of the command in ``files.json``.
    names : tuple of str
        Names of the files that it writes; ``*`` stands for any characters.
    over : tuple of str
        Commands whose files it may replace.
    drops : tuple of str
        Commands whose old files it removes if it does not replace them. Empty for a command that adds to a folder.
    reads : bool
        Whether it reads the files that it replaces. Such a command checks their state itself.
    """

    command: str
    names: tuple[str, ...]
    over: tuple[str, ...]
    drops: tuple[str, ...]
    reads: bool = False


_EDGES = (
    "indptr.npy", "cols.npy", "scores.npy", "intimacy.npy", "kept.npy", "logits.npy", "context.npz", "manifest.json",
)  # fmt: skip
_STATE = (
    "features.bin", "scale.npy", "ids.npy", "sims.npy", "alive.npy", "clusters.npy", "manifest.json",
    "step-[0-9]*.npz",
)  # fmt: skip
_RESULTS = ("labels.npy", "labels.meta", "clusters.parquet", "run.json", *(f"edges/{name}" for name in _EDGES))
_ADDED = ("assign.json", *(f"state/{name}" for name in _STATE))
_MARKED = ("marks.json", "names.json", "answers/clusters.npy", "answers/step-[0-9]*.npz")
_THRESHOLDS = ("thresholds.json", "threshold_surface.csv", "threshold_surface.png")
_OUTLINES = ("threshold_outline.csv", "threshold_outline.png")
_WEIGHTS = (
    "Backbone.pth", "Head.pth", "Backbone1.pth", "Head1.pth", "Head2.pth", "Head3.pth", "Head4.pth", "Attention.pth",
    "Distance.pth", "Structural.pth", "Contextual.pth",
)  # fmt: skip
_TRAINED = ("config.json", "run.json", *_WEIGHTS, *_THRESHOLDS, "reliability.csv", "reliability.png")
_GRAPH = ("ids.npy", "sims.npy", "manifest.json")
GRAPHS = f"{'[0-9a-f]' * 12}_*_k_[0-9]*"  # folders of graphs in the folder knn/ of a run
_DATA = ("index", "questions", "clusters", "merges", "issues", "rows", "names", "members-[0-9]*")
_ASKED = ("indptr.npy", "cols.npy", "scores.npy", "divisions.npz", "manifest.json")
_PAGE = ("index.html", "page/*", *(f"data/{name}.js" for name in _DATA), "thumbs/[0-9]*.webp")

CLUSTER = Owner("cluster", _RESULTS, over=("cluster",), drops=("cluster", "assign", "apply"))
ASSIGN = Owner("assign", (*_RESULTS, *_ADDED), over=("cluster", "assign", "apply"), drops=(), reads=True)
_CHANGED = ("labels.npy", "labels.meta", "clusters.parquet", "run.json", "edges/kept.npy")
_CLUSTERS = ("state/clusters.npy", "state/manifest.json")
APPLY = Owner("apply", (*_CHANGED, *_CLUSTERS, *_MARKED), over=("cluster", "assign", "apply"), drops=(), reads=True)
TRAIN = Owner("train", _TRAINED, over=("train", "tune"), drops=("train", "tune"))
TUNE = Owner("tune", (*_THRESHOLDS, *_OUTLINES), over=("tune", "train"), drops=())
KNN = Owner("knn", _GRAPH, over=("knn",), drops=("knn",))
ASK = Owner("ask", _ASKED, over=("ask",), drops=("ask",))
REPORT = Owner("report", _PAGE, over=("report",), drops=("report",))


class _Run(BaseModel):
    """The keys that identify run.json of a clustering."""

    num_clusters: int
    thresholds: dict[str, Any]
    features: str = ""
    command: list[str] = []
    steps: list[Any] | None = None


class _Marks(BaseModel):
    steps: list[Any]


class _Names(BaseModel):
    names: dict[str, str]


class _Training(BaseModel):
    config: dict[str, Any]
    seed: int = 0


class _Config(BaseModel):
    total_epochs: int
    optimizer: dict[str, Any]


class _Thresholds(BaseModel):
    chosen_on: str


class _Graph(BaseModel):
    fingerprint: str
    num_nodes: int
    k: int


def earlier(folder: Path) -> dict[str, ListedFile]:
    """Return the files of a folder that commands of earlier versions wrote, which left no ``files.json``."""
    return {
        name: ListedFile(bytes=(folder / name).stat().st_size, digest=None, by=command)
        for command, patterns in _recognised(folder)
        for pattern in patterns
        for name in matching(folder, pattern)
        if (folder / name).is_file()
    }


def matching(folder: Path, pattern: str) -> list[str]:
    """Return the names in a folder that match a pattern of one or two parts. A pattern without ``*`` is such a name."""
    *above, last = pattern.split("/")
    place = folder.joinpath(*above)
    if "*" not in last:
        return [pattern]
    try:
        with os.scandir(place) as entries:
            return ["/".join([*above, entry.name]) for entry in entries if fnmatchcase(entry.name, last)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _recognised(folder: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    if _is(folder / "thresholds.json", _Thresholds):
        yield "tune", (*_THRESHOLDS, *_OUTLINES)
    if _is(folder / "manifest.json", _Graph):
        yield "knn", _GRAPH
    if _opens(folder / "data" / "index.js", b'starfc.put("index",'):
        yield "report", _PAGE
    run = _is(folder / "run.json", _Run)
    if run is not None:
        yield ("cluster", _RESULTS) if run.steps is None else ("assign", (*_RESULTS, *_ADDED))
        if "-" in run.command and run.features == str((folder / "features.npy").absolute()):
            yield "cluster", ("features.npy",)
        if _is(folder / "marks.json", _Marks) or _is(folder / "names.json", _Names):
            yield "apply", (*_CHANGED, *_MARKED)
    elif _is(folder / "run.json", _Training):
        yield "train", _TRAINED
    elif _is(folder / "config.json", _Config):
        yield "train", ("config.json",)


def _is(path: Path, content: type[BaseModel]) -> Any:
    try:
        return read_json(path, content)
    except InputError:
        return None


def _opens(path: Path, start: bytes) -> bool:
    try:
        with open_regular(path, follow=False) as file:
            return file.read(len(start)) == start
    except InputError:
        return False
