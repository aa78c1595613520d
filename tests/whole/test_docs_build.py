"""Check that the documentation builds without a warning, and that its pages fetch nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest

from helpers.paths import ROOT

FETCHED = re.compile(r"""<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=["']?(?:https?:)?//[^"'\s>]*""")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("mkdocs", "mkdocstrings", "mkdocstrings_handlers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: the extra `docs`")
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_made(site):
    sources = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert len(sources) > 20
    for source in sources:
        assert (site / source.with_suffix(".html")).is_file(), source


def test_every_name_of_the_interface_is_described(site):
    named = 0
    for page in (ROOT / "docs" / "api").glob("*.md"):
        made = (site / "api" / page.with_suffix(".html").name).read_text(encoding="utf-8")
        assert not re.search(r":(func|class|meth|mod|data):", made), page.name  # roles have become links
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert f'id="{name}"' in made, name
            named += 1
    assert named > 50


def test_pages_fetch_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        assert not (found := FETCHED.findall(page.read_text(encoding="utf-8"))), (page.name, found)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style.name
