"""Run the examples unchanged on the bundled sample."""

from __future__ import annotations

import subprocess
import sys
from xml.etree import ElementTree

import pytest

from helpers.paths import ROOT


@pytest.mark.long
def test_from_numpy_to_a_report(tmp_path):
    script = ROOT / "examples" / "numpy_to_report.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) < 30
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "8000 instances" in done.stdout
    assert "joined clusters that existed before" in done.stdout
    assert "cluster 0" in done.stdout
    assert (tmp_path / "index.html").is_file()
    assert list((tmp_path / "thumbs").iterdir())


def test_names_as_tags_beside_the_pictures(tmp_path):
    """The sidecars are well-formed XMP with the tags of everybody in a picture; those that exist stay."""
    files = [tmp_path / name for name in ("a & b.jpg", "c.jpg", "d.jpg", "e.jpg")]
    rows = [(files[0], "Anna <1>"), (files[0], "Bo/Bob"), (files[1], "Anna <1>"), (files[2], "Cy"), (files[3], "")]
    text = "row,file,cluster,name,confidence\n" + "".join(
        f'{n},"{file}",0,"{name}",1\n' for n, (file, name) in enumerate(rows)
    )
    (tmp_path / "clusters.csv").write_text(text)
    (tmp_path / "d.jpg.xmp").write_text("mine")
    script = ROOT / "examples" / "xmp_sidecars.py"
    given = [sys.executable, str(script), str(tmp_path / "clusters.csv")]
    done = subprocess.run(given, capture_output=True, text=True, check=False)
    assert done.stdout == "2 sidecars written, 1 were there and are unchanged\n", done.stderr
    assert sorted(path.name for path in tmp_path.glob("*.xmp")) == ["a & b.jpg.xmp", "c.jpg.xmp", "d.jpg.xmp"]
    assert (tmp_path / "d.jpg.xmp").read_text() == "mine"
    root = ElementTree.fromstring((tmp_path / "a & b.jpg.xmp").read_text())
    tags = root.find(".//{http://www.digikam.org/ns/1.0/}TagsList")
    assert [one.text for one in tags.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li")] == [
        "People/Anna <1>", "People/Bo_Bob",
    ]  # fmt: skip
