"""Test the parts of scripts/make_glyph.py without fonts, and the whole of it with fonts that the machine has."""

from __future__ import annotations

import gzip
import json
import sys

import numpy as np
import pytest
import torch

import make_glyph
from glyph import fonts, identities, measure, network, photos, render
from helpers.paths import ROOT
from starfc.data.dataset import open_split
from starfc.errors import InputError


@pytest.fixture
def pictures():
    """32 pictures of random strokes, (32, 40, 40) uint8."""
    rng, images = np.random.default_rng(0), np.zeros((32, 40, 40), np.uint8)
    for image in images:
        for place in rng.integers(4, 34, 3):
            image[place : place + 3, 5:35] = 255
            image[5:35, rng.integers(4, 34)] = 255
    return torch.from_numpy(images)


def test_photos_depend_on_the_seed_alone(pictures):
    levels = torch.arange(32) % 4
    first = photos.degrade(pictures, levels, photos.seeded(1, 2))
    assert first.shape == pictures.shape
    assert first.dtype == torch.uint8
    torch.manual_seed(9)
    assert torch.equal(first, photos.degrade(pictures, levels, photos.seeded(1, 2)))
    assert not torch.equal(first, photos.degrade(pictures, levels, photos.seeded(2, 1)))


def test_a_higher_level_is_farther_from_the_picture(pictures):
    repeated = pictures.repeat(10, 1, 1)
    apart = [
        (photos.degrade(repeated, torch.full((320,), level), photos.seeded(3)).float() - repeated.float()).abs().mean()
        for level in range(4)
    ]
    assert apart == sorted(apart)
    assert apart[0] < 0.8 * apart[3]


def test_blur_is_a_convolution_with_a_gaussian():
    photo, deviation = torch.rand(2, 1, 12, 12, generator=photos.seeded(0)), torch.tensor([0.6, 1.5])
    found = photos._blurred(photo, deviation)
    for image, width, result in zip(photo[:, 0], deviation, found[:, 0], strict=True):
        at = np.arange(-4, 5)
        kernel = np.exp(-0.5 * (at / float(width)) ** 2)
        kernel /= kernel.sum()
        padded = np.pad(image.numpy(), 4)
        twin = [[(padded[y : y + 9, x : x + 9] * np.outer(kernel, kernel)).sum() for x in range(12)] for y in range(12)]
        np.testing.assert_allclose(result, twin, atol=1e-6)


def test_the_loss_is_that_of_its_equation():
    rng = np.random.default_rng(0)
    x, centres, labels = rng.normal(size=(5, 8)), rng.normal(size=(3, 8)), np.array([0, 2, 1, 1, 0])
    found = network.cosface(torch.tensor(x), torch.tensor(centres), torch.tensor(labels))
    losses = []
    for one, label in zip(x, labels, strict=True):
        logits = [
            network.SCALE * (one @ c / np.linalg.norm(one) / np.linalg.norm(c) - network.MARGIN * (j == label))
            for j, c in enumerate(centres)
        ]
        losses.append(np.log(np.exp(logits).sum()) - logits[label])
    assert float(found) == pytest.approx(np.mean(losses))


def test_sizes_reach_the_sum_within_their_bounds():
    looks = np.random.default_rng(0).integers(16, 200, 500)
    sizes = identities.sizes_of(looks, 30_000, np.random.default_rng(1))
    assert abs(sizes.sum() - 30_000) < 300
    assert sizes.min() >= 2
    assert (sizes <= identities.MOST_PHOTOS * looks).all()
    most = identities.sizes_of(looks, 10**9, np.random.default_rng(1))
    np.testing.assert_array_equal(most, identities.MOST_PHOTOS * looks)


def test_ideographs_are_chosen_once():
    covered = [np.arange(0x4E00, 0x4E00 + count, dtype=np.int32) for count in (90, 100) for _ in range(8)]
    parts = identities.choose_ideographs(covered, 30, 20, 40, seed=0)
    assert [len(part) for part in parts] == [30, 20, 40]
    assert len(np.unique(np.concatenate(parts))) == 90
    assert np.concatenate(parts).max() < 0x4E00 + 90  # the others have too few typefaces
    with pytest.raises(InputError, match=r"--identities: 41, .* need 91 ideographs .* found 90"):
        identities.choose_ideographs(covered, 30, 20, 41, seed=0)


def test_every_part_is_a_prefix_with_whole_identities():
    rng = np.random.default_rng(0)
    code = np.repeat(np.arange(200, 290, dtype=np.int32), 20)
    kept = rng.random(len(code)) < 0.9
    chosen = rng.permutation(np.unique(code))
    split = identities.make_split(chosen, code, kept, 1800, rng)
    assert kept[split.glyph].all()
    np.testing.assert_array_equal(chosen[split.identity], code[split.glyph])
    assert np.unique(split.glyph, return_counts=True)[1].max() <= identities.MOST_PHOTOS
    test, parts = identities.cumulative(split, 90, rng)
    assert list(parts) == [1, 3, 5, 7, 9]
    before = 0
    for part, length in parts.items():
        np.testing.assert_array_equal(np.unique(test.identity[:length]), np.arange(10 * part))
        assert test.identity[length:].min(initial=90) == 10 * part
        assert (np.diff(test.identity[before:length]) < 0).any()  # in random order
        before = length
    assert sorted(zip(test.glyph, test.identity, test.level, strict=True)) == sorted(
        zip(split.glyph, split.identity, split.level, strict=True)
    )


def test_similarities_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    features, identity = rng.normal(size=(200, 16)).astype(np.float16), rng.integers(0, 4, 200)
    found = measure.similarities(features, identity)
    unit = features.astype(np.float32) / np.linalg.norm(features.astype(np.float32), axis=1, keepdims=True)
    sims, same = unit @ unit.T, identity[:, None] == identity
    pairs = sims[same & ~np.eye(200, dtype=bool)]
    for quantile in (10, 50, 90):
        assert found[f"within_{quantile}"] == pytest.approx(np.percentile(pairs, quantile), abs=6e-4)
    ranked = np.sort(np.where(same, -1, sims), axis=1)
    assert found["stranger_1"] == pytest.approx(np.median(ranked[:, -1]), abs=6e-4)
    assert found["stranger_80"] == pytest.approx(np.median(ranked[:, -80]), abs=6e-4)


def test_a_look_is_kept_once_and_placeholders_never():
    images = np.zeros((8, 40, 40), np.uint8)
    for at, value in enumerate([1, 2, 1, 9, 9, 9, 3, 0]):
        images[at] = value
    code = np.array([10, 11, 10, 12, 13, 14, 11, 12], np.int32)
    typeface = np.array([0, 0, 1, 1, 1, 1, 1, 2], np.int32)
    kept = render.kept_looks(images, code, typeface)
    # the second look of 10 is the first once more, typeface 1 draws 12 to 14 alike, and the last picture has no ink
    assert kept.tolist() == [True, True, False, False, False, False, True, False]


def test_mistakes_are_one_message(tmp_path, monkeypatch):
    def run(*more):
        monkeypatch.setattr(sys, "argv", ["make_glyph.py", "--out", str(tmp_path / "set"), *more])
        make_glyph.main()

    with pytest.raises(InputError, match=r"--identities: must be at least 9; found 3"):
        run("--identities", "3")
    with pytest.raises(InputError, match=r"--seed: must be from 0"):
        run("--seed", "-1")
    for package in ("PIL", "fontTools", "brotli"):
        pytest.importorskip(package)
    monkeypatch.setattr(fonts, "DEBIAN", {})
    with pytest.raises(InputError, match=r"--fonts: .*nowhere: no such folder"):
        run("--no-npm", "--fonts", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"holds a set made with --fonts \['.*nowhere'\], --seed 0"):
        run("--no-npm", "--seed", "5")
    monkeypatch.setattr(sys, "argv", ["make_glyph.py", "--out", str(tmp_path / "other"), "--no-npm"])
    with pytest.raises(InputError, match=r"--fonts: no typeface with at least"):
        make_glyph.main()


@pytest.mark.long
def test_a_small_set_is_made_and_made_again_alike(tmp_path, monkeypatch, capsys):
    for package in ("PIL", "fontTools", "brotli"):
        pytest.importorskip(package)
    small = [
        *("fonts-arphic-bkai00mp", "fonts-arphic-bsmi00lp", "fonts-cwtex-fs", "fonts-cwtex-ming", "fonts-wqy-microhei"),
        *("fonts-vlgothic", "fonts-konatu", "fonts-ipaexfont-gothic", "fonts-ipaexfont-mincho", "fonts-noto-cjk"),
    ]
    present = [name for name in small if fonts._dpkg("-W", "-f=${db:Status-Status}", name) == "installed"][:3]
    if len(present) < 2:
        pytest.skip(f"needs two of the Debian packages {', '.join(small)}")
    monkeypatch.setattr(fonts, "DEBIAN", {name: fonts.DEBIAN[name] for name in present})
    monkeypatch.setattr(fonts, "IDEOGRAPHS", tuple(range(0x4E00, 0x4E60)))
    monkeypatch.setattr(fonts, "LEAST", 20)
    monkeypatch.setattr(identities, "LEAST_LOOKS", 2)
    monkeypatch.setattr(network, "WIDTHS", (4, 4, 8, 8))
    monkeypatch.setattr(network, "BATCH", 16)
    monkeypatch.setattr(network, "KEEP_EVERY", 2)

    def run(out):
        options = ["--identities", "18", "--instances", "72", "--network-identities", "5", "--steps", "3", "--no-npm"]
        monkeypatch.setattr(sys, "argv", ["make_glyph.py", "--out", str(out), *options, "--threads", "1"])
        make_glyph.main()
        return capsys.readouterr().out

    text = run(tmp_path / "a")
    assert "part9_test" in text
    record = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert set(record["packages"]) <= set(present)
    assert set(record["similarities"]) == {"part1_test"}
    assert [stage["stage"] for stage in record["stages"]] == ["fonts", "render", "train", "embed"]
    largest = None
    for name, row in record["splits"].items():
        split = open_split(
            tmp_path / "a" / "features" / f"{name}.npy", tmp_path / "a" / "labels" / f"{name}.meta", feature_dim=None
        )
        rows = np.load(tmp_path / "a" / "features" / f"{name}.npy")
        assert rows.dtype == np.float16
        assert rows.shape == (row["instances"], network.DIM)
        assert len(np.unique(split.labels)) == row["identities"]
        assert np.isfinite(rows).all()
        largest = rows if name == "part9_test" else largest
    first = np.load(tmp_path / "a" / "features" / "part1_test.npy")
    np.testing.assert_array_equal(first, largest[: len(first)])
    with gzip.open(tmp_path / "a" / "list" / "part9_test.tsv.gz", "rt", encoding="utf-8") as file:
        lines = [line.rstrip("\n").split("\t") for line in file]
    assert len(lines) == len(largest)
    assert all(chr(int(line[0][2:], 16)) == line[1] and line[3] in "0123" for line in lines)

    run(tmp_path / "b")
    assert (tmp_path / "b" / "features" / "part9_test.npy").read_bytes() == (
        tmp_path / "a" / "features" / "part9_test.npy"
    ).read_bytes()
    (tmp_path / "b" / "embedded.json").unlink()  # as if it had been killed in the last stage
    (tmp_path / "b" / "features" / "part9_test.npy").unlink()
    run(tmp_path / "b")
    np.testing.assert_array_equal(np.load(tmp_path / "b" / "features" / "part9_test.npy"), largest)
    assert not list((tmp_path / "b" / "features").glob("*.part"))


def test_help_lists_the_fonts_to_install(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_glyph.py", "--help"])
    with pytest.raises(SystemExit):
        make_glyph.main()
    text = capsys.readouterr().out
    assert "apt-get install" in text
    assert "fonts-noto-cjk-extra" in text
    assert (ROOT / "docs" / "glyph.md").is_file()
