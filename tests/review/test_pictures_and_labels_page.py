"""Drive the page of a report: pictures in full size, larger thumbnails, and the view of doubtful labels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from helpers.page import CHROMIUM, go, until
from helpers.review import clique, labels_of, parsed
from helpers.samples import blobs
from starfc import InputError, StarFC
from starfc.clustering.parsing import Decision
from starfc.data.dataset import Features
from starfc.review.report import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path (apt-get install chromium)")
PHONE = {"width": 390, "height": 844}
LABELS = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2])  # row 5 is labelled 1, and lies among those of label 0


@pytest.fixture(scope="session")
def page_folder(tmp_path_factory):
    """Two cliques of six and one of two, pictures in folders with odd names, one of them turned by its camera."""
    folder = tmp_path_factory.mktemp("pictures")
    edges = parsed(14, [*clique(range(6)), *clique(range(6, 11)), *clique(range(11, 13))])
    lines = []
    for row in range(14):
        path = folder / "photos" / ("a #1" if row % 2 else "ü%20") / f"IMG {row}?.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x112] = 6
        size = (300, 200)
        Image.new("RGB", size, (15 * row, 90, 120)).save(path, exif=exif if row == 1 else Image.Exif())
        lines.append(str(path.relative_to(folder)) if row != 3 else "")
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    features = Features(np.random.default_rng(0).normal(size=(14, 6)).astype(np.float32))
    given = (labels_of(edges), edges, Decision(0.6, 0.5))
    write_report(
        folder / "report", *given, features=features, images=folder / "list.txt", identities=LABELS, thumbnails=256
    )
    return folder


def selected(page, row):
    cluster = page.evaluate("async row => (await starfc.load('rows'))[row]", row)
    go(page, f"#/cluster/{cluster}/{row}")
    until(page, f"document.querySelector('.selection b')?.innerText === 'row {row}'")


@pytest.mark.long
def test_a_picture_opens_in_full_size(open_page, page_folder):
    page = open_page(page_folder / "report")
    for row in (0, 1):
        selected(page, row)
        with page.context.expect_page() as opened:
            page.keyboard.press("f")
        picture = opened.value
        picture.wait_for_load_state()
        sizes = picture.evaluate("[document.images[0].naturalWidth, document.images[0].naturalHeight]")
        assert sizes == ([200, 300] if row == 1 else [300, 200])  # browsers turn it as the camera says
        assert picture.evaluate("window.opener") is None
        picture.close()
    selected(page, 3)
    assert page.locator("#picture").count() == 0  # it has none
    page.keyboard.press("f")
    assert len(page.context.pages) == 1


@pytest.mark.long
def test_thumbnails_are_as_large_as_asked_for(open_page, page_folder):
    page = open_page(page_folder / "report")
    assert page.evaluate("starfc.index.thumbs") == {"tile": 256, "columns": 4, "sheets": 1}
    go(page, "#/cluster/0")
    page.wait_for_selector(".members .tile")
    box = page.locator(".members .tile .thumb").first.bounding_box()
    assert (box["width"], box["height"]) == (256, 256)
    with Image.open(page_folder / "report" / "thumbs" / "0.webp") as sheet:
        assert sheet.size == (1024, 1024)
    page.set_viewport_size(PHONE)
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.long
def test_the_view_of_labels(open_page, page_folder):
    page = open_page(page_folder / "report")
    page.keyboard.press("l")
    until(page, "document.querySelectorAll('#label-list li').length === 1")
    assert "1 doubtful labels" in page.inner_text("#label-count")
    item = page.locator("#label-list li")
    assert "Labelled 1; its neighbours have label 0." in item.inner_text()
    assert item.locator(".row").first.inner_text() == "row 5"
    page.keyboard.press("j")
    page.keyboard.press("y")
    until(page, "marks.standing.size === 1")
    (mark,) = page.evaluate("marks.exported().must_link")
    assert mark[1] == 5
    page.select_option("#label-kind", "outlier")
    until(page, "document.querySelectorAll('#label-list li').length === 1")
    assert "few edges to any instance" in page.inner_text("#label-list")
    assert page.locator("#label-list button").count() == 0  # there is no pair to mark
    item.locator("a").first.click()
    until(page, "document.querySelector('.selection b')?.innerText === 'row 13'")


@pytest.mark.long
@pytest.mark.parametrize(
    ("system", "viewport"),
    [
        ("light", None),
        ("dark", PHONE),
        pytest.param("dark", None, marks=pytest.mark.slow),
        pytest.param("light", PHONE, marks=pytest.mark.slow),
    ],
)
def test_nothing_that_axe_calls_serious(open_page, page_folder, system, viewport):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = open_page(page_folder / "report", color_scheme=system, **({"viewport": viewport} if viewport else {}))
    for place in ("#/labels", "#/cluster/0/0"):
        go(page, place)
        page.wait_for_timeout(150)
        found = axe.Axe().run(page, options={"preload": False}).response["violations"]
        assert [(v["id"], [n["html"] for n in v["nodes"]][:3]) for v in found] == [], place
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.long
def test_without_labels_there_is_no_such_view(open_page, tmp_path):
    features, labels = blobs(identities=6, size=10)
    model = StarFC(adapt="off").fit(features)
    model.report(tmp_path / "plain")
    page = open_page(tmp_path / "plain")
    assert not page.locator("#labels-link").is_visible()
    page.keyboard.press("l")
    assert page.evaluate("location.hash") in ("", "#/overview")
    model.report(tmp_path / "labelled", y=labels)
    text = (tmp_path / "labelled" / "data" / "index.js").read_text()
    assert json.loads(text[text.index("{") : -3])["issues"]["expected"] <= 1
    with pytest.raises(InputError, match="y: needs an integer or a text for each of 60 instances"):
        model.report(tmp_path / "other", y=labels[:5])
    with pytest.raises(InputError, match="thumbnails: between 64 and 256 pixels needed; found 300"):
        model.report(tmp_path / "other", thumbnails=300)
