"""Arguments and options that several commands share, and what a command does first and last."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from starfc.data.names import FEATURE_NAMES, LABEL_NAMES, alternatives

STREAM = "-"  # instead of a file: .npy from stdin, or to stdout

FEATURES_HELP = "Features: .npy, .npz, .bin (with --feature-dim), .parquet, .h5, .hdf5 or .fvecs; - is .npy from stdin."
LABELS_HELP = "Labels: .meta, .txt, .npy, .csv or .parquet, or an .npz that holds them; -1 says of unknown identity."


class Search(str, Enum):
    """How neighbours are searched for."""

    exact = "exact"
    ivf = "ivf"


class Partition(str, Enum):
    """From edges to clusters."""

    components = "components"
    infomap = "infomap"
    leiden = "leiden"


class Refinement(str, Enum):
    """Thresholds of node intimacy."""

    fixed = "fixed"
    dynamic = "dynamic"


class InvalidRows(str, Enum):
    """What is done with rows of NaN, infinity or zeros."""

    error = "error"
    singleton = "singleton"


class Copies(str, Enum):
    """What is done with rows that have the direction of an earlier row."""

    collapse = "collapse"
    keep = "keep"


class Reach(str, Enum):
    """Whether clusters larger than the lists are looked at again in a sample of the rows."""

    auto = "auto"
    off = "off"


class Adapt(str, Enum):
    """Whether the model is trained further on the clusters of the data."""

    auto = "auto"
    off = "off"


FeaturesFile = Annotated[str, typer.Argument(metavar="FEATURES", help=FEATURES_HELP)]
LabelsFile = Annotated[Path, typer.Argument(metavar="LABELS", help=LABELS_HELP)]
LabelsOption = Annotated[Path | None, typer.Option("--labels", metavar="FILE", help=LABELS_HELP)]
FeatureDim = Annotated[int | None, typer.Option(min=1, help="Dimension d of a raw .bin file; other formats say it.")]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME",
        help="Array of an .npz or dataset of an .h5. Default: the only one, or one called "
        f"{alternatives(FEATURE_NAMES)}.",
    ),
]
KeyOfTable = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME",
        help="Array of an .npz or dataset of an .h5. Default: the only one, or one called "
        f"{alternatives(FEATURE_NAMES)}; of labels {alternatives(LABEL_NAMES)}.",
    ),
]
Neighbours = Annotated[
    int | None,
    typer.Option(
        "--k", min=2, help="Neighbours of an instance, itself counted; fewer cost accuracy. Default: the model's."
    ),
]
SearchMethod = Annotated[
    Search | None, typer.Option("--knn", help="Search: exact, or approximate. Default: exact, ivf with --recall.")
]
KnnGraph = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A kNN graph that `starfc knn` made of these features.")
]
Recall = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Search approximately, until this share of the true neighbours is found (ivf: 0.99)."
    ),
]
Invalid = Annotated[
    InvalidRows | None,
    typer.Option(help="Rows of NaN, infinity or zeros: refuse them (default), or make each its own cluster."),
]
CopiesOption = Annotated[
    Copies | None,
    typer.Option(
        "--copies", help="Rows of the same direction: cluster one of each (default), or search for all of them."
    ),
]
AdaptOption = Annotated[
    Adapt | None,
    typer.Option("--adapt", help="Train the model further on the clusters found, where that promises more (default)."),
]
ReachOption = Annotated[
    Reach | None,
    typer.Option("--reach", help="Join clusters that samples of a third of the rows hold together (default)."),
]
Memory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Memory that may be held, such as 8GB; a stage above it is refused.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: one for each core.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N. Default: auto.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of everything random. Default: 0.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace files in the output folder that no earlier run of this command wrote."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but warnings, errors and --json.")]


def set_messages(quiet: bool = False) -> None:
    """What goes to stderr: progress and messages, or with ``quiet`` only warnings."""
    logging.getLogger("starfc").setLevel(logging.WARNING if quiet else logging.INFO)


def show(record: dict[str, Any], text: str, *, as_json: bool, quiet: bool = False) -> None:
    """Print a command's result: as JSON, as text, or with ``quiet`` not as text."""
    if as_json:
        print(json.dumps(record, default=str))
    elif not quiet:
        print(text)


def given(**options: Any) -> dict[str, Any]:
    """The config values of those options that were given (not None), enumerations by their value."""
    return {
        name: option.value if isinstance(option, Enum) else option
        for name, option in options.items()
        if option is not None
    }


def search_options(search: Search | None, recall: float | None) -> dict[str, Any]:
    """``--knn`` and ``--recall`` as config values.

    Raises
    ------
    InputError
        A recall for exact search.
    """
    from starfc.errors import InputError

    if search is Search.exact and recall is not None:
        raise InputError("--recall: exact search finds all neighbours; leave it out, or set --knn ivf")
    if search is Search.ivf or recall is not None:
        return {"knn_method": "ivf"} | given(knn_recall=recall)
    return {} if search is None else {"knn_method": "exact"}


@contextmanager
def stored_features(path: str, folder: Path, keep: bool = False) -> Iterator[tuple[Path, Path]]:
    """Where features can be read while the block runs, and what to call them.

    Those of stdin lie in a temporary file in ``folder``; with ``keep`` they are called ``folder/features.npy``, where
    they may be moved to.
    """
    if path != STREAM:
        yield Path(path), Path(path)
        return
    import shutil

    from starfc.storage.atomic import prepare_folder, temporary_file, writes

    place = prepare_folder(folder) / "features.npy"
    with temporary_file(place) as temporary:
        with writes(place, folder), temporary.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, 1 << 22)
        yield temporary, place if keep else Path("stdin")
