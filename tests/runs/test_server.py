"""Test the server of ``starfc review``: what it applies, whom it refuses, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from helpers.paths import ROOT
from helpers.serving import ROWS, make_run, served
from starfc.runs.apply import Marked
from starfc.runs.server import MOST_BYTES

pytest.importorskip("werkzeug", reason="werkzeug is not installed (extra review)")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def server(made, tmp_path_factory):
    place = tmp_path_factory.mktemp("served")
    shutil.copytree(made.parent, place / "copy")
    (place / "copy" / "secret.js").write_text("secret")
    with served(place / "copy" / "run", "--images", place / "copy" / "faces") as server:
        server.run = place / "copy" / "run"
        yield server


def ask(server, path, body=None, *, method=None, headers=None, token=None):
    """Send a request as its page does, apart from what is given; return status, headers and content."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    given = {} if body is None else {"Content-Type": "application/json", "Origin": f"http://127.0.0.1:{server.port}"}
    given = {name: value for name, value in {**given, **(headers or {})}.items() if value is not None}
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    where = f"/{server.token if token is None else token}/{path}"
    try:
        connection.request(method or ("GET" if body is None else "POST"), where, content, given)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()
    finally:
        connection.close()


def answers(server, *same) -> dict:
    asked = json.loads(ask(server, f"api/questions?n={len(same)}")[2])["questions"]
    given = [{**question, "same": one} for question, one in zip(asked, same, strict=False)]
    return {"format": "starfc-marks", "version": 1, "num_instances": ROWS, "answers": given}


@pytest.mark.long
def test_answers_names_and_undo_change_the_run_at_once(server):
    before = Marked(server.run).labels
    question = json.loads(ask(server, "api/questions?n=1")[2])["questions"][0]
    same = question["kind"] == "join"
    status, _, content = ask(server, "api/answers", answers(server, same))
    applied = json.loads(content)
    assert (status, applied["changed"]["steps"], applied["changed"]["answers"]) == (200, 1, 1)
    after = Marked(server.run)
    assert len(after.marks.answers) == 1
    assert applied["changed"]["pairs"] == applied["pairs"] == question["sizes"][0] * question["sizes"][1]
    assert (after.labels != before).sum() == applied["rows"] > 0
    state = json.loads(ask(server, "api/state")[2])
    assert 0 < state["expected"]["precision"] <= 1
    status, _, content = ask(server, "api/names", {"cluster": 0, "name": "Ada"})
    assert (status, json.loads(content)) == (200, {"names": {"0": "Ada"}})
    assert Marked(server.run).names == {0: "Ada"}
    index = ask(server, f"{page(server)}/data/clusters.js")[2].decode()
    assert '"called":{"0":"Ada"}' in index
    status, _, content = ask(server, "api/undo", {})
    assert (status, json.loads(content)["changed"]) == (200, {"steps": 0, "answers": 0, "pairs": 0})
    np.testing.assert_array_equal(Marked(server.run).labels, before)
    assert ask(server, "api/undo", {})[0] == 409
    assert ask(server, "api/names", {"cluster": 0, "name": None})[0] == 200


def page(server) -> str:
    """The present version of the page."""
    status, headers, _ = ask(server, "")
    assert status == 302
    return headers["Location"].removesuffix("/index.html")


@pytest.mark.long
def test_an_older_version_of_the_page_leads_to_the_present_one(server):
    first = page(server)
    assert ask(server, f"{first}/index.html")[0] == 200
    ask(server, "api/names", {"cluster": 1, "name": "Ben"})
    status, headers, _ = ask(server, f"{first}/index.html")
    assert (status, headers["Location"]) == (302, "../")
    assert int(page(server)) == int(first) + 1
    assert ask(server, f"{page(server)}/thumbs/0.webp")[1]["Content-Type"] == "image/webp"


@pytest.mark.long
def test_pictures_come_in_full_size_and_may_run_no_scripts(server):
    status, headers, content = ask(server, "picture/7")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert content == (server.run.parent / "faces" / "007.png").read_bytes()
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "sandbox" in headers["Content-Security-Policy"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"token": ""}, 404),
        ({"token": "x" * 43}, 404),
        ({"token": "%C3%A9"}, 404),
        ({"headers": {"Host": "evil.example"}}, 403),
        ({"headers": {"Host": "127.0.0.1"}}, 403),
        ({"headers": {"Origin": "http://evil.example"}}, 403),
        ({"headers": {"Origin": "null"}}, 403),
    ],
)
@pytest.mark.parametrize("path", ["", "api/state", "api/undo"])
def test_requests_from_elsewhere_are_refused(server, given, status, path):
    body = {} if path == "api/undo" else None
    found, headers, content = ask(server, path, body, **given)
    assert found == status
    assert set(json.loads(content)) == {"error"}
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.long
def test_a_change_needs_an_origin_and_json(server):
    assert ask(server, "api/undo", {}, headers={"Origin": None})[0] == 403
    assert ask(server, "api/undo", {}, headers={"Content-Type": "text/plain"})[0] == 415
    assert ask(server, "api/undo", {}, headers={"Content-Type": None})[0] == 415
    assert ask(server, "api/undo", method="PUT", headers={"Origin": f"http://127.0.0.1:{server.port}"})[0] == 405
    assert ask(server, "api/undo")[0] == 404  # GET changes nothing


@pytest.mark.long
@pytest.mark.parametrize(
    "path",
    [
        "../secret.js", "1/../../secret.js", "1/data/../../../secret.js", "1/data/%2e%2e/%2e%2e/secret.js",
        "1/data/..%2f..%2fsecret.js", "1/data//etc/passwd", "//etc/passwd", "%2fetc/passwd", "1/.lock", "1/files.json",
        "1/data/index.js%00", "1/data/index.js\\..\\x.js", "picture/-1", "picture/x", "picture/99999999", "open.html",
        "1/thumbs/../../1/index.html", "1/data/", "1/", "api/", "api/../1/index.html",
    ],
)  # fmt: skip
def test_no_path_leads_outside_the_page(server, path):
    status, _, content = ask(server, path)
    assert status == 404
    assert b"secret" not in content
    assert b"root:" not in content


@pytest.mark.long
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[" * 100_000, b"null", b'{"format": "starfc-marks"}', b"\xff\xfe",
        {"format": "starfc-marks", "version": 1, "num_instances": ROWS, "must_link": [[0, "1"]]},
        {"format": "starfc-marks", "version": 2, "num_instances": ROWS},
    ],
)  # fmt: skip
def test_bodies_that_are_no_marks(server, body):
    status, _, content = ask(server, "api/answers", body)
    assert status == 400
    assert json.loads(content)["error"]


@pytest.mark.long
def test_marks_that_cannot_be_applied_change_nothing(server):
    before = Marked(server.run).labels
    marks = {"format": "starfc-marks", "version": 1, "num_instances": ROWS}
    assert ask(server, "api/answers", {**marks, "num_instances": ROWS + 1})[0] == 409
    status, _, content = ask(server, "api/answers", {**marks, "must_link": [[0, 5]], "cannot_link": [[5, 0]]})
    assert status == 409
    assert "in both must_link and cannot_link" in json.loads(content)["error"]
    assert ask(server, "api/answers", {**marks, "must_link": [[0, ROWS]]})[0] == 409
    for name in ("", "a\nb", "x" * 201):
        assert ask(server, "api/names", {"cluster": 0, "name": name})[0] == 409
    assert ask(server, "api/names", {"cluster": 4711, "name": "Ada"})[0] == 409
    assert ask(server, "api/names", {"cluster": 0, "name": "Ada", "more": 1})[0] == 400
    np.testing.assert_array_equal(Marked(server.run).labels, before)
    assert ask(server, "api/questions?n=0")[0] == ask(server, "api/questions?n=x")[0] == 400


@pytest.mark.long
def test_a_body_that_is_too_large_is_refused(server):
    assert ask(server, "api/answers", b" " * (MOST_BYTES + 1))[0] == 413
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:  # a length that is a lie
        head = f"POST /{server.token}/api/answers HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        head += f"Origin: http://127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
        raw.sendall((head + "Content-Length: 99999999999\r\n\r\n{").encode())
        assert b" 413 " in raw.recv(100)
    assert ask(server, "api/state")[0] == 200


@pytest.mark.long
def test_only_this_machine_is_answered_and_headers_forbid_other_pages(server):
    listening = subprocess.run(["ss", "-ltn"], capture_output=True, text=True, check=False).stdout if _has_ss() else ""
    at = [line for line in listening.splitlines() if f":{server.port} " in line]
    assert all(f"127.0.0.1:{server.port}" in line for line in at)
    headers = ask(server, f"{page(server)}/index.html")[1]
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"


def _has_ss() -> bool:
    return shutil.which("ss") is not None


@pytest.mark.slow
def test_other_commands_must_wait(server):
    for command in (
        ["review", server.run, "--no-browser"],
        ["assign", server.run, server.run.parent / "features.npy"],
        ["name", server.run, "0", "x"],
    ):
        done = process(*command)
        assert done.returncode == 2, command
        assert "(starfc review, since" in done.stderr
        assert "is writing to this folder; wait until it has ended, or end it" in done.stderr


@pytest.mark.long
def test_a_port_that_is_taken(server):
    done = process("review", server.run, "--no-browser", "--port", server.port)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: port {server.port}: Address already in use; name another one with --port, or none for any\n"
    )


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_it_ends_cleanly_and_writes_nothing_elsewhere(made, tmp_path, number, monkeypatch):
    shutil.copytree(made.parent, tmp_path / "copy")
    run, scratch = tmp_path / "copy" / "run", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with served(run) as server:
        ask(server, "api/answers", answers(server, True, False))
        code, out, err = server.end(number)
    assert (code, err) == (0, "")
    assert "1 step can be undone" in out
    assert not (run / ".lock").exists()
    assert [path.name for path in scratch.iterdir() if path.name.startswith("starfc")] == []
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["faces", "features.npy", "run"]
    assert len(Marked(run).marks.answers) == 2


def process(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "starfc", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
