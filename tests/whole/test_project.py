"""Check that the files around the code agree with the code."""

from __future__ import annotations

import ast
import re

import pytest

import starfc
from helpers.paths import ROOT


def test_the_version_has_an_entry_in_the_changelog():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(starfc.__version__)}\] - \d{{4}}-\d\d-\d\d$", text, re.MULTILINE)
    assert text.index("## [Unreleased]") < text.index(f"## [{starfc.__version__}]")


def test_the_version_is_written_once():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in pyproject
    assert "starfc.version.__version__" in pyproject
    assert "\nversion:" not in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_contributors_are_sent_to_places_that_exist():
    """Of each row `file` | `name` … of the tables of CONTRIBUTING.md: the file is there, and the names are in it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    checked = 0
    for place, what in re.findall(r"^\| `([\w./]+)` \| (.+) \|$", text, re.MULTILINE):
        assert (ROOT / place).exists(), place
        if (ROOT / place).is_file() and place.endswith(".py"):
            content = (ROOT / place).read_text(encoding="utf-8")
            for name in re.findall(r"`([A-Za-z_]\w*)(?:\.\w+)?`", what):
                assert re.search(rf"\b{name}\b", content), (place, name)
                checked += 1
    assert checked > 30
    for place in re.findall(r"`((?:src|scripts|benchmarks|docs|tests|\.ci)/[\w./]*)`", text):
        assert (ROOT / place).exists(), place
    for module in re.findall(r"python -m (tests\.[\w.]+)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


@pytest.mark.long
def test_rooms_import_what_the_architecture_says():
    """docs/architecture.md lists the rooms from the ground up, and what each imports: none imports one above it."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE))
    rooms = list(table)
    package = ROOT / "src" / "starfc"
    folders = {path.name for path in package.iterdir() if (path / "__init__.py").is_file()}
    assert set(rooms) == folders - {"commands", "recipes"}
    for at, room in enumerate(rooms):
        found = set()
        for path in (package / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("starfc."):
                    found.add(node.module.split(".")[1])
        found &= folders - {room}
        assert found <= {*rooms[:at], "recipes"}, room
        said = set(re.findall(r"`(\w+)`", table[room]))
        if "all above" not in table[room]:
            assert found - {"recipes"} == said, room


def test_no_module_is_longer_than_a_reader_likes():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "src").rglob("*.py")}
    assert {str(path): length for path, length in lengths.items() if length > 450} == {}
