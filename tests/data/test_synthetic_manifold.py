"""Test synthetic data near a manifold, and profiles of sizes: a slow twin, blocks, resuming, refusals, the command."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
from tests.helpers.synthetic import bell, direction, key, uniform

from starfc.data import synthetic
from starfc.data.dataset import Features
from starfc.data.synthetic import KINDS, Population, generate, sample
from starfc.data.synthetic_kernels import (
    BAD,
    CAUSE,
    CAUSE_WEIGHTS,
    FAMILY,
    FAMILY_OF,
    GROUP,
    GROUP_OF,
    INSTANCE,
    LATENT_WEIGHTS,
    MODE,
    NOISE,
    OUT_WEIGHTS,
    OWN,
    PHASE,
    shuffled,
)
from starfc.data.synthetic_manifold import PRESETS, Manifold
from starfc.data.synthetic_sizes import PROFILES, Sizes
from starfc.errors import InputError
from starfc.graph.knn import build_knn
from starfc.runtime.entry import run_command

SMALL = Manifold(latent_dim=5, units=12, cause_dim=3, groups=3, family_size=2, mean_size=6, modes=2, poor_share=0.5)


def vector(seed: int, kind: int, index: int, count: int) -> np.ndarray:
    return np.array([bell(key(seed, kind, index), m) for m in range(count)])


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def test_rows_are_the_formula_written_out():
    """Pure Python integers and numpy, one row at a time."""
    p, dim, seed, num_nodes = SMALL, 9, 5, 150
    population = Population(num_nodes, p, seed, dim)
    features, labels = population.rows(0, num_nodes)
    instances = [shuffled(row, num_nodes, seed) for row in range(num_nodes)]
    families = max(1, round(len(population.sizes) / p.family_size))
    np.testing.assert_array_equal(labels, np.repeat(np.arange(len(population.sizes)), population.sizes)[instances])
    W = np.array([vector(seed, LATENT_WEIGHTS, row, p.units) for row in range(p.latent_dim)]).T / p.latent_dim**0.5
    V = np.array([vector(seed, CAUSE_WEIGHTS, row, p.units) for row in range(p.cause_dim)]).T / p.cause_dim**0.5
    A = np.array([vector(seed, OUT_WEIGHTS, row, dim) for row in range(p.units)]).T
    A *= np.arange(1, dim + 1)[:, None] ** -p.spectrum
    b = np.array([4 * uniform(key(seed, PHASE, k), 0) for k in range(p.units)])
    poor_rows = 0
    for x, i, j in zip(features, labels.tolist(), instances, strict=True):
        family = int(uniform(key(seed, FAMILY_OF, i), 0) * families)
        group = int(uniform(key(seed, GROUP_OF, family), 0) * p.groups)
        z = np.sqrt(p.group_share) * vector(seed, GROUP, group, p.latent_dim)
        z += np.sqrt(p.family_share) * vector(seed, FAMILY, family, p.latent_dim)
        z += np.sqrt(1 - p.group_share - p.family_share) * vector(seed, OWN, i, p.latent_dim)
        which, poor, place = (uniform(key(seed, INSTANCE, j), m) for m in range(3))
        v, w = bell(key(seed, FAMILY_OF, i), 1), bell(key(seed, INSTANCE, j), 3)
        y = np.sqrt(p.mode_share) * vector(seed, MODE, i * p.modes + int(which * p.modes), p.cause_dim)
        y += np.sqrt(1 - p.mode_share) * vector(seed, CAUSE, j, p.cause_dim)
        s = p.gain * W @ z + p.spread * np.exp(p.identity_sigma * v + p.instance_sigma * w) * V @ y + b
        expected = unit(A @ (np.abs(s % 4 - 2) - 1)) + p.noise_weight * direction(seed, NOISE, j, dim, p.spectrum)
        if poor < p.poor_share:
            poor_rows += 1
            photo = direction(seed, BAD, int(place * p.bad_places), dim, p.spectrum)
            expected += p.bad_weight * (1 - poor / p.poor_share) * photo
        np.testing.assert_allclose(x, unit(expected), atol=1e-3)
    assert 50 < poor_rows < 100


@pytest.mark.parametrize("kind", PRESETS)
def test_rows_do_not_depend_on_blocks_and_differ_by_seed(kind):
    population = Population(300, KINDS[kind], seed=1, dim=16)
    features, labels = population.rows(0, 300)
    np.testing.assert_array_equal(np.concatenate([population.rows(0, 1)[0], population.rows(1, 300)[0]]), features)
    np.testing.assert_array_equal(population.rows(63, 65)[1], labels[63:65])
    np.testing.assert_allclose(np.linalg.norm(features.astype(np.float64), axis=1), 1, atol=2**-11)
    assert not np.array_equal(sample(300, KINDS[kind], seed=2, dim=16)[0], features)


def test_a_crashed_run_goes_on_and_ends_up_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "BLOCK_ROWS", 64)
    features, labels = sample(300, SMALL, seed=5, dim=8)
    write, made = synthetic._write_rows, []

    def crash(path, rows, start):
        if start == 128:
            raise KeyboardInterrupt
        write(path, rows, start)

    monkeypatch.setattr(synthetic, "_write_rows", crash)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, 300, SMALL, seed=5, dim=8)
    monkeypatch.setattr(synthetic, "_write_rows", lambda *what: (made.append(what[2]), write(*what)))
    paths = generate(tmp_path, 300, SMALL, seed=5, dim=8)
    assert min(made) == 128
    np.testing.assert_array_equal(np.load(paths[0]), features)
    np.testing.assert_array_equal(np.load(paths[1]), labels)
    record = json.loads((tmp_path / "synthetic.json").read_text())
    assert (record["model"], record["parameters"]) == ("manifold", asdict(SMALL))


def test_strangers_have_few_local_dimensions_and_identities_can_be_told_apart():
    dimensions = {}
    for kind in ("diffuse", "strong"):
        features, labels = sample(4000, replace(KINDS[kind], mean_size=20.0), dim=128)
        graph = build_knn(Features(features).all(), 80)
        same = labels[graph.ids] == labels[:, None]
        assert same[:, 0].mean() > 0.8
        sims = np.array([row[~mine][:30] for row, mine in zip(graph.sims, same, strict=True) if (~mine).sum() >= 30])
        distances = np.sqrt(2 - 2 * sims)
        dimensions[kind] = 1 / np.log(distances[:, -1:] / distances[:, :-1]).mean()
    assert dimensions["strong"] < 0.8 * dimensions["diffuse"]


@pytest.mark.parametrize(
    ("profile", "mean", "median", "smallest", "largest"),
    [("ms1m", 67.7, 58, 9, 400), ("webface", 21.1, 16, 3, 400), ("library", 6.5, 1, 1, 900)],
)
def test_profiles_of_sizes(profile, mean, median, smallest, largest):
    for model in (KINDS["diffuse"], KINDS["weak"]):
        sizes = Population(1_000_000, replace(model, **PROFILES[profile])).sizes
        assert sizes.sum() == 1_000_000
        assert sizes.mean() == pytest.approx(mean, rel=0.05)
        assert np.median(sizes) == pytest.approx(median, rel=0.05)
        assert PROFILES[profile]["min_size"] <= sizes[:-1].min() <= smallest
        assert largest <= sizes.max() <= PROFILES[profile]["max_size"]


def test_a_power_law_halves_with_every_doubling():
    sizes = Population(1_000_000, replace(Manifold(), **PROFILES["library"])).sizes
    for least in (2, 4, 8, 16, 32):
        assert (sizes >= least).mean() == pytest.approx(1 / least, rel=0.1)
    assert Sizes(size_exponent=2, min_size=4, max_size=4).ends(10, 0).tolist() == [4, 8, 10]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"latent_dim": 0, "gain": 0, "poor_share": 2},
            "latent_dim must be >= 1.*gain must be > 0.*poor_share must be",
        ),
        ({"group_share": 0.6, "family_share": 0.5}, r"group_share \+ family_share must be <= 1; found 1.1"),
        ({"spread": -1.0, "noise_weight": float("nan")}, "spread must be >= 0; found -1.0; noise_weight must be >= 0"),
        ({"size_exponent": 0.5}, r"size_exponent must be 0 \(log-normal sizes\) or > 1; found 0.5"),
        ({"min_size": 9, "max_size": 8}, "max_size must be >= min_size; found 8 < 9"),
    ],
)
def test_wrong_parameters_are_named(wrong, message):
    with pytest.raises(InputError, match=message):
        Manifold(**wrong)


def test_the_command_has_kinds_and_profiles(tmp_path, monkeypatch, capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["synthetic.py", "--nodes", "90", "--out", str(tmp_path), *arguments])
        return run_command(synthetic.main), *capsys.readouterr()

    assert run("--dim", "8", "--kind", "weak", "--sizes", "library", "--spread", "0.5", "--max-size", "50")[0] == 0
    parameters = replace(KINDS["weak"], **{**PROFILES["library"], "max_size": 50}, spread=0.5)
    np.testing.assert_array_equal(np.load(tmp_path / "features" / "synthetic.npy"), sample(90, parameters, dim=8)[0])
    for wrong, message in (
        (("--spread", "1"), "--spread: is no parameter of --kind diffuse; leave it out, or choose --kind from glyph, "),
        (
            ("--kind", "weak", "--quality-a", "1"),
            "--quality-a: is no parameter of --kind weak; leave it out, or choose",
        ),
        (("--kind", "weak", "--modes", "0"), "synthetic data: modes must be >= 1; found 0"),
    ):
        code, _, err = run(*wrong)
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith(f"error: {message}")
    with pytest.raises(SystemExit):
        run("--help")
    text = capsys.readouterr().out
    assert all(f"{name}:" in text for name in (*KINDS, *PROFILES))
    assert all(name in text for name in ("--latent-dim", "--quality-a", "--size-exponent"))
