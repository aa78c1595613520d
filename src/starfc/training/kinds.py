"""Kinds of data: many different small labelled data sets, to train a model that works with any embedding.

A kind is determined by a seed and its number. Kinds differ in these properties: the number of rows and dimensions; the
sizes of identities (log-normal, Zipf, equal, geometric; all small; many singletons; a few giants); their similarity;
the variation within an identity (random, in modes of the identity or of all identities, along tracks as in videos);
poor photos; the shape of the space (a narrow cone, stretched axes); near copies; wrong labels. There are six families:

============ ======================================================================================================
``latent``   identities and the variation within them are points of low dimension. Random networks map them to the
             embedding, so the intrinsic dimension is far lower than that of the embedding.
``axes``     vectors of the class ``Synthetic`` (:mod:`starfc.data.synthetic`) with random parameters
``manifold`` points near a curved surface (:mod:`starfc.data.synthetic_manifold`) with random parameters
``real``     given labelled features: some identities, cut to other sizes, projected, squashed, with noise
``network``  output of a small network for ``latent`` or ``real`` data. As real embedding networks it was trained, with
             softmax or margin and for a short or long time, on *other* identities.
``drawn``    pictures of figures (:mod:`starfc.training.drawn`): their pixels, the principal directions of these, or
             the output of a random or a trained small network
============ ======================================================================================================

No family uses the data that a model is evaluated on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from starfc.data.dataset import Features
from starfc.data.synthetic import Population, Synthetic
from starfc.data.synthetic_manifold import Manifold
from starfc.evaluation.metrics import labelled
from starfc.training.drawn import draw_pictures
from starfc.training.networks import embedded, log_uniform, random_network

Rng = np.random.Generator
Rows = NDArray[np.float32]
Ids = NDArray[np.int64]

FAMILIES = {"latent": 0.25, "axes": 0.1, "manifold": 0.08, "real": 0.24, "network": 0.26, "drawn": 0.07}  # shares
_TINY, _SMALL, _LARGE, _HUGE = (40, 800), (800, 7_000), (7_000, 20_000), (20_000, 60_000)  # rows, log-uniform
_TINY_SHARE, _LARGE_SHARE = 0.28, 0.05
_SPARSE_SHARE = 0.2  # share of the kinds in which no identity has more than ten rows
_UNEVEN = 240  # in kinds of fewer rows, one identity may have most of the rows
_LEAST_ROWS = 30  # kinds with fewer rows are not used
_HUGE_EVERY = 60  # one of so many kinds is huge
_DIMENSIONS = (12, 24, 32, 64, 96, 128, 128, 192, 256, 256, 384, 512)
_LEAST_ACCURACY = 0.5  # accuracy of the nearest neighbour below which a kind is hopeless
_HOPELESS_KEPT = 0.15  # share of the hopeless kinds that are used
_LOOKED_AT = 800  # number of rows on which the accuracy of the nearest neighbour is measured


@dataclass(frozen=True)
class DataKind:
    """A small data set: ``features`` (N, d) float16, ``labels`` (N,) int64, and its family."""

    features: NDArray[np.float16]
    labels: Ids
    family: str


class Real:
    """Labelled features that kinds of the family ``real`` are cut from: the rows and the centroid of each identity."""

    def __init__(self, features: Features, labels: Ids) -> None:
        self.features = features
        order = np.argsort(labels, kind="stable")
        order = order[labelled(labels[order])]
        starts = np.flatnonzero(np.diff(labels[order], prepend=labels[order[0]] - 1))
        self.members = np.split(order, starts[1:])

    @property
    def num_identities(self) -> int:
        return len(self.members)

    @cached_property
    def sizes(self) -> Ids:
        return np.array([len(rows) for rows in self.members])

    @cached_property
    def centroids(self) -> Rows:
        """Return the mean direction of every identity, (C, d) float32."""
        means = np.stack([self.features.rows(rows).mean(axis=0) for rows in self.members])
        return means / np.linalg.norm(means, axis=1, keepdims=True)


def make_kind(seed: int, number: int, real: Real | None = None) -> DataKind | None:
    """Make the kind with this number. Return None if it is hopeless: most nearest neighbours have another identity."""
    rng = np.random.default_rng([seed, number])
    names = [name for name in FAMILIES if real is not None or name != "real"]
    shares = np.array([FAMILIES[name] for name in names])
    family = str(rng.choice(names, p=shares / shares.sum()))
    size = rng.random()
    within = _TINY if size < _TINY_SHARE else _LARGE if size > 1 - _LARGE_SHARE else _SMALL
    rows = int(log_uniform(rng, *within))
    if number % _HUGE_EVERY == _HUGE_EVERY - 1:
        family = ("latent", "axes", "real" if real is not None else "network", "network")[number // _HUGE_EVERY % 4]
        rows = int(log_uniform(rng, *_HUGE))
    features, labels = _MAKE[family](rng, rows, real)
    features, labels = _disturbed(rng, _of_mean_length_1(features), labels)
    order = rng.permutation(len(labels))
    halves, labels = features[order].astype(np.float16), labels[order]
    kept = rng.random() < _HOPELESS_KEPT
    if len(labels) < _LEAST_ROWS or not (kept or _nearest_accuracy(halves, labels) > _LEAST_ACCURACY):
        return None
    return DataKind(halves, labels, family)


def _nearest_accuracy(features: NDArray[np.float16], labels: Ids) -> float:
    """Return the share of rows whose nearest row has the same identity.

    Rows of identities with a single row do not count. If at most 20 rows count, the result is 1.
    """
    unit = features.astype(np.float32)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    some = np.arange(min(len(unit), _LOOKED_AT))
    sims = unit[some] @ unit.T
    sims[some, some] = -2
    counted = np.bincount(labels)[labels[some]] > 1
    return float((labels[sims.argmax(axis=1)] == labels[some])[counted].mean()) if counted.sum() > 20 else 1.0


def draw_sizes(rng: Rng, rows: int) -> Ids:
    """Draw the sizes (C,) int64 of identities, in random order. Their sum is about ``rows``."""
    uneven = rows < _UNEVEN
    mean, sigma = log_uniform(rng, 1.3, rows / 2 if uneven else min(rows / 4, 1500)), rng.uniform(0.2, 1.5)
    largest = int(rows * (0.8 if uneven or rng.random() < 0.2 else 1 / 3))
    way = rng.random()
    if way < 0.015:  # nearly all rows are singletons
        return np.concatenate([np.full(int(rng.integers(0, max(1, rows // 50))), 2), np.ones(rows, np.int64)])
    if way < _SPARSE_SHARE:
        sizes = 1 + rng.binomial(int(log_uniform(rng, 1, 9)), rng.uniform(0.05, 1), rows)
        return sizes[: int(np.searchsorted(np.cumsum(sizes), rows)) + 1]
    profile, count = rng.choice(4, p=[0.5, 0.2, 0.15, 0.15]), int(rows / mean) + 64
    if profile == 0:
        drawn = mean * np.exp(rng.normal(-(sigma**2) / 2, sigma, count))
    elif profile == 1:  # Zipf
        drawn = np.arange(1, max(4, count - 60) + 1.0) ** -rng.uniform(0.5, 1.3)
        drawn = rng.permutation(drawn / drawn.sum() * rows)
    elif profile == 2:
        drawn = np.full(count - 62, mean)
    else:
        drawn = rng.geometric(1 / mean, count).astype(float)
    sizes = np.clip(np.rint(drawn), 1, max(2, largest)).astype(np.int64)
    sizes = sizes[: np.searchsorted(np.cumsum(sizes), rows) + 1]
    if rng.random() < 0.4:  # singletons
        share = rng.uniform(0.02, 0.6)
        if rng.random() < 0.5:
            sizes = sizes[: max(1, int(len(sizes) * (1 - share)))]
        sizes = np.concatenate([sizes, np.ones(int(share * rows), np.int64)])
    if rng.random() < 0.3:  # giants
        giants = [max(2, int(rows * log_uniform(rng, 0.02, 0.3))) for _ in range(rng.integers(1, 5))]
        sizes = np.concatenate([sizes, giants])
    sizes = rng.permutation(sizes)
    return sizes[: max(2, int(np.searchsorted(np.cumsum(sizes), rows)) + 1)]


def _latent(rng: Rng, rows: int, real: Real | None) -> tuple[Rows, Ids]:
    sizes = draw_sizes(rng, rows)
    ids = np.repeat(np.arange(len(sizes)), sizes)
    dim, noise = int(rng.choice(_DIMENSIONS)), log_uniform(rng, 0.25, 1.6)
    identity = _identities(rng, len(sizes))
    within = _variations(rng, ids, len(sizes))
    maps = rng.integers(0, 3)
    if maps == 0:  # one network maps identity and variation together
        joint = random_network(rng, (identity.shape[1] + within.shape[1], int(log_uniform(rng, 48, 256)), dim))
        out = joint(np.concatenate([2 * identity[ids], 2 * noise * within], axis=1))
    else:  # one network maps identities to centres; another network or a matrix maps the variation, which is added
        centres = random_network(rng, (identity.shape[1], int(log_uniform(rng, 48, 256)), dim))(2 * identity)
        hidden = (int(log_uniform(rng, 32, 128)),) if maps == 1 else ()
        added = random_network(rng, (within.shape[1], *hidden, dim))(2 * within)
        lengths = rng.uniform(0.7, 1.3, (len(ids), 1)).astype(np.float32)
        out = _centred(centres)[ids] * lengths + 0.8 * noise * _centred(added)
    out = _centred(out)
    noises = rng.normal(size=out.shape).astype(np.float32)
    noises = _centred(noises * (np.arange(1, dim + 1) ** -rng.uniform(0, 0.5)).astype(np.float32))
    quality = np.exp(rng.uniform(0, 0.6) * rng.normal(size=(len(ids), 1))).astype(np.float32)
    out = out + rng.uniform(0, 0.8) * noise * quality * noises
    if rng.random() < 0.5:  # poor photos drift towards a few points, whatever their identity
        places = rng.normal(size=(rng.integers(1, 6), dim)).astype(np.float32) / np.sqrt(np.float32(dim))
        poor = np.flatnonzero(rng.random(len(ids)) < rng.uniform(0.01, 0.25))
        drift = (rng.uniform(0.2, 1.5) * rng.random((len(poor), 1))).astype(np.float32)
        out[poor] = (
            out[poor] * (1 - 0.5 * np.minimum(drift, 1)) + drift * places[rng.integers(0, len(places), len(poor))]
        )
    return out, ids


def _axes(rng: Rng, rows: int, real: Real | None) -> tuple[Rows, Ids]:
    parameters = Synthetic(
        mean_size=log_uniform(rng, 1.3, 300),
        size_sigma=rng.uniform(0.3, 1.4),
        min_size=int(rng.choice([1, 2])),
        max_size=max(3, rows // 4),
        family_size=int(log_uniform(rng, 2, 600)),
        family_weight=rng.uniform(0.4, 1.5),
        modes=int(rng.integers(1, 7)),
        mode_weight=rng.uniform(0.2, 1.1),
        noise_weight=rng.uniform(0.5, 1.7),
        spectrum=rng.uniform(0.15, 0.9),
        centre_weight=rng.uniform(0.2, 0.7),
        noise_relief=rng.uniform(0.3, 0.8),
        poor_share=rng.uniform(0, 0.35),
        bad_directions=int(rng.integers(1, 16)),
        bad_weight=rng.uniform(0.3, 1.4),
    )
    population = Population(rows, parameters, int(rng.integers(1 << 40)), int(rng.choice(_DIMENSIONS[3:])))
    features, labels = population.rows(0, rows)
    return features.astype(np.float32), labels


def _manifold(rng: Rng, rows: int, real: Real | None) -> tuple[Rows, Ids]:
    ends, dim = np.cumsum(draw_sizes(rng, rows)), int(rng.choice(_DIMENSIONS[3:]))
    group_share = rng.uniform(0, 0.4)
    parameters = Manifold(
        latent_dim=int(log_uniform(rng, 6, 40)),
        gain=log_uniform(rng, 0.2, 1.3),
        groups=int(rng.integers(2, 13)),
        group_share=group_share,
        family_size=int(log_uniform(rng, 3, 300)),
        family_share=rng.uniform(0, 0.9 - group_share),
        cause_dim=int(log_uniform(rng, 4, 24)),
        spread=log_uniform(rng, 0.08, 0.6),
        identity_sigma=rng.uniform(0, 0.3),
        instance_sigma=rng.uniform(0.1, 0.6),
        modes=int(rng.integers(1, 7)),
        mode_share=rng.uniform(0, 0.6),
        noise_weight=rng.uniform(0, 0.6),
        bad_places=int(rng.integers(1, 6)),
        bad_weight=rng.uniform(0, 1.2),
        poor_share=rng.uniform(0, 0.15),
        spectrum=rng.uniform(0, 0.4),
    )
    features, ids = np.empty((ends[-1], dim), np.float32), np.empty(ends[-1], np.int64)
    parameters.fill(0, features, ids, ends, int(rng.integers(1 << 40)))
    return features, ids


def _real(rng: Rng, rows: int, real: Real | None) -> tuple[Rows, Ids]:
    assert real is not None  # without real data this family is never drawn
    features, ids = _cut(rng, rows, real)
    if rng.random() < 0.3:
        return features, ids
    dim, way = int(rng.choice((12, 24, 48, 96, 128, 160, 256))), rng.integers(0, 3)
    whole = features.shape[1]
    if way == 0:
        features = features @ (rng.normal(size=(whole, dim)) / np.sqrt(dim)).astype(np.float32)
    elif way == 1:
        squash = random_network(rng, (whole, int(rng.choice((96, 192, 256))), dim), kinds=2)
        features = squash(features * np.float32(rng.uniform(4, 16)))
        features = features - features.mean(axis=0)
    else:
        features = features[:, rng.permutation(whole)[:dim]]
    features = _of_mean_length_1(features)
    if rng.random() < 0.6:
        quality = np.exp(rng.uniform(0, 0.7) * rng.normal(size=(len(ids), 1))) / np.sqrt(features.shape[1])
        noise = log_uniform(rng, 0.1, 1.0) * quality * rng.normal(size=features.shape)
        features = features + noise.astype(np.float32)
    return features, ids


def _cut(rng: Rng, rows: int, real: Real) -> tuple[Rows, Ids]:
    """Take some identities of real data, cut to drawn sizes or whole; in half of the cases groups of look-alikes."""
    sizes = draw_sizes(rng, rows)
    chosen = rng.permutation(real.num_identities)
    if rng.random() < 0.5:
        group = int(log_uniform(rng, 2, 40))
        found: dict[int, None] = {}
        for at in chosen:
            if len(found) > 1.1 * len(sizes):
                break
            nearest = np.argsort(-(real.centroids @ real.centroids[at]), kind="stable")[:group]
            found |= dict.fromkeys(nearest.tolist())
        chosen = np.array(list(found))
    if rng.random() < 0.25:
        sizes = real.sizes[chosen]
        sizes = sizes[: np.searchsorted(np.cumsum(sizes), rows) + 1]
    count = min(len(sizes), len(chosen))
    kept = [rng.permutation(real.members[at])[:size] for at, size in zip(chosen[:count], sizes[:count], strict=True)]
    return real.features.rows(np.concatenate(kept)), np.repeat(np.arange(count), [len(rows) for rows in kept])


def _network(rng: Rng, rows: int, real: Real | None) -> tuple[Rows, Ids]:
    others, of_each = int(log_uniform(rng, 50, 400)), int(rng.integers(8, 24))
    if real is not None and rng.random() < 0.5:
        features, ids = _cut(rng, rows, real)
        members = [real.members[at][:of_each] for at in rng.permutation(real.num_identities)[:others]]
        learnt = real.features.rows(np.concatenate(members))
        learnt_ids = np.repeat(np.arange(len(members)), [len(m) for m in members])
        look, noise = random_network(rng, (features.shape[1], 128, 128), kinds=2), log_uniform(rng, 0.1, 1.2)

        def seen(rows: Rows) -> Rows:
            out = look(6 * rows)
            out = (out - out.mean(axis=0)) / out.std()
            return (out + noise * rng.normal(size=out.shape)).astype(np.float32)

        features, learnt = seen(features), seen(learnt)
    else:
        sizes = draw_sizes(rng, rows)
        count = len(sizes)
        both = np.repeat(np.arange(count + others), np.concatenate([sizes, np.full(others, of_each)]))
        identity, within = _identities(rng, count + others), _variations(rng, both, count + others)
        noise = log_uniform(rng, 0.3, 1.8)
        look = random_network(rng, (identity.shape[1] + within.shape[1], 128, 128))
        out = look(np.concatenate([2 * identity[both], 2 * noise * within], axis=1))
        out = (out - out.mean(axis=0)) / out.std()
        out = (out + log_uniform(rng, 0.05, 0.8) * rng.normal(size=out.shape)).astype(np.float32)
        test = both < count
        features, ids, learnt, learnt_ids = out[test], both[test], out[~test], both[~test] - count
    return embedded(rng, learnt, learnt_ids, features), ids


def _drawn(rng: Rng, rows: int, real: Real | None) -> tuple[Rows, Ids]:
    sizes = draw_sizes(rng, rows)
    count, way = len(sizes), rng.integers(0, 4)
    others, of_each = int(log_uniform(rng, 50, 300)), int(rng.integers(8, 24))
    sizes = np.concatenate([sizes, np.full(others if way == 3 else 0, of_each)])
    ids = np.repeat(np.arange(len(sizes)), sizes)
    pixels = draw_pictures(rng, ids, int(rng.integers(8, 21)), log_uniform(rng, 0.15, 1.6))
    test = ids < count
    features = pixels[test]
    if way == 1:  # principal directions
        centred = features - features.mean(axis=0)
        dim = min(int(rng.choice(_DIMENSIONS)), centred.shape[1])
        _, directions = np.linalg.eigh(centred.T @ centred)
        features = centred @ directions[:, -dim:]
    elif way == 2:
        features = random_network(rng, (pixels.shape[1], 256, int(rng.choice(_DIMENSIONS))))(features)
    elif way == 3:
        features = embedded(rng, pixels[~test], ids[~test] - count, features)
    return features, ids[test]


_MAKE: dict[str, Callable[[Rng, int, Real | None], tuple[Rows, Ids]]] = {
    "latent": _latent,
    "axes": _axes,
    "manifold": _manifold,
    "real": _real,
    "network": _network,
    "drawn": _drawn,
}


def _disturbed(rng: Rng, features: Rows, labels: Ids) -> tuple[Rows, Ids]:
    """Add a cone, stretched axes, near copies and wrong labels, each with some probability.

    The rows given must have a mean square length of 1.
    """
    dim: int = features.shape[1]
    if rng.random() < 0.45:
        axis = rng.normal(size=dim).astype(np.float32)
        features = features + np.float32(log_uniform(rng, 0.2, 3)) * axis / np.linalg.norm(axis)
    if rng.random() < 0.25:
        features = features * np.exp(rng.uniform(0, 0.8) * rng.normal(size=dim)).astype(np.float32)
    if rng.random() < 0.2:
        copied = rng.integers(0, len(features), int(len(features) * rng.uniform(0.01, 0.2)))
        error = log_uniform(rng, 0.01, 0.2) * features.std() * rng.normal(size=(len(copied), dim))
        features = np.concatenate([features, features[copied] + error.astype(np.float32)])
        labels = np.concatenate([labels, labels[copied]])
    if rng.random() < 0.3:
        wrong, labels = rng.integers(0, len(labels), int(len(labels) * rng.uniform(0, 0.02))), labels.copy()
        labels[wrong] = labels[rng.integers(0, len(labels), len(wrong))]
    return features, labels


def _identities(rng: Rng, count: int) -> Rows:
    """Draw identities, often in families, as points of low dimension l: (count, l) float32, mean square length 1."""
    dim = int(log_uniform(rng, 8, 64))
    points = rng.normal(size=(count, dim)).astype(np.float32)
    if rng.random() < 0.7:
        size = log_uniform(rng, 3, max(60, count / 2))  # from look-alikes to large groups of the population
        families, weight = max(1, int(count / size)), np.float32(rng.uniform(0, 0.9))
        centres = rng.normal(size=(families, dim)).astype(np.float32)
        if rng.random() < 0.4:  # families of families
            top = rng.normal(size=(rng.integers(2, 8), dim)).astype(np.float32)
            centres = 0.8 * centres + 0.6 * top[rng.integers(0, len(top), families)]
        points = np.sqrt(1 - weight) * points + np.sqrt(weight) * centres[rng.integers(0, families, count)]
    points *= (np.arange(1, dim + 1) ** -rng.uniform(0, 0.7)).astype(np.float32)
    return _of_mean_length_1(points)


def _variations(rng: Rng, ids: Ids, count: int) -> Rows:
    """Draw the variation within identities as points of low dimension l, (n, l): modes, and lengths with a tail."""
    n, dim = len(ids), int(log_uniform(rng, 4, 40))
    points = rng.normal(size=(n, dim)).astype(np.float32)
    modes, weight = int(rng.integers(1, 6)), np.float32(rng.uniform(0, 0.8))
    if weight > 0.2:
        way = rng.random()
        if way < 0.86:  # each identity has its own modes
            places = rng.normal(size=(count * modes, dim)).astype(np.float32)
            drawn = places[ids * modes + rng.integers(0, modes, n)]
        elif way < 0.93:  # all identities share the modes, such as poses
            places = rng.normal(size=(3 * modes, dim)).astype(np.float32)
            drawn = places[rng.integers(0, 3 * modes, n)]
        else:
            drawn = _tracks(rng, ids, dim)
        points = np.sqrt(1 - weight) * points + np.sqrt(weight) * drawn
    points *= (np.arange(1, dim + 1) ** -rng.uniform(0, 0.7)).astype(np.float32)
    tail, of_identity = rng.uniform(0, 0.7), rng.uniform(0, 0.4)
    lengths = np.exp(rng.normal(-(tail**2) / 2, tail, (n, 1))) * np.exp(of_identity * rng.normal(size=(count, 1)))[ids]
    return _of_mean_length_1(points) * lengths.astype(np.float32)


def _tracks(rng: Rng, ids: Ids, dim: int) -> Rows:
    """Draw points (n, dim) on paths through space: each row of an identity is near its previous row."""
    step = log_uniform(rng, 0.05, 0.7)
    points = rng.normal(size=(len(ids), dim)).astype(np.float32)
    begins = np.diff(ids, prepend=-1) != 0
    begins |= rng.random(len(ids)) < rng.uniform(0, 0.1)  # start another track of the same identity
    stay, move = np.float32(np.sqrt(1 - step**2)), np.float32(step)
    for at in np.flatnonzero(~begins):
        points[at] = stay * points[at - 1] + move * points[at]
    return points


def _centred(rows: Rows) -> Rows:
    """Return rows shifted to mean 0 and scaled to a mean square length of 1."""
    return _of_mean_length_1(rows - rows.mean(axis=0))


def _of_mean_length_1(rows: Rows) -> Rows:
    """Return rows divided by the square root of their mean square length."""
    length = np.float32(max(np.sqrt(np.einsum("ij,ij->", rows, rows, dtype=np.float64) / len(rows)), 1e-12))
    return rows / length  # type: ignore[return-value]  # numpy's stub gives float64 for float32 / float32
