"""Arguments and options that several commands share, and their first and last steps: log level, input, output."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starfc.data.names import FEATURE_NAMES, LABEL_NAMES, alternatives

if TYPE_CHECKING:
    from starfc.runs.on_shards import ShardOptions

STREAM = "-"  # in place of a file name: .npy from stdin, or .npy to stdout

FEATURES_HELP = (
    "Features: .npy, .npz, .bin (with --feature-dim), .parquet, .h5, .hdf5 or .fvecs; a folder of .npy or .parquet "
    "parts; a URL (s3://...) of either; - reads .npy from stdin."
)
LABELS_HELP = (
    "Labels: .meta, .txt, .npy, .csv, .parquet, or an .npz with labels. -1 means that the identity is unknown."
)


class SearchName(str, Enum):
    """Methods of the neighbour search."""

    exact = "exact"
    torch = "torch"
    ivf = "ivf"


class PartitionName(str, Enum):
    """Methods that turn edges into clusters."""

    components = "components"
    infomap = "infomap"
    leiden = "leiden"


class RefinementName(str, Enum):
    """Methods that set the threshold of node intimacy."""

    fixed = "fixed"
    dynamic = "dynamic"


class InvalidRows(str, Enum):
    """Treatment of rows that hold NaN or infinity, or only zeros."""

    error = "error"
    singleton = "singleton"


class EngineName(str, Enum):
    """Places where tasks run."""

    local = "local"
    ray = "ray"
    wait = "wait"


class Copies(str, Enum):
    """Treatment of rows that have the same direction as an earlier row."""

    collapse = "collapse"
    keep = "keep"


class Reach(str, Enum):
    """Whether to search a sample of the rows for parts of clusters that are larger than the neighbour lists."""

    auto = "auto"
    off = "off"


class Adapt(str, Enum):
    """Whether to train the model further on the clusters found in the data."""

    auto = "auto"
    off = "off"


FeaturesFile = Annotated[str, typer.Argument(metavar="FEATURES", help=FEATURES_HELP)]
LabelsFile = Annotated[Path, typer.Argument(metavar="LABELS", help=LABELS_HELP)]
LabelsOption = Annotated[Path | None, typer.Option("--labels", metavar="FILE", help=LABELS_HELP)]
FeatureDim = Annotated[int | None, typer.Option(min=1, help="Dimension of a raw .bin file. Other formats store it.")]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME",
        help="Array in an .npz or dataset in an .h5. Default: the only one, or the one called "
        f"{alternatives(FEATURE_NAMES)}.",
    ),
]
KeyOfTable = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME",
        help="Array in an .npz or dataset in an .h5. Default: the only one, or the one called "
        f"{alternatives(FEATURE_NAMES)}; for labels: {alternatives(LABEL_NAMES)}.",
    ),
]
Neighbours = Annotated[
    int | None,
    typer.Option(
        "--k",
        min=2,
        help="Neighbours per instance, the instance itself included. Fewer lower the accuracy. Default: the model's.",
    ),
]
SearchMethod = Annotated[
    SearchName | None,
    typer.Option(
        "--knn",
        help="Neighbour search: exact (on a GPU in torch), torch (the same on any device), or approximate (ivf). "
        "Default: exact; ivf with --recall.",
    ),
]
KnnGraph = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A kNN graph of these features, made by `starfc knn`.")
]
Recall = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Search approximately and find this share of the edges that matter (p > 0.5). Default of ivf: 0.98.",
    ),
]
Invalid = Annotated[
    InvalidRows | None,
    typer.Option(
        help="Rows with NaN, infinity or only zeros: stop with an error (default), or give each its own cluster."
    ),
]
CopiesOption = Annotated[
    Copies | None,
    typer.Option(
        "--copies",
        help="Rows with the same direction: cluster one and copy its label (default), or keep all of them.",
    ),
]
AdaptOption = Annotated[
    Adapt | None,
    typer.Option(
        "--adapt", help="Train the model further on the clusters found, if the expected F rises (default: auto)."
    ),
]
ReachOption = Annotated[
    Reach | None,
    typer.Option("--reach", help="Join and divide clusters as samples of the rows do (default: auto)."),
]
EngineOption = Annotated[
    EngineName | None,
    typer.Option(
        help="Search, score and find communities as tasks on shards: in processes of this machine (local), on a Ray "
        "cluster (ray), or wait for tasks that `starfc task` runs elsewhere (wait). Default: all in this process."
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="With --engine: tasks at the same time on this machine. Default: --threads.")
]
Address = Annotated[
    str | None,
    typer.Option(help="With --engine ray: address of the cluster, auto or HOST:PORT. Default: start one here."),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="With --engine: folder or URL (s3://...) for the arrays of the tasks, seen by all machines. It is kept. "
        "Default: DIR.shards beside the results, removed at the end.",
    ),
]
ShardRows = Annotated[
    int | None, typer.Option(min=128, help="With --engine: rows of each shard, a multiple of 128. Default: 65,536.")
]
Memory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory limit, such as 8GB. A stage that needs more stops with an error."),
]
DeviceMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Memory limit on the device, such as 8GB; blocks are sized by it. Default: what is free."
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: one per core.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N. Default: auto.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of all random numbers. Default: 0.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace output files even if this command did not write them."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
Images = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Pictures: a list of files (one path per line), a table with paths, a folder of files that are in the "
        "order of the rows or named after them, or a uint8 array (N, H, W[, 3]) in an .npy or .npz.",
    ),
]
Thumbnails = Annotated[int, typer.Option(min=64, max=256, help="Pixels of a thumbnail's longer side.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings, errors and the output of --json.")]
QuietText = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors.")]  # without --json
QuietBesideResult = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result, warnings and errors.")]

Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print details too: every stage, also short ones, and its memory.")
]


def set_messages(quiet: bool = False, verbose: bool = False) -> None:
    """Set what goes to stderr: progress and messages, only warnings if ``quiet``, or details too if ``verbose``.

    Raises
    ------
    InputError
        Both are set.
    """
    from starfc.errors import InputError

    if quiet and verbose:
        raise InputError("--verbose: not allowed with --quiet; leave out one of the two")
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    logging.getLogger("starfc").setLevel(level)


def show(record: dict[str, Any], text: str, *, as_json: bool, quiet: bool = False) -> None:
    """Print a command's result: ``record`` as JSON if ``as_json``, otherwise ``text`` unless ``quiet``."""
    if as_json:
        print(json.dumps(record, default=str))
    elif not quiet:
        print(text)


def given(**options: Any) -> dict[str, Any]:
    """Return the config values of the options that were given (not None). Enumerations become their values."""
    return {
        name: option.value if isinstance(option, Enum) else option
        for name, option in options.items()
        if option is not None
    }


def search_options(search: SearchName | None, recall: float | None) -> dict[str, Any]:
    """Return ``--knn`` and ``--recall`` as config values.

    Raises
    ------
    InputError
        A recall was given for the exact search.
    """
    from starfc.errors import InputError

    if search not in (None, SearchName.ivf) and recall is not None:
        raise InputError("--recall: exact search finds all neighbours; leave it out, or set --knn ivf")
    if search is SearchName.ivf or recall is not None:
        return {"knn_method": "ivf"} | given(knn_recall=recall)
    return {} if search is None else {"knn_method": search.value}


def shard_options(out: str, **options: Any) -> ShardOptions | None:
    """Return how a command with results in ``out`` runs on shards, None if no option says so.

    ``options`` are engine, workers, address, store and shard_rows.

    Raises
    ------
    InputError
        There is no engine, but another option; or the options do not fit each other.
    """
    from starfc.errors import InputError

    values = given(**options)
    if not values:
        return None
    if "engine" not in values:
        raise InputError(f"--{next(iter(values)).replace('_', '-')}: needs --engine")
    from starfc.runs.on_shards import ShardOptions

    return ShardOptions(out=out, **values)


@contextmanager
def stored_features(path: str, folder: Path, keep: bool = False) -> Iterator[tuple[Path, Path]]:
    """Yield the path where features can be read while the block runs, and the name that messages use for them.

    For a file both are ``path``. Features from stdin, a URL or a folder are copied to a temporary file in ``folder``
    and called "stdin", or as the last part of ``path``. With ``keep`` they are called ``folder/features.npy`` instead:
    the caller moves the file there.
    """
    from starfc.data.parts import gather, is_gathered
    from starfc.errors import InputError

    if path != STREAM and not is_gathered(path):
        yield Path(path), Path(path)
        return
    import shutil

    from starfc.storage.atomic import no_empty_folder, prepare_folder, temporary_file, writes
    from starfc.storage.remote import is_same

    place = folder / "features.npy"
    if path != STREAM and any(is_same(path, str(name)) for name in (folder, place)):
        raise InputError(f"{path}: the results would become parts of the features; name another folder for the results")
    name = Path("stdin" if path == STREAM else path.rstrip("/").rpartition("/")[2])
    with no_empty_folder(folder):
        prepare_folder(folder)
        with temporary_file(place) as temporary:
            with writes(place, folder):
                if path == STREAM:
                    with temporary.open("wb") as file:
                        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 22)
                else:
                    gather(path, temporary)
            yield temporary, place if keep else name
