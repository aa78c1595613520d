"""A server of S3 on this machine (moto)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest


@contextmanager
def s3_server() -> Iterator[None]:
    """Serve S3 while the block runs; fsspec finds the server. There is one bucket, called ``bucket``."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"key": "a", "secret": "b", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
        fsspec.config.conf["s3"] = options
        fsspec.filesystem("s3").mkdir("bucket")
        yield
    finally:
        fsspec.config.conf.pop("s3", None)
        server.stop()
