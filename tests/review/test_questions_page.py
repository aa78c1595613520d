"""Drive the questions of the page in Chromium: from the disk, and with the server of ``starfc review``."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from helpers.page import CHROMIUM, DESKTOP, go, until
from helpers.serving import make_run, served
from starfc.answers.marks_file import read_marks
from starfc.commands import app
from starfc.runs.apply import Marked

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path (apt-get install chromium)"),
    pytest.mark.long,
]

PHONE = {"width": 390, "height": 844}
LOOKS = [  # the others run on request
    pytest.param(DESKTOP, "light", id="desktop-light"),
    pytest.param(PHONE, "dark", id="phone-dark"),
    pytest.param(DESKTOP, "dark", id="desktop-dark", marks=pytest.mark.slow),
    pytest.param(PHONE, "light", id="phone-light", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with pictures, and its report."""
    place = tmp_path_factory.mktemp("made")
    run = make_run(place)
    done = CliRunner().invoke(
        app, ["report", str(run), "-o", str(place / "report"), "--images", str(place / "faces")], catch_exceptions=False
    )
    assert done.exit_code == 0, done.stderr
    return place


@pytest.fixture
def server(run):
    pytest.importorskip("werkzeug", reason="werkzeug is not installed (extra review)")
    with served(run, "--images", run.parent / "faces") as server:
        yield server


@pytest.fixture
def open_served(browser, server):
    """Open the page of the server; a message in the console, an error or a request to elsewhere fails the test."""
    opened = []

    def open_served(**options):
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        page, troubles = context.new_page(), []
        page.on("console", lambda message: troubles.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on(
            "request",
            lambda request: (
                troubles.append(f"request: {request.url}")
                if not request.url.startswith((server.address, "data:", "blob:"))
                else None
            ),
        )
        page.goto(server.address)
        page.wait_for_selector("html[data-ready]")
        opened.append((context, troubles))
        return page

    yield open_served
    for context, troubles in opened:
        context.close()
        assert troubles == []


def violations(page) -> list:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(page, options={"preload": False}).response["violations"]
    return [(v["id"], v["impact"], [n["html"] for n in v["nodes"]][:3]) for v in found]


def renew(page, key: str) -> None:
    """Press a key after which the page loads again, with new lists."""
    with page.expect_navigation():
        page.keyboard.press(key)
    page.wait_for_selector("html[data-ready]")


def told(page, place) -> str:
    return page.locator(place).inner_text()


def test_questions_from_the_disk_by_keys_only(open_page, finished, tmp_path):
    page = open_page(finished / "report")
    page.wait_for_selector(".question .sides")
    total = page.evaluate("questions.all.length")
    first, second = page.evaluate("questions.all.slice(0, 2)")
    assert page.locator(".side-of .thumb").count() == sum(map(len, first["shown"]))
    assert told(page, "#answered") == f"0 of {total} questions"
    page.keyboard.press("y")
    page.keyboard.press("s")
    assert told(page, "#answered") == f"2 of {total} questions"
    assert told(page, "#mark-count") == "1"
    changed = first["sizes"][0] * first["sizes"][1] if first["kind"] == "join" else 0
    assert told(page, "#pairs") == f"{changed:,} {'pair' if changed == 1 else 'pairs'} would change"
    page.keyboard.press("u")  # the skipped one comes again
    assert page.evaluate("questions.current.a") == second["a"]
    page.keyboard.press("n")
    page.reload()
    page.wait_for_selector("#answered")
    assert told(page, "#answered") == f"2 of {total} questions"
    for _ in range(total - 2):
        page.keyboard.press("s")
    assert "All questions are done" in told(page, "#view-questions")
    page.keyboard.press("e")
    with page.expect_download() as download:
        page.keyboard.press("Tab")
        page.click("#export")
    download.value.save_as(tmp_path / "marks.json")
    marks = read_marks(tmp_path / "marks.json", 200)
    assert [answer.same for answer in marks.answers] == [True, False]
    assert [list(answer.a) for answer in marks.answers] == [first["a"], second["a"]]


def test_the_exported_answers_can_be_applied(open_page, finished, run, tmp_path):
    page = open_page(finished / "report")
    page.wait_for_selector(".question .sides")
    page.keyboard.press("y")
    page.keyboard.press("n")
    go(page, "#/marks")
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(tmp_path / "marks.json")
    done = CliRunner().invoke(app, ["apply", str(run), str(tmp_path / "marks.json")], catch_exceptions=False)
    assert done.exit_code == 0
    assert len(Marked(run).marks.answers) == 2


def test_the_clusters_with_most_expected_strangers_come_first(open_page, finished):
    page = open_page(finished / "report")
    page.keyboard.press("c")
    page.wait_for_selector(".entry")
    shown = page.evaluate("clusterList.order.map((label) => [label, starfc.clusters.strangers[label]])")
    marked = Marked(finished / "run")
    expected = marked.doubts()
    for label, strangers in shown:
        assert abs(1000 * expected[marked.labels == label][0] - strangers) <= 1
    assert [strangers for _, strangers in shown] == sorted((strangers for _, strangers in shown), reverse=True)
    if shown[0][1]:
        assert page.locator(".entry .meter").first.get_attribute("title").startswith("expected share of strangers")


@pytest.mark.parametrize(("size", "system"), LOOKS)
def test_no_violation_that_axe_finds(open_page, finished, size, system):
    page = open_page(finished / "report", viewport=size, color_scheme=system)
    page.wait_for_selector(".question .sides")
    page.wait_for_timeout(150)
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_a_phone_answers_by_touch(open_page, finished):
    page = open_page(finished / "report", viewport=PHONE, has_touch=True)
    page.wait_for_selector(".question .sides")
    for name in ("Yes", "No", "Skip"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box["height"] >= 44
        assert box["y"] + box["height"] <= PHONE["height"]
    page.get_by_role("button", name="No").tap()
    assert told(page, "#answered").startswith("1 of")


def test_answers_are_applied_as_they_come_and_the_lists_renew(open_served, server, run):
    page = open_served()
    page.wait_for_selector(".question .sides")
    before = Marked(run).labels
    first = page.evaluate("questions.current")
    page.keyboard.press("y" if first["kind"] == "join" else "n")
    until(page, "server.state.steps === 1")
    pairs = first["sizes"][0] * first["sizes"][1]
    until(page, f"document.getElementById('pairs').innerText.startsWith('{pairs:,} pair')")
    now = Marked(run)
    assert (now.labels != before).any()
    assert len(now.marks.answers) == 1
    until(page, "questions.current !== null")
    page.keyboard.press("s")
    page.evaluate("marks.cluster(0, 1, 0)")
    renew(page, "c")  # the lists are made again
    assert page.evaluate("[...marks.standing.values()].map((mark) => mark.type)") == ["skipped", "wrong cluster"]
    assert page.evaluate("starfc.index.served.steps") == 1
    assert page.evaluate("location.hash") == "#/clusters"
    assert page.evaluate("starfc.index.clusters") == now.num_clusters
    sizes = np.bincount(now.labels).tolist()
    assert page.evaluate("starfc.clusters.size") == sizes
    page.keyboard.press("q")
    page.wait_for_selector(".question")
    page.keyboard.press("u")  # a step from before the page was loaded again
    until(page, "server.state.steps === 0")
    np.testing.assert_array_equal(Marked(run).labels, before)


def test_undo_brings_a_question_back_and_skip_changes_nothing(open_served, run):
    page = open_served()
    page.wait_for_selector(".question .sides")
    first = page.evaluate("questions.current.a")
    page.keyboard.press("s")
    assert page.evaluate("questions.current?.a") != first
    page.keyboard.press("u")
    until(page, "questions.current !== null")
    assert page.evaluate("questions.current.a") == first
    page.keyboard.press("y")
    until(page, "server.state.steps === 1")
    page.keyboard.press("u")
    until(page, "server.state.steps === 0")
    until(page, "questions.current !== null")
    assert page.evaluate("questions.current.a") == first
    assert len(Marked(run).marks) == 0


def test_a_name_is_kept_and_shown_everywhere(open_served, run):
    page = open_served()
    go(page, "#/cluster/0")
    page.wait_for_selector(".members .tile")
    page.keyboard.press("a")
    page.keyboard.type("Ada <b>L.</b>")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#detail h2')?.innerText.startsWith('Cluster 0, Ada <b>L.</b>')")
    assert Marked(run).names == {0: "Ada <b>L.</b>"}
    assert page.locator("#cluster-list .called").first.inner_text() == "Ada <b>L.</b>"
    page.fill("#search", "ada")
    page.press("#search", "Enter")
    page.wait_for_selector("#search-results a")
    assert told(page, "#search-results a >> nth=0") == "Cluster 0, Ada <b>L.</b>"
    page.reload()
    until(page, "document.querySelector('#detail h2')?.innerText.startsWith('Cluster 0, Ada')")


def test_marks_are_applied_and_pictures_open_from_the_server(open_served, server, run):
    page = open_served()
    go(page, "#/cluster/0")
    page.wait_for_selector(".members .tile")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    row, medoid = page.evaluate("[detail.data.rows[1], detail.data.rows[0]]")
    href = page.locator("#picture").evaluate("link => link.href")
    assert href == f"{server.address}picture/{row}"
    page.keyboard.press("x")
    until(page, "server.state.steps === 1")
    labels = Marked(run).labels
    assert labels[row] != labels[medoid]
    assert page.locator("#stale").is_visible()
    renew(page, "r")
    assert page.evaluate("starfc.index.served.steps") == 1
    assert not page.locator("#stale").is_visible()


@pytest.mark.parametrize(
    "size", [pytest.param(DESKTOP, id="desktop", marks=pytest.mark.slow), pytest.param(PHONE, id="phone")]
)
def test_no_violation_that_axe_finds_with_the_server(open_served, size):
    page = open_served(viewport=size)
    page.wait_for_selector(".question .sides")
    assert violations(page) == []
    go(page, "#/cluster/0")
    page.locator(".members").scroll_into_view_if_needed()  # tiles are made when they come into view
    page.wait_for_selector(".members .tile")
    page.keyboard.press("a")
    page.wait_for_selector(".naming")
    page.wait_for_timeout(150)
    assert [v for v in violations(page) if v[1] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_the_page_says_when_the_server_has_ended(browser, server):
    with browser.new_context(viewport=DESKTOP) as context:
        page = context.new_page()
        page.goto(server.address)
        page.wait_for_selector(".question .sides")
        server.end()
        asked = page.evaluate("questions.current.a")
        page.keyboard.press("y")
        until(page, "document.getElementById('failed').innerText.includes('has ended')")
        assert page.evaluate("questions.current.a") == asked  # not counted as answered


def test_the_file_of_an_export_is_json_with_answers(open_page, finished):
    page = open_page(finished / "report")
    page.wait_for_selector(".question .sides")
    page.keyboard.press("n")
    content = json.loads(page.evaluate("JSON.stringify(marks.exported())"))
    assert content["num_instances"] == 200
    assert [entry["same"] for entry in content["answers"]] == [False]
    assert content["marks"] == []
