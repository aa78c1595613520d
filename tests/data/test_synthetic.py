"""Test the synthetic generator: shapes, determinism, blocks, resuming, and the promised structure."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import numba
import numpy as np
import pytest
import scipy.stats
from tests.helpers.synthetic import direction, key, uniform

from starfc.data import synthetic
from starfc.data.dataset import Features, open_split
from starfc.data.synthetic import Population, Synthetic, generate, sample
from starfc.data.synthetic_kernels import BAD, FAMILY, FAMILY_OF, INSTANCE, MODE, NOISE, OWN, shuffled
from starfc.errors import InputError
from starfc.graph.knn import build_knn
from starfc.runtime.entry import run_command


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 67, 1001])
def test_exactly_n_rows_in_the_published_layout(tmp_path, num_nodes):
    paths = generate(tmp_path, num_nodes, seed=3, dim=32, name="part1_test")
    assert paths == (tmp_path / "features" / "part1_test.npy", tmp_path / "labels" / "part1_test.npy")
    features, labels = map(np.load, paths)
    assert (features.shape, features.dtype) == ((num_nodes, 32), np.float16)
    assert (labels.shape, labels.dtype) == ((num_nodes,), np.int64)
    population = Population(num_nodes, seed=3, dim=32)
    np.testing.assert_array_equal(np.bincount(labels), population.sizes)
    in_memory = sample(num_nodes, seed=3, dim=32)
    np.testing.assert_array_equal(features, in_memory[0])
    np.testing.assert_array_equal(labels, in_memory[1])
    split = open_split(tmp_path / "features" / "part1_test", tmp_path / "labels" / "part1_test", feature_dim=32)
    assert len(split) == num_nodes


def test_rows_are_unit_vectors_up_to_float16():
    features, _ = sample(500)
    norms = np.linalg.norm(features.astype(np.float64), axis=1)
    np.testing.assert_allclose(norms, 1, atol=2**-11)  # half a unit in the last place of float16
    Features(features).require_valid()


def test_blocks_are_independent_of_each_other_and_of_threads():
    population = Population(1000, seed=1, dim=16)
    whole = population.rows(0, 1000)
    for start, stop in ((0, 1), (7, 7), (63, 65), (500, 1000)):
        for part, all_rows in zip(population.rows(start, stop), whole, strict=True):
            np.testing.assert_array_equal(part, all_rows[start:stop])
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        np.testing.assert_array_equal(population.rows(0, 1000)[0], whole[0])
    finally:
        numba.set_num_threads(threads)


def test_rows_are_the_formula_written_out():
    """Pure Python integers and numpy, one vector at a time."""
    p, dim, seed, num_nodes = Synthetic(), 24, 7, 400
    population = Population(num_nodes, p, seed, dim)
    features, labels = population.rows(0, num_nodes)
    instances = [shuffled(row, num_nodes, seed) for row in range(num_nodes)]
    families = max(1, round(len(population.sizes) / p.family_size))
    np.testing.assert_array_equal(labels, np.repeat(np.arange(len(population.sizes)), population.sizes)[instances])
    for x, identity, instance in zip(features, labels.tolist(), instances, strict=True):
        beta, poor, which, w, bad = (uniform(key(seed, INSTANCE, instance), m) for m in range(5))
        q = scipy.stats.beta(p.quality_a, p.quality_b).ppf(beta) * (p.poor_factor if poor < p.poor_share else 1)
        family, u = (uniform(key(seed, FAMILY_OF, identity), m) for m in range(2))
        centre = p.family_weight * u * direction(seed, FAMILY, int(family * families), dim, p.spectrum)
        centre += direction(seed, OWN, identity, dim, p.spectrum)
        expected = (p.centre_weight + (1 - p.centre_weight) * q) * centre / np.linalg.norm(centre)
        mode = direction(seed, MODE, identity * p.modes + int(which * p.modes), dim, p.spectrum)
        expected += p.mode_weight * w * mode
        expected += p.noise_weight * (1 - p.noise_relief * q) * direction(seed, NOISE, instance, dim, p.spectrum)
        photo = direction(seed, BAD, int(bad * p.bad_directions), dim, p.spectrum)
        expected += p.bad_weight * max(0, p.bad_below - q) * photo
        np.testing.assert_allclose(x, expected / np.linalg.norm(expected), atol=1e-3)


def test_seeds_differ():
    assert not np.array_equal(sample(300, seed=0, dim=16)[1], sample(300, seed=1, dim=16)[1])


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 17, 64, 65, 1000, 4096])
def test_the_shuffle_is_a_bijection(num_nodes):
    for seed in range(3):
        order = [shuffled(row, num_nodes, seed) for row in range(num_nodes)]
        assert sorted(order) == list(range(num_nodes))


def test_the_shuffle_mixes():
    order = np.array([shuffled(row, 5000, 0) for row in range(5000)])
    assert abs(np.corrcoef(order, np.arange(5000))[0, 1]) < 0.05
    assert (np.abs(np.diff(order)) > 50).mean() > 0.95  # neighbours in the file are strangers
    _, labels = sample(5000, dim=2)
    assert (labels[1:] == labels[:-1]).mean() < 0.05


def test_sizes_are_heavy_tailed_within_the_clip():
    sizes = Population(400_000).sizes
    parameters = Synthetic()
    assert sizes.sum() == 400_000
    assert sizes[:-1].min() >= parameters.min_size
    assert sizes.max() <= parameters.max_size
    assert sizes.mean() == pytest.approx(parameters.mean_size, rel=0.05)
    assert np.median(sizes) < 0.95 * sizes.mean()
    assert np.log(sizes[:-1]).std() == pytest.approx(parameters.size_sigma, rel=0.05)


def test_identities_can_be_learnt_and_are_not_given_away():
    features, labels = sample(4000)
    graph = build_knn(Features(features).all(), 11)
    same = labels[graph.ids] == labels[:, None]
    assert 0.9 < same[:, 0].mean() < 1
    assert 0.8 < same.mean() < 0.99
    assert np.bincount(labels).min() > 0


@pytest.mark.long
@pytest.mark.parametrize("crash_at", [0, 1, 5, 7])
def test_a_crashed_run_goes_on_and_ends_up_the_same(tmp_path, monkeypatch, crash_at):
    monkeypatch.setattr(synthetic, "BLOCK_ROWS", 64)
    expected = [path.read_bytes() for path in generate(tmp_path / "whole", 500, seed=5, dim=8)]
    made, write = [], synthetic._write_rows

    def crash(path, rows, start):
        if len(made) == 2 * crash_at + 1:  # between a block's features and its labels
            raise KeyboardInterrupt
        made.append(start)
        write(path, rows, start)

    monkeypatch.setattr(synthetic, "_write_rows", crash)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "killed", 500, seed=5, dim=8)
    assert not list((tmp_path / "killed").glob("*/synthetic.npy"))
    assert json.loads((tmp_path / "killed" / "synthetic.json").read_text())["rows_done"] == 64 * crash_at
    made.clear()
    monkeypatch.setattr(synthetic, "_write_rows", lambda *arguments: (made.append(arguments[2]), write(*arguments)))
    paths = generate(tmp_path / "killed", 500, seed=5, dim=8)
    assert [path.read_bytes() for path in paths] == expected
    assert min(made) == 64 * crash_at  # what was there was not made again
    assert not list((tmp_path / "killed").glob("*/.*"))


def test_finished_files_are_kept(tmp_path, monkeypatch):
    first = [path.read_bytes() for path in generate(tmp_path, 50, dim=8)]
    record = json.loads((tmp_path / "synthetic.json").read_text())
    assert record["parameters"] == asdict(Synthetic())
    monkeypatch.setattr(synthetic, "_write_rows", pytest.fail)
    assert [path.read_bytes() for path in generate(tmp_path, 50, dim=8)] == first


@pytest.mark.parametrize("foreign", [True, False], ids=["of someone else", "of other parameters"])
def test_files_of_other_data_are_not_replaced(tmp_path, foreign):
    if foreign:
        (tmp_path / "labels").mkdir()
        np.save(tmp_path / "labels" / "synthetic.npy", np.arange(50))
    else:
        generate(tmp_path, 50, seed=0, dim=8)
    before = (tmp_path / "labels" / "synthetic.npy").read_bytes()
    with pytest.raises(InputError, match=r"synthetic\.npy: exists, and synthetic\.json does not say"):
        generate(tmp_path, 50, seed=1, dim=8)
    assert (tmp_path / "labels" / "synthetic.npy").read_bytes() == before
    assert not list(tmp_path.glob("*/.*"))


def test_a_kill_between_the_two_files_leaves_no_mixture(tmp_path, monkeypatch):
    replace, renamed = synthetic.os.replace, []

    def rename(source, target):
        if target.suffix == ".npy" and renamed:
            raise KeyboardInterrupt
        renamed.extend([target] if target.suffix == ".npy" else [])
        replace(source, target)

    monkeypatch.setattr(synthetic.os, "replace", rename)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, 50, seed=1, dim=8)
    monkeypatch.setattr(synthetic.os, "replace", replace)
    features, labels = map(np.load, generate(tmp_path, 50, seed=1, dim=8))
    np.testing.assert_array_equal(features, sample(50, seed=1, dim=8)[0])
    np.testing.assert_array_equal(labels, sample(50, seed=1, dim=8)[1])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"num_nodes": 0}, "num_nodes"),
        ({"num_nodes": 10, "seed": -1}, "seed"),
        ({"num_nodes": 10, "dim": 1}, "dim"),
        ({"num_nodes": 10, "name": "a/b"}, "'a/b'"),
        ({"num_nodes": 2**45, "name": "huge"}, "but its disk has"),
    ],
)
def test_bad_input_is_refused(tmp_path, monkeypatch, keywords, message):
    monkeypatch.setattr(Population, "ends", np.array([1]))
    with pytest.raises(InputError, match=message):
        generate(tmp_path, **keywords)


def test_every_wrong_parameter_is_named_at_once():
    with pytest.raises(
        InputError, match=r"modes must be >= 1.*quality_a must be > 0.*poor_share must be between 0 and 1.*max_size"
    ):
        Synthetic(modes=0, quality_a=0, poor_share=2, max_size=1)


@pytest.mark.long
def test_the_command(tmp_path, monkeypatch, capsys):
    command = [sys.executable, "-m", "starfc.data.synthetic", "--out", str(tmp_path), "--dim", "8", "--nodes"]
    done = subprocess.run([*command, "100"], capture_output=True, text=True, check=True)

    def run(*arguments: str) -> tuple[int, str, str]:
        """The same in this process."""
        monkeypatch.setattr(sys, "argv", [synthetic.__file__, *command[3:], *arguments])
        return run_command(synthetic.main), *capsys.readouterr()

    assert done.stdout.split() == [str(tmp_path / kind / "synthetic.npy") for kind in ("features", "labels")]
    np.testing.assert_array_equal(np.load(tmp_path / "labels" / "synthetic.npy"), sample(100, dim=8)[1])
    assert run("100", "--name", "noisy", "--noise-weight", "2", "--modes", "1")[0] == 0
    expected = sample(100, dim=8, parameters=Synthetic(noise_weight=2.0, modes=1))[0]
    np.testing.assert_array_equal(np.load(tmp_path / "features" / "noisy.npy"), expected)
    for wrong, message in (
        (["-5"], "synthetic data: num_nodes must be >= 1"),
        (["5", "--modes", "0"], "synthetic data: modes must be >= 1"),
        (["5", "--threads", "0"], "--threads: must be at least 1"),
    ):
        code, out, err = run(*wrong)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {message}")
        assert len(err.splitlines()) == 1
