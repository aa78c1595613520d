"""The data sets of suite.py. They are read from a manifest, found in a folder of data, or made from seeds.

A manifest is a JSON list of ``{"name", "features", "labels", "kind", "trained"}``. Paths are relative to it, and
``trained`` is true if the packaged model was trained on the set. Without a manifest, :func:`default_sets` lists the
sets in ``../shared/datasets`` (``$STARFC_SHARED`` names another folder) and those that :data:`MADE` makes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starfc.data.dataset import Split, open_split
from starfc.data.files import read_labels
from starfc.data.synthetic import Synthetic, sample
from starfc.errors import InputError, MissingFileError
from starfc.storage.atomic import save_array

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("STARFC_SHARED", ROOT.parent / "shared"))
PART1 = "datasets/glyph/part1_test"

Rows = tuple[NDArray[np.floating], NDArray[np.int64]]


@dataclass(frozen=True)
class Entry:
    """One set of the suite: its name, the files of its features and labels, and what kind of data it is."""

    name: str
    features: Path
    labels: Path
    kind: str
    trained: bool = False

    def open(self) -> Split:
        """Open its features and labels. Rows without a direction are not checked here; the clustering does this."""
        split = open_split(self.features, self.labels, feature_dim=None, name=self.name)
        if split.labels is None:
            raise MissingFileError(f"{self.labels}: no such labels file; the suite needs the identities of {self.name}")
        return split


def read_manifest(path: Path) -> list[Entry]:
    """Read the sets that a manifest lists.

    Raises
    ------
    MissingFileError, InputError
        The manifest does not exist, is no list of sets, or has a name twice.
    """
    if not path.is_file():
        raise MissingFileError(f"--manifest: {path}: no such file")
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"--manifest: {path}: not JSON ({error})") from None
    if not isinstance(listed, list) or not listed:
        raise InputError(f"--manifest: {path}: must be a list of at least one set; found {type(listed).__name__}")
    entries = [_entry(path, number, found) for number, found in enumerate(listed)]
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"--manifest: {path}: names of sets must be unique; found twice: {', '.join(twice)}")
    return entries


def _entry(path: Path, number: int, found: object) -> Entry:
    where = f"--manifest: {path}: set {number}"
    texts = ("name", "features", "labels", "kind")
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) and found[key] for key in texts):
        raise InputError(f"{where}: needs {', '.join(texts)}, each a text; found {json.dumps(found)}")
    if not isinstance(found.get("trained", False), bool):
        raise InputError(f"{where}: trained: must be true or false; found {json.dumps(found['trained'])}")
    if Path(found["name"]).name != found["name"] or found["name"].startswith("."):
        raise InputError(f"{where}: name: must be a folder name without '/'; found {found['name']!r}")
    features, labels = path.parent / found["features"], path.parent / found["labels"]
    return Entry(found["name"], features, labels, found["kind"], found.get("trained", False))


def glyph_six() -> Rows:
    """1,302 identities of part1_test, at most six instances of each."""
    return _cut(lambda number: 6)


def glyph_zipf() -> Rows:
    """1,302 identities of part1_test with sizes that follow Zipf's law: 190, 112, 83, … down to 1."""
    return _cut(lambda number: max(1, int(190 * (number + 1) ** -0.75)))


def glyph_strangers() -> Rows:
    """2,500 identities of part1_test: every fifth with at most 30 instances, all others with only one."""
    return _cut(lambda number: 30 if number % 5 == 0 else 1, identities=2500)


def sample_doubled() -> Rows:
    """Every row of the bundled sample twice."""
    return _repeated(2)


def sample_quadrupled() -> Rows:
    """Every row of the bundled sample four times."""
    return _repeated(4)


def sample_pixels() -> Rows:
    """The pictures of the bundled sample as 400 grey values each, without an embedding."""
    images = np.load(ROOT / "data/glyph/thumbs.npz")["images"]
    return images.reshape(len(images), -1).astype(np.float32), _bundled()[1]


def synthetic_easy() -> Rows:
    """40,000 synthetic instances with little noise."""
    return sample(40_000, Synthetic(noise_weight=0.85), 5)


def synthetic_standard() -> Rows:
    """40,000 synthetic instances as hard as those of MS1M."""
    return sample(40_000, Synthetic(noise_weight=1.0), 5)


def synthetic_hard() -> Rows:
    """40,000 synthetic instances with much noise."""
    return sample(40_000, Synthetic(noise_weight=1.2), 5)


def large_identities() -> Rows:
    """Six well separated identities of 400 instances, far more than a neighbour list holds."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((6, 128))
    features = np.repeat(centres, 400, axis=0) + 0.5 * rng.standard_normal((2400, 128))
    return features.astype(np.float32), np.repeat(np.arange(6), 400)


def singletons() -> Rows:
    """2,000 random directions; each is a separate identity."""
    return np.random.default_rng(1).standard_normal((2000, 128)).astype(np.float32), np.arange(2000)


def one_identity() -> Rows:
    """1,500 instances of a single identity."""
    rng = np.random.default_rng(2)
    features = rng.standard_normal(128) + 0.6 * rng.standard_normal((1500, 128))
    return features.astype(np.float32), np.zeros(1500, np.int64)


def high_dimension() -> Rows:
    """6,000 synthetic instances in 2,048 dimensions, with more noise accordingly."""
    return sample(6000, Synthetic(noise_weight=1.8, mean_size=30), 6, dim=2048)


def digits() -> Rows:
    """scikit-learn's handwritten digits: 1,797 pictures of 8 x 8 raw pixels, ten identities."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.data.astype(np.float32), found.target.astype(np.int64)


def small_100() -> Rows:
    """100 rows of the bundled sample: ten identities of ten instances."""
    return _few(10, 10)


def small_300() -> Rows:
    """300 rows of the bundled sample: twenty identities of fifteen instances."""
    return _few(20, 15)


def _cut(size: Callable[[int], int], identities: int = 1302, seed: int = 7) -> Rows:
    """Return rows of some identities of part1_test, in random order. The n-th identity has at most ``size(n)`` rows."""
    place = SHARED / PART1
    if not place.with_suffix(".npy").is_file():
        raise MissingFileError(f"{place}.npy: no such file; set STARFC_SHARED to the folder that holds datasets/")
    features, rng = np.load(place.with_suffix(".npy"), mmap_mode="r"), np.random.default_rng(seed)
    labels = read_labels(place.with_suffix(".meta"), len(features))
    chosen = rng.permutation(np.unique(labels))[:identities]
    kept = [rng.permutation(np.flatnonzero(labels == one))[: size(number)] for number, one in enumerate(chosen)]
    rows = rng.permutation(np.concatenate(kept))
    return np.array(features[rows]), labels[rows]


def _bundled() -> Rows:
    features = np.load(ROOT / "data/glyph/features/sample.npy")
    return features, read_labels(ROOT / "data/glyph/labels/sample.meta", len(features))


def _repeated(times: int) -> Rows:
    features, labels = _bundled()
    return np.concatenate([features] * times), np.concatenate([labels] * times)


def _few(identities: int, size: int, seed: int = 3) -> Rows:
    (features, labels), rng = _bundled(), np.random.default_rng(seed)
    names, counts = np.unique(labels, return_counts=True)
    chosen = rng.choice(names[counts >= size], identities, replace=False)
    rows = np.concatenate([rng.permutation(np.flatnonzero(labels == one))[:size] for one in chosen])
    return features[rows], labels[rows]


# name of a set: its kind, and its files or the function that makes it
FOUND = {
    "lfw_dlib": ("faces", "faces/lfw_dlib"),
    "celeba_mobileface": ("faces", "faces/celeba_mobileface"),
    "lfw_facenet128_sub": ("faces", "faces/lfw_facenet128_sub"),
    "gait": ("gait", "gait/gait_gei256"),
}
MADE: dict[str, tuple[str, Callable[[], Rows]]] = {
    "digits": ("pixels", digits),
    "glyph_six": ("glyph", glyph_six),
    "glyph_zipf": ("glyph", glyph_zipf),
    "sample": ("glyph", _bundled),
    "synthetic_hard": ("synthetic", synthetic_hard),
    "large_identities": ("synthetic", large_identities),
    "glyph_strangers": ("glyph", glyph_strangers),
    "sample_doubled": ("doubles", sample_doubled),
    "sample_quadrupled": ("doubles", sample_quadrupled),
    "sample_pixels": ("pixels", sample_pixels),
    "synthetic_easy": ("synthetic", synthetic_easy),
    "synthetic_standard": ("synthetic", synthetic_standard),
    "high_dimension": ("synthetic", high_dimension),
    "singletons": ("extreme", singletons),
    "one_identity": ("extreme", one_identity),
    "small_100": ("small", small_100),
    "small_300": ("small", small_300),
}
LARGE = {"glyph": ("glyph", PART1.removeprefix("datasets/"))}  # the whole of part1_test, which runs last
DEFAULT = (*FOUND, *MADE, *LARGE)


def default_sets(folder: Path, names: Iterable[str] = DEFAULT) -> tuple[list[Entry], list[str]]:
    """Return the named sets, in the order of :data:`DEFAULT`, and a message for each set that is not available.

    Sets made from seeds are written to ``folder`` as NAME.npy and NAME.labels.npy, and read from there the next time.
    """
    entries, missing, wanted = [], [], set(names)
    for name in (name for name in DEFAULT if name in wanted):
        if name in MADE:
            kind, make = MADE[name]
            features, labels = folder / f"{name}.npy", folder / f"{name}.labels.npy"
            if not (features.is_file() and labels.is_file()):
                try:
                    rows = make()
                except MissingFileError as error:
                    missing.append(f"{name} is left out: {error}")
                    continue
                save_array(labels, rows[1])
                save_array(features, rows[0])
        else:
            kind, place = (FOUND | LARGE)[name]
            features = SHARED / "datasets" / f"{place}.npy"
            labels = features.with_suffix(".meta")
            if not features.is_file():
                missing.append(f"{name} is skipped: {features} does not exist; set STARFC_SHARED")
                continue
        entries.append(Entry(name, features, labels, kind))
    return entries, missing
