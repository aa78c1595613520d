"""Make synthetic embeddings that are difficult in the same ways as MS1M. Use them to test scale, not accuracy.

    python -m starfc.data.synthetic --nodes 1000000 --out FOLDER [--name synthetic] [--seed 0] [--noise-weight 1.0 ...]

writes ``FOLDER/features/NAME.npy`` (N, d) float16, ``FOLDER/labels/NAME.npy`` (N,) int64, and ``FOLDER/NAME.json`` with
the parameters.

The data have the difficulties of faces: look-alikes (identities share family directions), separate modes of one
identity (age, pose), and poor photos. Poor photos of all identities drift towards a few shared "bad photo" directions,
and thus connect different identities. An instance of quality q in [0, 1], with weights named as in :class:`Synthetic`,
is

    x = normalise((centre + (1 - centre)·q)·c + mode·w·m + noise·(1 - relief·q)·n + bad·max(0, below - q)·b)

where c = normalise(family·u·f + o) is the centre of the identity, f the direction of its family, o its own direction, m
one of its modes, n the direction of the instance, b a "bad photo" direction, and u, w are uniform in [0, 1]. All
directions are unit vectors of independent numbers with a bell-shaped distribution; axis m = 1..d has the standard
deviation m^-spectrum.

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
from collections import namedtuple
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri

from starfc.data.synthetic_kernels import SIZE, make_rows, uniforms
from starfc.errors import InputError
from starfc.runtime.progress import progress
from starfc.runtime.stages import megabytes
from starfc.storage.atomic import prepare_folder, write_json
from starfc.storage.scratch import create_npy

log = logging.getLogger("starfc")

BLOCK_ROWS = 1 << 16  # rows per block: 64 MiB of float32 for 256 dimensions
_QUANTILES = 4097
_LEAST = {"mean_size": 1, "min_size": 1, "family_size": 1, "modes": 1, "bad_directions": 1}


@dataclass(frozen=True)
class Synthetic:
    """Parameters of the data. Weights are lengths of vectors before normalisation.

    With the defaults, methods without training score as published for MS1M. With 54,000 nodes and seed 0 single link
    has pairwise F 68.9 (precision 90.6, recall 55.7; published 70.6), and Infomap 94.4 (published 94.0);
    ``benchmarks/synthetic_baselines.py``.
    """

    mean_size: float = 68.0  #: mean number of instances per identity, before clipping
    size_sigma: float = 0.55  #: sizes are log-normal; standard deviation of their logarithm
    min_size: int = 2  #: sizes are clipped to [min_size, max_size]; the last identity gets the remaining instances
    max_size: int = 400
    family_size: int = 20  #: mean number of identities per family of look-alikes
    family_weight: float = 1.1  #: the weight of the family in a centre is uniform from 0 to this
    modes: int = 4  #: modes per identity (age, pose)
    mode_weight: float = 0.85  #: the weight of the mode in an instance is uniform from 0 to this
    centre_weight: float = 0.35  #: weight of the centre at quality 0; it is 1 at quality 1
    noise_weight: float = 1.0  #: weight of the instance's own direction at quality 0
    noise_relief: float = 0.65  #: share of this weight that quality 1 removes
    quality_a: float = 2.2  #: quality is Beta(quality_a, quality_b)
    quality_b: float = 1.6
    poor_share: float = 0.2  #: share of instances whose quality is multiplied by poor_factor
    poor_factor: float = 0.25
    bad_directions: int = 12  #: shared "bad photo" directions
    bad_weight: float = 1.1  #: weight of such a direction per unit of quality below bad_below
    bad_below: float = 0.45
    spectrum: float = 0.35  #: standard deviation of axis m is m^-spectrum

    def __post_init__(self) -> None:
        wrong = [
            f"{name} must be >= {least}; found {getattr(self, name)}"
            for name, least in _LEAST.items()
            if not getattr(self, name) >= least
        ]
        wrong += [
            f"{name} must be > 0; found {getattr(self, name)}"
            for name in ("quality_a", "quality_b", "noise_weight")
            if not getattr(self, name) > 0
        ]
        wrong += [
            f"{name} must be between 0 and 1; found {getattr(self, name)}"
            for name in ("centre_weight", "noise_relief", "poor_share", "poor_factor", "bad_below")
            if not 0 <= getattr(self, name) <= 1
        ]
        if self.max_size < self.min_size:
            wrong.append(f"max_size must be >= min_size; found {self.max_size} < {self.min_size}")
        if wrong:
            raise InputError("synthetic data: " + "; ".join(wrong))


_Weights = namedtuple(
    "_Weights",
    "family_weight modes mode_weight centre_weight noise_weight noise_relief poor_share poor_factor bad_directions "
    "bad_weight bad_below",
)


@dataclass(frozen=True)
class Population:
    """A set of N instances, from which any rows can be generated. It needs memory only for C identities and d axes.

    Parameters
    ----------
    num_nodes : int
        Number of instances N >= 1.
    parameters : Synthetic
        Parameters of the data.
    seed : int
        0 <= seed < 2^63.
    dim : int
        Dimension d >= 2.
    """

    num_nodes: int
    parameters: Synthetic = field(default_factory=Synthetic)
    seed: int = 0
    dim: int = 256

    def __post_init__(self) -> None:
        for name, least, below in (("num_nodes", 1, 2**62), ("seed", 0, 2**63), ("dim", 2, 2**31)):
            if not least <= getattr(self, name) < below:
                raise InputError(f"synthetic data: {name} must be >= {least}, < {below}; found {getattr(self, name)}")

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Return the cumulative sizes of the identities, (C,) int64; the last is N."""
        p, sizes = self.parameters, np.empty(0, np.int64)
        while sizes.sum() < self.num_nodes:
            more = 64 + int((self.num_nodes - sizes.sum()) / p.mean_size)
            normal = ndtri(np.maximum(uniforms(self.seed, SIZE, len(sizes), len(sizes) + more), 2.0**-53))
            drawn = p.mean_size * np.exp(p.size_sigma * normal - p.size_sigma**2 / 2)
            sizes = np.concatenate([sizes, np.clip(np.rint(drawn), p.min_size, p.max_size).astype(np.int64)])
        ends = np.cumsum(sizes)
        return np.minimum(ends[: 1 + np.searchsorted(ends, self.num_nodes)], self.num_nodes)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Return the number of instances of every identity, (C,) int64."""
        return np.diff(self.ends, prepend=0)

    def rows(self, start: int, stop: int) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
        """Generate the rows ``start .. stop``: features (n, d) float16 and labels (n,) int64, identities 0..C-1.

        Features have unit length up to rounding. Each row is generated independently.
        """
        p = self.parameters
        features, labels = np.empty((stop - start, self.dim), np.float32), np.empty(stop - start, np.int64)
        make_rows(
            start,
            features,
            labels,
            self.ends,
            max(1, round(len(self.ends) / p.family_size)),
            (np.arange(1, self.dim + 1) ** -p.spectrum).astype(np.float32),
            betaincinv(p.quality_a, p.quality_b, np.linspace(0, 1, _QUANTILES)),
            self.seed,
            _Weights(*(getattr(p, name) for name in _Weights._fields)),
        )
        return features.astype(np.float16), labels

    def record(self) -> dict[str, object]:
        """Return the parameters of the data, for the .json file."""
        return {
            "kind": "synthetic",
            "format": 1,
            "num_nodes": self.num_nodes,
            "dim": self.dim,
            "seed": self.seed,
            "parameters": asdict(self.parameters),
        }


def sample(
    num_nodes: int, parameters: Synthetic | None = None, seed: int = 0, dim: int = 256
) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Generate all rows in memory, equal to those that :func:`generate` writes: (N, d) float16 and (N,) int64."""
    return Population(num_nodes, parameters or Synthetic(), seed, dim).rows(0, num_nodes)


def generate(
    folder: str | Path,
    num_nodes: int,
    parameters: Synthetic | None = None,
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
        A parameter is out of its range, the folder cannot be written to, or the disk has too little space.
    """
    population = Population(num_nodes, parameters or Synthetic(), seed, dim)
    if not name or Path(name).name != name:
        raise InputError(f"synthetic data: name must be a file name without folders; found {name!r}")
    paths = [prepare_folder(Path(folder) / kind) / f"{name}.npy" for kind in ("features", "labels")]
    parts = [path.with_name(f".{path.stem}.part.npy") for path in paths]
    record, record_path = population.record(), Path(folder) / f"{name}.json"
    done = _rows_done(record_path, record)
    if done == num_nodes and all(path.is_file() for path in paths) and not any(part.is_file() for part in parts):
        return paths[0], paths[1]
    if not all(part.is_file() for part in parts):
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


def _rows_done(record_path: Path, record: dict[str, object]) -> int:
    """Return the number of rows that an earlier call for the same data has written; 0 if there was none."""
    try:
        found = json.loads(record_path.read_text(encoding="utf-8"))
        done = found.pop("rows_done")
    except (OSError, ValueError, KeyError, AttributeError):
        return 0
    return done if found == record else 0


def _write_rows(path: Path, rows: NDArray, start: int) -> None:
    """Write rows into an existing .npy file, and flush them to the disk."""
    array = np.load(path, mmap_mode="r")
    with path.open("rb+") as file:
        file.seek(array.offset + start * array.strides[0])
        file.write(rows.data)
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    from starfc.runtime.machine import set_threads  # imports torch, which the rest of this module does not need

    parser = argparse.ArgumentParser(
        description="Make synthetic embeddings that are difficult in the same ways as MS1M."
    )
    parser.add_argument("--nodes", type=int, required=True, metavar="N", help="instances")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for features/ and labels/")
    parser.add_argument("--name", default="synthetic", help="name of both files, without .npy (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="default: one per core")
    group = parser.add_argument_group("parameters of the data (see the class Synthetic)")
    for known in fields(Synthetic):
        kind = type(known.default)
        group.add_argument("--" + known.name.replace("_", "-"), type=kind, default=known.default, metavar="X")
    arguments = parser.parse_args()
    if arguments.threads is not None and arguments.threads < 1:
        raise InputError(f"--threads: must be at least 1; found {arguments.threads}")
    set_threads(arguments.threads)
    parameters = Synthetic(**{known.name: getattr(arguments, known.name) for known in fields(Synthetic)})
    paths = generate(
        arguments.out, arguments.nodes, parameters, seed=arguments.seed, dim=arguments.dim, name=arguments.name
    )
    print(*paths, sep="\n")


if __name__ == "__main__":
    from starfc.runtime.entry import run_command

    raise SystemExit(run_command(main))
