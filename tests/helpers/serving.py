"""Run ``starfc review`` as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image, ImageDraw

from helpers.paths import ROOT
from helpers.samples import blobs
from starfc.config.recipes import model_config
from starfc.models.checkpoint import PRETRAINED, load_model
from starfc.runs.cluster import run_inference

ROWS = 200


def faces(n: int) -> np.ndarray:
    """A drawn face for each instance, in one of a few colours."""
    images = np.empty((n, 48, 48, 3), np.uint8)
    for row in range(n):
        image = Image.new("RGB", (48, 48), (40 + 60 * (row % 4), 120, 200 - 50 * (row % 3)))
        draw = ImageDraw.Draw(image)
        draw.ellipse((10, 6, 38, 42), fill=(230, 190, 160))
        draw.text((16, 18), str(row), fill=(0, 0, 0))
        images[row] = np.asarray(image)
    return images


def make_run(place: Path) -> Path:
    """Cluster 200 instances of 14 identities by the packaged model; pictures of them are in ``faces``."""
    features, _ = blobs(identities=14, size=16, noise=0.9, seed=3)
    np.save(place / "features.npy", features[:ROWS])
    (place / "faces").mkdir()
    for row, face in enumerate(faces(ROWS)):
        Image.fromarray(face).save(place / "faces" / f"{row:03}.png")
    config = model_config(load_model(PRETRAINED), {"adapt": "off", "model": {"kwargs": {"feature_dim": 16}}})
    given = {"features": place / "features.npy", "out": place / "run", "keep_edges": True}
    run_inference(config, model_folder=PRETRAINED, **given)
    return place / "run"


@dataclass
class Served:
    """A server: its process, the address of its page, and the parts of this address."""

    process: subprocess.Popen
    address: str

    @property
    def port(self) -> int:
        return urlsplit(self.address).port or 0

    @property
    def token(self) -> str:
        return urlsplit(self.address).path.strip("/")

    def end(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        """Send a signal; return the exit code and what the process printed since."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@contextmanager
def served(run: Path, *options: str | Path) -> Iterator[Served]:
    command = [sys.executable, "-m", "starfc", "review", str(run), "--no-browser", "--quiet", *map(str, options)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore Ctrl-C
    ) as process:
        try:
            address = process.stdout.readline().strip()
            if not address:
                raise AssertionError(process.communicate()[1])
            yield Served(process, address)
        finally:
            if process.poll() is None:
                process.kill()
