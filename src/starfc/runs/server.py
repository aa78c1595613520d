"""The server of ``starfc review``: one page for one person, on this machine only.

It listens on 127.0.0.1. Every address begins with a random token. Addresses below the token:

=========================  =========================================================================================
``GET /``                  leads to the present version of the page
``GET /V/...``             files of version V of the page (:mod:`starfc.review.report`)
``GET /picture/ROW``       the picture of a row in full size
``GET /api/questions``     ``?n=20``: the questions that are expected to change the most now
``GET /api/state``         pairs changed, expected precision and recall
``POST /api/answers``      marks (``starfc-marks``), applied at once
``POST /api/undo``         take the last step back
``POST /api/names``        ``{"cluster": 18, "name": "text"}``; null takes the name away
=========================  =========================================================================================

A page from elsewhere cannot use it, because it does not know the token. A request with another ``Host`` is refused, so
a foreign name that leads to 127.0.0.1 does not help. A request with another ``Origin`` is refused, and so is a change
without an ``Origin``.
"""

from __future__ import annotations

import hmac
import json
import mimetypes
import re
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from starfc.answers.marks_file import MarksRecord
from starfc.errors import InputError, MissingFileError
from starfc.runs.reviewing import Reviewing
from starfc.runtime.extras import require
from starfc.storage.records import Count
from starfc.storage.safe import open_regular

if TYPE_CHECKING:
    from werkzeug.wrappers import Request, Response

HOST = "127.0.0.1"
MOST_BYTES = 1 << 20  # of a request
MOST_QUESTIONS = 200
SLOW = 30  # seconds that a connection may be silent

_FILE = re.compile(r"(\d{1,9})/(index\.html|page/[a-z]+\.(?:js|css)|data/[a-z]+(?:-\d{1,9})?\.js)", re.ASCII)
_SHEET = re.compile(r"\d{1,9}/(thumbs/\d{1,9}\.webp)", re.ASCII)
_PICTURE = re.compile(r"picture/(\d{1,15})", re.ASCII)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".webp": "image/webp",
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_OF_PICTURES = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; frame-ancestors 'none'; sandbox"


class _Named(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    cluster: Count
    name: str | None


class _Refused(Exception):
    """A request that gets no answer but a status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ReviewApp:
    """The WSGI application.

    Parameters
    ----------
    reviewing : Reviewing
        The run under review.
    port : int
        Port at which the server listens.

    Attributes
    ----------
    token : str
        256 random bits, the first part of every address.
    address : str
        Address of the page.
    """

    def __init__(self, reviewing: Reviewing, port: int) -> None:
        self.reviewing, self.token = reviewing, secrets.token_urlsafe(32)
        self.hosts = {f"{name}:{port}" for name in (HOST, "localhost")}
        self.address = f"http://{HOST}:{port}/{self.token}/"

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        from werkzeug.exceptions import HTTPException
        from werkzeug.wrappers import Request

        request = Request(environ)
        request.max_content_length = MOST_BYTES
        try:
            response = self._answer(request)
        except _Refused as error:
            response = _json({"error": str(error)}, error.status)
        except MissingFileError as error:
            response = _json({"error": str(error)}, 404)
        except InputError as error:
            response = _json({"error": str(error)}, 409)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            response = _json({"error": f"{where}: {first['msg']}" if where else first["msg"]}, 400)
        except HTTPException as error:
            response = _json({"error": error.name}, error.code or 400)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        path = self._allowed(request)
        if request.method in ("GET", "HEAD"):
            if path.startswith("api/"):
                return self._told(path, request)
            return self._file(path)
        if request.method != "POST":
            raise _Refused(405, "this method is not in use")
        if request.mimetype != "application/json":
            raise _Refused(415, "a request must be JSON")
        body = request.get_data()
        if path == "api/answers":
            return _json(self.reviewing.apply(MarksRecord.model_validate_json(body)))
        if path == "api/undo":
            return _json(self.reviewing.undo())
        if path == "api/names":
            named = _Named.model_validate_json(body)
            return _json(self.reviewing.name(named.cluster, named.name))
        raise _Refused(404, "nothing is here")

    def _allowed(self, request: Request) -> str:
        """Return the path below the token. Raise an error if the request does not come from this server's page."""
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        if host not in self.hosts:
            raise _Refused(403, "this server answers to its own address only")
        if origin != f"http://{host}" and (origin is not None or request.method not in ("GET", "HEAD")):
            raise _Refused(403, "this request comes from another page")
        token, _, path = request.path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            raise _Refused(404, "nothing is here; use the address that `starfc review` printed")
        return path

    def _told(self, path: str, request: Request) -> Response:
        if path == "api/state":
            return _json(self.reviewing.state())
        if path == "api/questions":
            count = request.args.get("n", "20")
            if not (count.isascii() and count.isdecimal() and 1 <= int(count[:9]) <= MOST_QUESTIONS):
                raise _Refused(400, f"n: a number from 1 to {MOST_QUESTIONS} needed")
            return _json({"questions": self.reviewing.questions(int(count))})
        raise _Refused(404, "nothing is here")

    def _file(self, path: str) -> Response:
        from werkzeug.utils import redirect

        if not path:
            return redirect(f"{self.reviewing.page()}/index.html")
        if found := _FILE.fullmatch(path):
            version, name = int(found[1]), found[2]
            if name == "index.html" and not self.reviewing.current(version):
                return redirect("../")
            return self._read(f"{version}/{name}")
        if found := _SHEET.fullmatch(path):
            response = self._read(found[1])
            response.headers["Cache-Control"] = "private, max-age=86400"
            return response
        if found := _PICTURE.fullmatch(path):
            return self._picture(int(found[1]))
        raise _Refused(404, "nothing is here")

    def _read(self, name: str) -> Response:
        """Return a file of the page; ``name`` has passed a pattern without dots and links to elsewhere."""
        from werkzeug.wrappers import Response

        path = self.reviewing.place / name
        with open_regular(path, follow=False) as file:
            return Response(file.read(), content_type=_TYPES[path.suffix])

    def _picture(self, row: int) -> Response:
        from werkzeug.wrappers import Response

        path = self.reviewing.picture(row)
        kind = mimetypes.guess_type(path.name)[0] or ""
        if not kind.startswith("image/"):
            raise _Refused(404, "this file is no picture")
        with open_regular(path) as file:
            response = Response(file.read(), content_type=kind)
        response.headers["Content-Security-Policy"] = _OF_PICTURES
        return response


def _json(content: Any, status: int = 200) -> Response:
    from werkzeug.wrappers import Response

    return Response(json.dumps(content, allow_nan=False), status, content_type="application/json")


def listen(port: int = 0) -> socket.socket:
    """Return a socket that listens on 127.0.0.1; port 0 takes any that is free.

    Raises
    ------
    InputError
        The port is in use, or may not be used. Also if werkzeug is not installed.
    """
    require("werkzeug", "the server of the review page")
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
        found.listen(64)
    except OSError as error:
        found.close()
        raise InputError(f"port {port}: {error.strerror}; name another one with --port, or none for any") from None
    return found


def serve(app: ReviewApp, listening: socket.socket) -> None:
    """Answer requests until SIGINT (Ctrl-C) or SIGTERM. A step that is being applied is completed first."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        timeout = SLOW

        def log(self, type: str, message: str, *args: Any) -> None:
            """Print nothing: the address holds the token."""

    port = listening.getsockname()[1]
    server = make_server(HOST, port, app, threaded=True, request_handler=Handler, fd=listening.fileno())
    with _terminable():
        server.serve_forever()  # returns at KeyboardInterrupt
    with app.reviewing.lock:
        pass


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
