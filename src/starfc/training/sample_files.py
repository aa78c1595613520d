"""The samples of kinds in files, so that a stopped training continues from them.

========================  ==========================================================================================
``NAME-00010-00020.npz``  training edges of the kinds 10 to 19; NAME is ``early`` (first round) or ``both``
``done-NAME.json``        digest of each of these files, and of the scorer that they were made with
========================  ==========================================================================================
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starfc.errors import InputError, MissingFileError
from starfc.models.contextual import COLUMNS_FIRST, COLUMNS_SECOND, CONTEXT_FIRST, CONTEXT_SECOND
from starfc.storage.atomic import save_arrays, write_json
from starfc.storage.opened import opened
from starfc.storage.records import SamplesRecord
from starfc.storage.safe import digest, first_line, read_own_npz
from starfc.training.kinds import FAMILIES

log = logging.getLogger("starfc")

_FAMILY_NAMES = tuple(FAMILIES)  # a file stores a family as its position in this tuple
_WIDTHS = {"first": (COLUMNS_FIRST, CONTEXT_FIRST), "second": (COLUMNS_SECOND, CONTEXT_SECOND)}

Edges = tuple[NDArray[np.float16], NDArray[np.bool_], NDArray[np.float32]]  # columns, targets, context
Sample = tuple[NDArray[np.float16], NDArray[np.bool_], NDArray[np.float32], str]  # the same, and the family


class SampleFiles:
    """Which files of the samples of one name are finished.

    Parameters
    ----------
    folder : path
        The folder.
    name : {'early', 'both'}
        Name of the samples.
    before : str
        Digest of the scorer that the samples are made with; empty for none.
    """

    def __init__(self, folder: Path, name: str, before: str = "") -> None:
        self.folder, self.name, self.before = folder, name, before

    def path(self, kinds: range) -> Path:
        """Return the path of the file with the samples of some kinds."""
        return self.folder / f"{self.name}-{kinds.start:05d}-{kinds.stop:05d}.npz"

    def has(self, kinds: range) -> bool:
        """Return whether the file is finished, and equal to what was written."""
        path = self.path(kinds)
        known = self._digests.get(path.name)
        if known is None or (path.is_file() and digest(path) == known):
            return known is not None
        log.warning("%s: is missing or damaged; its samples are made again", path)
        return False

    def note(self, kinds: range, written: str) -> None:
        """Note that the file is finished. ``written`` is its digest, which :func:`write_samples` returned."""
        self._digests[self.path(kinds).name] = written
        write_json(self._record, SamplesRecord(before=self.before, files=self._digests).model_dump())

    @property
    def _record(self) -> Path:
        return self.folder / f"done-{self.name}.json"

    @cached_property
    def _digests(self) -> dict[str, str]:
        """Return the digests of the finished files that were made with the same scorer, by name."""
        try:
            record = opened(self.folder).json(self._record.name, SamplesRecord)
        except MissingFileError:
            return {}
        except InputError as error:
            log.warning("%s; all of these samples are made again", error)
            return {}
        if record.before == self.before:
            return dict(record.files)
        log.warning("%s: its samples are of another early scorer, and are made again", self._record)
        return {}


def write_samples(path: Path, samples: Mapping[int, tuple[str, Mapping[str, Edges]]]) -> str:
    """Write a file, and return its digest. ``samples`` has the family of each kind, and its edges by round."""
    content: dict[str, NDArray] = {}
    for number, (family, rounds) in samples.items():
        for of_round, edges in rounds.items():
            arrays: tuple[NDArray, ...] = (*edges, np.array(_FAMILY_NAMES.index(family)))
            content |= {f"{number}.{of_round}.{part}": one for part, one in zip("xycf", arrays, strict=True)}
    save_arrays(path, content)
    return digest(path)


def read_samples(path: Path) -> Iterator[tuple[str, Sample]]:
    """Yield the round of each sample of a file, and the sample. Raise InputError if the file is damaged."""
    try:
        content = read_own_npz(path)
        for name in dict.fromkeys(key.rpartition(".")[0] for key in content):
            of_round = name.partition(".")[2]
            x, y, c, f = (content[f"{name}.{part}"] for part in "xycf")
            columns, context = _WIDTHS[of_round]
            if x.shape != (len(y), columns) or y.ndim != 1 or c.shape != (context,):
                raise ValueError(f"{name}: columns {x.shape}, targets {y.shape}, context {c.shape}")
            yield of_round, (x, y, c, _FAMILY_NAMES[int(f)])
    except (ValueError, KeyError, IndexError) as error:
        remedy = "delete it and start the same training again"
        raise InputError(f"{path}: is incomplete or damaged ({first_line(error)}); {remedy}") from None
