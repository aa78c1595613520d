"""Make synthetic embeddings with identities, of any number, to test scale and methods where no real ones can be used.

    python -m starfc.data.synthetic --nodes 1000000 --out FOLDER [--kind strong] [--sizes ms1m] [--seed 0] [...]

writes ``FOLDER/features/NAME.npy`` (N, d) float16, ``FOLDER/labels/NAME.npy`` (N,) int64, and ``FOLDER/NAME.json`` with
the parameters. There are two models, in four kinds:

======= ================================================================================================================
diffuse independent directions, added up (:class:`starfc.data.synthetic_diffuse.Synthetic`). As hard as MS1M for methods
        without training, but neighbours spread over far more dimensions than those of real embeddings do.
glyph   points near a curved surface of few dimensions (:class:`starfc.data.synthetic_manifold.Manifold`), with the
        geometry of embeddings of glyphs: clear identities in dense neighbourhoods
strong  the same model, with the geometry of faces in a strong network (dlib)
weak    the same model, with the geometry of faces in a weak network (for mobile devices)
======= ================================================================================================================

Profiles of the sizes of identities, for every kind (:data:`starfc.data.synthetic_sizes.PROFILES`): ``ms1m`` (mean 68),
``webface`` (WebFace42M: mean 21, from 3 to more than 300), ``library`` (a photo library: Zipf, half are single photos).
``docs/synthetic.md`` compares the figures of the kinds with those of real embeddings.

Every row is a function of its number and the seed (:mod:`starfc.data.synthetic_kernels`). Rows are generated in the
shuffled order of the file. For this reason the file is written from front to back with constant memory, and each part
of it can be generated independently.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starfc.data.synthetic_diffuse import Synthetic
from starfc.data.synthetic_manifold import PRESETS, Manifold
from starfc.data.synthetic_sizes import PROFILES, Sizes
from starfc.errors import InputError
from starfc.runtime.progress import progress
from starfc.runtime.stages import megabytes
from starfc.storage.atomic import prepare_folder, write_json
from starfc.storage.scratch import create_npy

log = logging.getLogger("starfc")

BLOCK_ROWS = 1 << 16  # rows per block: 64 MiB of float32 for 256 dimensions

#: The kinds of data by name, for ``--kind``.
KINDS: dict[str, Synthetic | Manifold] = {"diffuse": Synthetic(), **PRESETS}


@dataclass(frozen=True)
class Population:
    """A set of N instances, from which any rows can be generated. It needs memory only for C identities and d axes.

    Parameters
    ----------
    num_nodes : int
        Number of instances N >= 1.
    parameters : Synthetic or Manifold
        Parameters of the data, for example ``KINDS["strong"]``.
    seed : int
        0 <= seed < 2^63.
    dim : int
        Dimension d >= 2.
    """

    num_nodes: int
    parameters: Synthetic | Manifold = field(default_factory=Synthetic)
    seed: int = 0
    dim: int = 256

    def __post_init__(self) -> None:
        for name, least, below in (("num_nodes", 1, 2**62), ("seed", 0, 2**63), ("dim", 2, 2**31)):
            if not least <= getattr(self, name) < below:
                raise InputError(f"synthetic data: {name} must be >= {least}, < {below}; found {getattr(self, name)}")

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Return the cumulative sizes of the identities, (C,) int64; the last is N."""
        return self.parameters.ends(self.num_nodes, self.seed)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Return the number of instances of every identity, (C,) int64."""
        return np.diff(self.ends, prepend=0)

    def rows(self, start: int, stop: int) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
        """Generate the rows ``start .. stop``: features (n, d) float16 and labels (n,) int64, identities 0..C-1.

        Features have unit length up to rounding. Each row is generated independently.
        """
        features, labels = np.empty((stop - start, self.dim), np.float32), np.empty(stop - start, np.int64)
        self.parameters.fill(start, features, labels, self.ends, self.seed)
        return features.astype(np.float16), labels

    def record(self) -> dict[str, object]:
        """Return the parameters of the data, for the .json file."""
        return {
            "kind": "synthetic",
            "format": 2,
            "model": "manifold" if isinstance(self.parameters, Manifold) else "diffuse",
            "num_nodes": self.num_nodes,
            "dim": self.dim,
            "seed": self.seed,
            "parameters": asdict(self.parameters),
        }


def sample(
    num_nodes: int, parameters: Synthetic | Manifold | None = None, seed: int = 0, dim: int = 256
) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Generate all rows in memory, equal to those that :func:`generate` writes: (N, d) float16 and (N,) int64."""
    return Population(num_nodes, parameters or Synthetic(), seed, dim).rows(0, num_nodes)


def generate(
    folder: str | Path,
    num_nodes: int,
    parameters: Synthetic | Manifold | None = None,
    seed: int = 0,
    dim: int = 256,
    name: str = "synthetic",
) -> tuple[Path, Path]:
    """Write ``folder/features/name.npy`` and ``folder/labels/name.npy``, and return their paths.

    The files are written in blocks under temporary names, and ``folder/name.json`` counts the rows that are on the
    disk. After a kill, the same call continues from these rows, and the files become equal to those of an uninterrupted
    run. If the same call has already finished the files, they are not changed.

    Raises
    ------
    InputError
        A parameter is out of its range, the folder cannot be written to or holds other data of this name, or the disk
        has too little space.
    """
    population = Population(num_nodes, parameters or Synthetic(), seed, dim)
    if not name or Path(name).name != name:
        raise InputError(f"synthetic data: name must be a file name without folders; found {name!r}")
    paths = [prepare_folder(Path(folder) / kind) / f"{name}.npy" for kind in ("features", "labels")]
    parts = [path.with_name(f".{path.stem}.part.npy") for path in paths]
    record, record_path = population.record(), Path(folder) / f"{name}.json"
    done = _rows_done(record_path, record)
    there = [path for path in paths if path.exists()]
    if done is None and there:
        raise InputError(
            f"{there[0]}: exists, and {record_path.name} does not say that it holds these data; remove it, or choose "
            "another name or folder"
        )
    if done == num_nodes and all(path.is_file() for path in paths) and not any(part.is_file() for part in parts):
        return paths[0], paths[1]
    if done is None or not all(part.is_file() for part in parts):
        done = 0
    _check_room(Path(folder), (num_nodes - done) * (2 * dim + 8))
    if done == 0:
        write_json(record_path, record | {"rows_done": done})
        for part, shape, dtype in zip(parts, ((num_nodes, dim), (num_nodes,)), (np.float16, np.int64), strict=True):
            create_npy(part, shape, dtype)
    with progress("synthetic data", total=num_nodes, unit="row") as bar:
        bar.update(done)
        for start in range(done, num_nodes, BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, num_nodes)
            blocks: tuple[NDArray, ...] = population.rows(start, stop)
            for part, block in zip(parts, blocks, strict=True):
                _write_rows(part, block, start)
            write_json(record_path, record | {"rows_done": stop})
            bar.update(stop - start)
    for part, path in zip(parts, paths, strict=True):
        os.replace(part, path)
    return paths[0], paths[1]


def _check_room(folder: Path, needs: int) -> None:
    free = shutil.disk_usage(folder).free
    log.info("synthetic data: %s to write", megabytes(needs))
    if needs > free:
        raise InputError(
            f"{folder}: needs {megabytes(needs)}, but its disk has {megabytes(free)} free; name another folder, or use "
            "fewer nodes"
        )


def _rows_done(record_path: Path, record: dict[str, object]) -> int | None:
    """Return the number of rows that an earlier call for the same data has written; None if there was none."""
    try:
        found = json.loads(record_path.read_text(encoding="utf-8"))
        done = found.pop("rows_done")
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return done if found == record else None


def _write_rows(path: Path, rows: NDArray, start: int) -> None:
    """Write rows into an existing .npy file, and flush them to the disk."""
    array = np.load(path, mmap_mode="r")
    with path.open("rb+") as file:
        file.seek(array.offset + start * array.strides[0])
        file.write(rows.data)
        file.flush()
        os.fsync(file.fileno())


_KIND_HELP = """what the data are like (default: %(default)s)
diffuse: as hard as MS1M, but neighbours spread over many more dimensions than real ones
glyph:   like embeddings of glyphs: clear identities in dense neighbourhoods
strong:  like faces in a strong network (dlib)
weak:    like faces in a weak network (for mobile devices)"""
_SIZES_HELP = """sizes of the identities (default: %(default)s)
ms1m:    MS1M: mean 68, 2 to 400
webface: WebFace42M: mean 21, 3 to more than 300
library: a photo library: Zipf's law, half of the identities have one photo"""


def _names(model: type[Sizes]) -> list[str]:
    return [known.name for known in fields(model)]


def _add_parameters(parser: argparse.ArgumentParser) -> None:
    """Add an option for every parameter of both models; those that both have are in one group."""
    both = [name for name in _names(Manifold) if name in _names(Synthetic)]
    groups = {
        "parameters of all kinds, instead of the values of --sizes and --kind": (Manifold, both),
        "parameters of --kind diffuse (see the class Synthetic)": (Synthetic, _names(Synthetic)),
        f"parameters of --kind {', '.join(PRESETS)} (see the class Manifold)": (Manifold, _names(Manifold)),
    }
    for title, (model, names) in groups.items():
        group = parser.add_argument_group(title)
        for known in fields(model):
            if known.name in names and (names is both or known.name not in both):
                group.add_argument("--" + known.name.replace("_", "-"), type=type(known.default), metavar="X")


def _parameters(arguments: argparse.Namespace) -> Synthetic | Manifold:
    """Return the parameters of the kind and the profile of sizes, with those that options name."""
    kind, names = KINDS[arguments.kind], {*_names(Synthetic), *_names(Manifold)}
    given = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    for name in given:
        if name not in _names(type(kind)):
            kinds = ", ".join(other for other, its in KINDS.items() if name in _names(type(its)))
            raise InputError(
                f"--{name.replace('_', '-')}: is no parameter of --kind {arguments.kind}; leave it out, or choose "
                f"--kind from {kinds}"
            )
    return replace(kind, **{**PROFILES[arguments.sizes], **given})


def main() -> None:
    from starfc.runtime.machine import set_threads  # imports torch, which the rest of this module does not need

    parser = argparse.ArgumentParser(
        description="Make synthetic embeddings with identities. docs/synthetic.md compares them with real ones.",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--nodes", type=int, required=True, metavar="N", help="instances")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for features/ and labels/")
    parser.add_argument("--name", default="synthetic", help="name of both files, without .npy (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="default: one per core")
    parser.add_argument("--kind", choices=KINDS, default="diffuse", help=_KIND_HELP)
    parser.add_argument("--sizes", choices=PROFILES, default="ms1m", help=_SIZES_HELP)
    _add_parameters(parser)
    arguments = parser.parse_args()
    if arguments.threads is not None and arguments.threads < 1:
        raise InputError(f"--threads: must be at least 1; found {arguments.threads}")
    set_threads(arguments.threads)
    parameters = _parameters(arguments)
    paths = generate(
        arguments.out, arguments.nodes, parameters, seed=arguments.seed, dim=arguments.dim, name=arguments.name
    )
    print(*paths, sep="\n")


if __name__ == "__main__":
    from starfc.runtime.entry import run_command

    raise SystemExit(run_command(main))
