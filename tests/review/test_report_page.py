"""Drive the page of a report in Chromium from the disk: views, keys, marks, export, themes, size, accessibility."""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from helpers.page import CHROMIUM, go, until
from helpers.review import clique, labels_of, parsed
from helpers.scripts import run_benchmark
from helpers.serving import faces
from starfc.clustering.parsing import Decision, ParsedEdges
from starfc.config.config import load_config
from starfc.data.dataset import Features
from starfc.graph.edges import EdgeList, undirected
from starfc.review.report import write_report
from starfc.runs.cluster import run_inference

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path (apt-get install chromium)")

PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """Forty instances: 0 and 1 are two cliques on a bridge, 2 and 3 are an edge short of being one, 8 are alone."""
    edges = parsed(
        40,
        [
            *clique(range(6)),
            *clique(range(6, 12)),
            (5, 6, 0.7, 0.6),
            *clique(range(12, 20), p=0.95),
            *clique(range(20, 26)),
            (13, 21, 0.8, 0.46),
            *clique(range(26, 32)),
        ],
    )
    features = Features(np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32))
    folder = tmp_path_factory.mktemp("reports")
    given = (labels_of(edges), edges, Decision(0.6, 0.5))
    names = [f"person {row}" for row in range(40)]
    write_report(folder / "images", *given, features=features, images=faces(40), names=names, title="faces")
    write_report(folder / "plain", *given, features=features, title="plain")
    return folder


def entries(page) -> list[str]:
    return page.locator("#cluster-list .entry-title b").all_inner_texts()


@pytest.mark.long
def test_the_overview(open_page, report):
    page = open_page(report / "images")
    assert page.title() == "faces: review"
    figures = page.locator(".figures li").all_inner_texts()
    assert [figure.split("\n")[0] for figure in figures] == ["40", "12", "8", "1", "1"]
    assert page.locator(".bars").first.locator("tbody tr").count() == 4


@pytest.mark.long
def test_a_report_after_rows_were_added_and_removed(open_page, tmp_path):
    """Cluster ids have gaps then, are in no order of size, and a removed row is in no cluster."""
    edges = parsed(11, [*clique(range(4)), *clique(range(4, 10))])
    labels = np.array([1] * 4 + [3] * 6 + [-1])
    write_report(
        tmp_path / "report", labels, edges, Decision(0.6, 0.5), removed=[10], names=[f"face {r}" for r in range(11)]
    )
    page = open_page(tmp_path / "report")
    go(page, "#/clusters")
    page.wait_for_selector(".entry")
    page.select_option("#sort", "size")
    assert entries(page) == ["#3", "#1"]
    assert page.locator("#list-count").inner_text() == "2 of 2 clusters"
    for wanted, told in (("#2", "No cluster 2"), ("10", "Row 10 was removed"), ("face 10", "No name")):
        page.fill("#search", wanted)
        page.press("#search", "Enter")
        until(page, f"document.getElementById('search-results').innerText.includes('{told}')")


@pytest.mark.long
def test_sorting_and_filters(open_page, report):
    page = open_page(report / "images")
    page.get_by_role("link", name="Clusters", exact=True).click()
    page.wait_for_selector(".entry")
    assert entries(page) == ["#0", "#2", "#3", "#1"]  # the doubtful one, then by rising cohesion
    page.select_option("#sort", "size")
    assert entries(page) == ["#0", "#1", "#2", "#3"]
    page.select_option("#sort", "small")
    assert entries(page) == ["#2", "#3", "#1", "#0"]
    page.fill("#smallest", "7")
    page.dispatch_event("#smallest", "change")
    assert entries(page) == ["#1", "#0"]
    page.select_option("#show", "cut")
    assert entries(page) == ["#0"]
    assert page.inner_text("#list-count") == "1 of 12 clusters"
    assert "1 edge holds 6 of 12" in page.inner_text("#cluster-list")


@pytest.mark.long
def test_a_cluster_with_its_bridge_and_members(open_page, report):
    page = open_page(report / "images")
    go(page, "#/clusters")
    page.locator("#cluster-list a").first.click()
    page.wait_for_selector(".members .tile")
    assert page.inner_text("#detail h2").startswith("Cluster 0")
    panel = page.locator(".panel", has_text="Weakest bridge")
    assert panel.locator(".row").all_inner_texts() == ["row 5", "row 6"]
    assert "0.700" in panel.inner_text()
    assert "0.600" in panel.inner_text()
    assert "falls into 6 and 6" in panel.inner_text()
    images = panel.locator(".thumb").evaluate_all("all => all.map((x) => getComputedStyle(x).backgroundImage)")
    assert len(images) == 2
    assert all("thumbs/0.webp" in image for image in images)
    assert page.locator(".members .tile").count() == 12
    assert page.locator(".members .tile.piece").count() == 6
    page.locator(".member-head select").nth(1).select_option("piece")
    assert page.locator(".members .tile").count() == 6
    page.get_by_role("button", name="Map").click()
    assert page.locator("canvas").bounding_box()["width"] > 300


@pytest.mark.long
def test_without_pictures_members_lie_on_a_map(open_page, report):
    page = open_page(report / "plain")
    go(page, "#/cluster/0")
    canvas = page.locator("canvas")
    canvas.wait_for()
    page.wait_for_timeout(50)
    coloured = "x => new Set(x.getContext('2d').getImageData(0, 0, x.width, x.height).data).size"
    assert canvas.evaluate(coloured) > 10
    where = page.evaluate("detail.point(3, detail.canvas.clientWidth, detail.canvas.clientHeight)")
    canvas.click(position={"x": where[0], "y": where[1]})
    assert page.evaluate("detail.selected") == 3
    assert page.locator(".selection b").inner_text() == f"row {page.evaluate('detail.data.rows[3]')}"
    # one scale for both axes, and every point within: a cluster as high as it is wide, in a low canvas
    xy = np.array([[0, 0], [999, 0], [999, 999], [500, 998]])
    drawn = page.evaluate(
        """xy => {
        const map = { ...detail, data: { xy: xy.flat() }, highest: 999, point: detail.point };
        return xy.map((_, at) => map.point(at, 480, 327));
    }""",
        xy.tolist(),
    )
    np.testing.assert_allclose(np.subtract(drawn, drawn[0]), xy * 303 / 999, atol=1e-6)
    assert (np.array(drawn) > 0).all()
    assert (np.array(drawn) < [480, 327]).all()


@pytest.mark.long
def test_search_by_row_cluster_and_name(open_page, report):
    page = open_page(report / "images")

    def search(text):
        page.fill("#search", text)
        page.press("#search", "Enter")

    search("27")
    page.wait_for_selector(".selection b")
    assert page.inner_text(".selection b") == "row 27"
    assert page.inner_text("#detail h2").startswith("Cluster 3")
    search("#1")
    until(page, "detail.label === 1")
    search("person 3")
    page.wait_for_selector("#search-results a")
    assert page.locator("#search-results a").count() == 11  # 3, 30 to 39
    page.locator("#search-results a").first.click()
    until(page, "detail.label === 0 && detail.selected !== null")
    for text, answer in (("#99", "No cluster 99"), ("4711", "No row 4711"), ("nobody", "No name with")):
        search(text)
        until(page, f"document.getElementById('search-results').innerText.startsWith('{answer}')")


@pytest.mark.long
def test_keys_lead_through_everything(open_page, report):
    page = open_page(report / "images")
    page.keyboard.press("c")
    page.keyboard.press("j")
    until(page, "detail.label === 0 && detail.data !== null")
    page.keyboard.press("j")
    until(page, "detail.label === 2 && detail.data !== null")
    page.keyboard.press("k")
    until(page, "detail.label === 0 && detail.data !== null")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("detail.selected") == 0
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("w")  # no mark behind the open dialogue
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    assert page.inner_text("#mark-count") == "0"
    page.keyboard.press("/")
    page.keyboard.type("w")
    assert page.input_value("#search") == "w"
    page.keyboard.press("Escape")
    page.keyboard.press("m")
    page.wait_for_selector(".merge")
    page.keyboard.press("j")
    page.keyboard.press("y")
    assert page.inner_text("#mark-count") == "1"
    page.keyboard.press("e")
    page.locator("#view-marks h2").wait_for()
    page.keyboard.press("o")
    page.locator("#view-overview").wait_for()


@pytest.mark.long
def test_focus_is_visible_and_the_list_can_be_tabbed_through(open_page, report):
    page = open_page(report / "images")
    go(page, "#/clusters")
    page.focus("#smallest")
    for _ in range(2):  # the list, then its first entry
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "entry"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    until(page, "detail.label === 0 && detail.data !== null")


@pytest.mark.long
def test_marks_are_kept_exported_and_undone(open_page, report, tmp_path):
    page = open_page(report / "images")
    go(page, "#/cluster/0")
    page.wait_for_selector(".members .tile")
    page.get_by_role("button", name="Split here").click()
    page.get_by_role("button", name="This cluster is wrong").click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.get_by_role("button", name="This is wrong").click()
    wrong, medoid = page.evaluate("[detail.data.rows[1], detail.data.rows[0]]")
    assert page.locator(".tile.wrong").count() == 1
    go(page, "#/merges")
    page.locator(".merge").get_by_role("button", name="Same person").click()
    assert page.locator(".merge [aria-pressed=true]").inner_text() == "Same person"
    assert page.inner_text("#mark-count") == "4"
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.inner_text("#mark-count") == "4"

    go(page, "#/marks")
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(tmp_path / "marks.json")
    content = json.loads((tmp_path / "marks.json").read_text())
    assert (content["format"], content["version"], content["num_instances"]) == ("starfc-marks", 1, 40)
    assert content["must_link"] == [[13, 21]]
    assert sorted(content["cannot_link"]) == sorted([[5, 6], sorted([wrong, medoid])])
    assert content["wrong_clusters"] == [{"cluster": 0, "size": 12, "medoid": medoid}]
    assert [mark["type"] for mark in content["marks"]] == ["split", "wrong cluster", "wrong instance", "same"]

    page.keyboard.press("u")
    assert page.inner_text("#mark-count") == "3"
    assert page.evaluate("marks.exported().must_link") == []
    page.get_by_role("button", name="Take back: split 0").click()
    assert page.inner_text("#mark-count") == "2"
    page.click("#undo")
    assert page.inner_text("#mark-count") == "3"
    page.get_by_role("button", name="Take all back").click()
    assert page.inner_text("#mark-count") == "0"


@pytest.mark.long
def test_the_same_mark_twice_is_none_and_the_other_one_replaces_it(open_page, report):
    page = open_page(report / "plain")
    go(page, "#/merges")
    page.wait_for_selector(".merge")
    same, different = (page.locator(".merge").get_by_role("button", name=name) for name in ("Same person", "Different"))
    same.click()
    different.click()
    assert page.evaluate("marks.exported().cannot_link") == [[13, 21]]
    assert page.evaluate("marks.exported().must_link") == []
    different.click()
    assert page.inner_text("#mark-count") == "0"


@pytest.mark.long
@pytest.mark.parametrize("system", ["light", "dark"])
def test_light_and_dark(open_page, report, system):
    page = open_page(report / "images", color_scheme=system)
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(246, 246, 244)", "rgb(21, 23, 26)"
    first, second = (light, dark) if system == "light" else (dark, light)
    assert page.evaluate(ground) == first
    page.get_by_role("button", name="Theme").click()
    assert page.evaluate(ground) == second
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate(ground) == second


@pytest.mark.long
def test_a_folder_that_lacks_a_file_says_so(open_page, report, browser, tmp_path):
    shutil.copytree(report / "plain", tmp_path / "torn")
    (tmp_path / "torn" / "data" / "clusters.js").unlink()
    with browser.new_context() as context:
        page = context.new_page()
        page.goto((tmp_path / "torn" / "index.html").as_uri())
        until(page, "document.getElementById('main').innerText.includes('cannot be read')")


@pytest.mark.long
def test_a_phone_shows_the_list_then_the_cluster(open_page, report):
    page = open_page(report / "images", viewport=PHONE, has_touch=True)
    for place in ("#/overview", "#/clusters", "#/cluster/0", "#/merges", "#/marks"):
        go(page, place)
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], place
    go(page, "#/clusters")
    assert not page.locator("#detail").is_visible()
    page.locator("#cluster-list a").first.click()
    page.wait_for_selector(".members .tile")
    assert not page.locator("#cluster-list").is_visible()
    page.get_by_role("link", name="← List").click()
    page.locator("#cluster-list").wait_for()


@pytest.mark.long
@pytest.mark.parametrize("system", ["light", "dark"])
@pytest.mark.parametrize("kind", ["images", "plain"])
def test_nothing_that_axe_calls_serious(open_page, report, kind, system):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = open_page(report / kind, color_scheme=system)
    for place in ("#/overview", "#/clusters", "#/cluster/0", "#/merges", "#/marks"):
        go(page, place)
        page.wait_for_timeout(150)
        if place == "#/cluster/0":
            page.keyboard.press("ArrowRight")
            page.keyboard.press("w")
        found = axe.Axe().run(page, options={"preload": False}).response["violations"]
        grave = [
            (v["id"], [n["html"] for n in v["nodes"]][:3]) for v in found if v["impact"] in ("serious", "critical")
        ]
        assert grave == [], place
    page.keyboard.press("?")
    found = axe.Axe().run(page, options={"preload": False}).response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """125,000 instances, of which 11,000 are one cluster: rings, so that every cluster has a cut."""
    n, sizes = 125_000, [11_000, *[40] * 2500, *[7] * 2000]
    rows, cols, start = [], [], 0
    for size in sizes:
        at = np.arange(size)
        rows.append(start + at)
        cols.append(start + (at + 1) % size)
        start += size
    assert start == n
    rows, cols = np.concatenate(rows), np.concatenate(cols).astype(np.int32)
    edges = undirected(EdgeList.from_rows(rows, cols, np.full(n, 0.9, np.float32), n))
    parsed_edges = ParsedEdges(edges, np.full(len(edges), 0.8, np.float32), np.ones(len(edges), bool))
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("large") / "report"
    write_report(
        folder,
        np.repeat(np.arange(len(sizes)), sizes),
        parsed_edges,
        Decision(0.6, 0.5),
        features=Features(rng.normal(size=(n, 4)).astype(np.float32)),
        images=rng.integers(0, 256, (n, 8, 8), np.uint8),
    )
    return folder


@pytest.mark.long
def test_a_large_report_opens_and_scrolls(open_page, large):
    page = open_page(large)
    assert page.evaluate("starfc.index.instances") == 125_000
    go(page, "#/clusters")
    assert page.locator("#cluster-list li").count() < 60
    page.evaluate("document.getElementById('cluster-list').scrollTop = 60 * 4000")
    until(page, "document.querySelector('#cluster-list li:nth-child(8)')?.ariaPosInSet > 3900")
    go(page, "#/cluster/0")
    page.wait_for_selector(".members .tile")
    assert page.locator(".members .tile").count() < 400
    last = page.evaluate("detail.data.rows[10999]")
    for part in (0.3, 0.7, 1):
        page.evaluate("part => { detail.scroller.scrollTop = part * detail.scroller.scrollHeight; }", part)
        page.wait_for_timeout(30)
    page.wait_for_selector(f".members .tile[aria-label^='row {last},']")
    page.get_by_role("button", name="Map").click()
    page.wait_for_selector("canvas")
    started = time.monotonic()
    page.keyboard.press("ArrowRight")
    page.evaluate("1")
    assert time.monotonic() - started < 5  # does not freeze; speed is measured elsewhere
    assert page.evaluate("document.querySelectorAll('*').length") < 3000


@pytest.mark.long
def test_a_list_taller_than_a_browser_s_elements_scrolls_from_end_to_end(open_page, report):
    page = open_page(report / "plain")
    seen = page.evaluate("""() => {
        const scroller = h("div");
        Object.assign(scroller.style, { position: "fixed", inset: "0", overflow: "auto", height: "600px" });
        document.body.append(scroller);
        const list = new VirtualList(scroller, { height: () => 60, render: (at) => h("li", {}, String(at)) });
        scroller.append(list.body);
        list.set(2000000);
        const inSight = () => [...list.body.children].filter((item) => {
            const box = item.getBoundingClientRect();
            return box.top >= 0 && box.bottom <= 600;
        }).map((item) => Number(item.textContent));
        const seen = { top: inSight() };
        for (const at of [777777, 1999999, 1000000, 1000003, 0]) { list.show(at); seen[at] = inSight(); }
        scroller.scrollTop = 1e9;
        list.draw();
        seen.end = inSight();
        scroller.remove();
        return seen;
    }""")
    assert seen.pop("top") == list(range(10))
    assert seen.pop("end")[-1] == 1_999_999
    for at, rows in seen.items():
        assert int(at) in rows
        assert 9 <= len(rows) <= 10
        assert rows == list(range(rows[0], rows[0] + len(rows)))


@pytest.mark.long
def test_a_search_in_a_large_report(open_page, large):
    page = open_page(large)
    page.fill("#search", "124999")
    page.press("#search", "Enter")
    page.wait_for_selector(".selection b")
    assert page.inner_text(".selection b") == "row 124999"
    assert page.inner_text("#detail h2").startswith("Cluster 4500")


@pytest.mark.long
def test_the_benchmark(workspace, monkeypatch):
    config = load_config(workspace / "config.py", {"tau1": 0.3, "tau2": 0.4})
    run_inference(config, out=workspace / "run", keep_edges=True)
    labels = workspace / "data" / "labels" / "part1_test.meta"
    where = ("--run", workspace / "run", "--labels", labels, "--folder", workspace / "bench")
    more = ("--openings", 1, "--out", workspace / "result.json")
    with ThreadPoolExecutor(1) as other:  # this thread has a browser, and can have no second one
        other.submit(run_benchmark, monkeypatch, "report.py", *where, *more).result()
    result = json.loads((workspace / "result.json").read_text())
    assert result["instances"] == 180
    assert result["page"]["open_ms"] > 0
    assert result["ranking"]["clusters_of_4"] == result["clusters"]
