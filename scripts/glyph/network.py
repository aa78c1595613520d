"""The embedding network: a small convolutional network, trained with the CosFace loss (Wang et al., CVPR 2018)."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from glyph.photos import degrade, draw_levels, seeded
from starfc.runtime.progress import progress
from starfc.storage.atomic import replacing

log = logging.getLogger("starfc")

DIM = 256
BATCH = 256  # photos of a training step
WIDTHS = (32, 48, 96, 160)  # channels at 20 x 20, 20 x 20, 10 x 10 and 5 x 5 pixels; 28 million products a photo
SCALE, MARGIN = 24.0, 0.25  # of the CosFace loss
RATE, DECAY = 3e-3, 0.02  # highest learning rate and weight decay of AdamW
WARM = 0.05  # share of the steps in which the learning rate rises
KEEP_EVERY = 250  # steps between two states on disk


def make_network() -> nn.Sequential:
    """Return the untrained network: (B, 1, 40, 40) grey values -> (B, 256)."""
    a, b, c, d = WIDTHS
    layers = [*_layer(1, a, 2), *_layer(a, b), *_layer(b, c, 2), *_layer(c, c), *_layer(c, d, 2), *_layer(d, d)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(25 * d, DIM), nn.BatchNorm1d(DIM))
    return network.to(memory_format=torch.channels_last)


def _layer(before: int, after: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]


def has_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 itself. The network is then computed in it."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def embed(network: nn.Module, photos: torch.Tensor) -> torch.Tensor:
    """Return the embeddings (B, 256) float32 of photos (B, 40, 40) uint8."""
    inputs = photos[:, None].float().div(255).sub(0.25).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
        return network(inputs).float()


def cosface(embeddings: torch.Tensor, centres: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the CosFace loss: cross entropy of s (cos θ_j - m [j = y]), θ_j the angle to the centre of identity j.

    Parameters
    ----------
    embeddings : (B, D) float32
        Embeddings.
    centres : (C, D) float32
        Centre of each identity.
    labels : (B,) int64
        Identity of each embedding.
    """
    cosines = functional.normalize(embeddings) @ functional.normalize(centres).T
    return functional.cross_entropy(SCALE * (cosines - MARGIN * functional.one_hot(labels, len(centres))), labels)


def train(
    images: NDArray[np.uint8], glyphs: NDArray[np.int64], labels: NDArray[np.int64], path: Path, steps: int, seed: int
) -> None:
    """Train the network on fresh photos of the pictures, and write its weights to ``path``.

    Step t depends only on the seed, t and the state before, so an interrupted training goes on from its last state,
    PATH.state, as if it had not stopped.

    Parameters
    ----------
    images : (G, 40, 40) uint8
        Pictures.
    glyphs : (M,) int64
        Those of the training identities.
    labels : (M,) int64
        Identity of each of them, 0 to C - 1.
    path : Path
        File of the weights.
    steps : int
        Steps of :data:`BATCH` photos.
    seed : int
        Seed of weights, photos and their order.
    """
    torch.manual_seed(seed)
    network, centres = make_network(), nn.Parameter(torch.randn(int(labels.max()) + 1, DIM))
    optimizer = torch.optim.AdamW([*network.parameters(), centres], weight_decay=DECAY)
    held, done, loss_mean = path.with_suffix(".state"), 0, float("nan")
    if held.is_file():
        state = torch.load(held, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        centres.data.copy_(state["centres"])
        done, loss_mean = state["done"], state["loss"]
    pictures = np.ascontiguousarray(images[glyphs])
    network.train()
    bar = progress("training", total=steps, unit="step", done=done)
    for step in range(done, steps):
        rng = np.random.default_rng([seed, 3, step])
        rows = rng.integers(0, len(glyphs), BATCH)
        levels = torch.from_numpy(draw_levels(BATCH, rng))
        photos = degrade(torch.from_numpy(pictures[rows]), levels, seeded(seed, 4, step))
        for group in optimizer.param_groups:
            group["lr"] = _rate(step / steps)
        loss = cosface(embed(network, photos), centres, torch.from_numpy(labels[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_mean = loss.item() if math.isnan(loss_mean) else 0.98 * loss_mean + 0.02 * loss.item()
        bar.update()
        if (step + 1) % KEEP_EVERY == 0:
            log.info("step %d: loss %.3f", step + 1, loss_mean)
            with replacing(held) as temporary:
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "centres": centres.data}
                torch.save(state | {"done": step + 1, "loss": loss_mean}, temporary)
    bar.close()
    with replacing(path) as temporary:
        torch.save(network.state_dict(), temporary)
    held.unlink(missing_ok=True)


def _rate(done: float) -> float:
    """Return the learning rate: it rises in a line, then falls like a cosine. ``done`` is from 0 to 1."""
    return RATE * (done / WARM if done < WARM else 0.5 * (1 + math.cos(math.pi * (done - WARM) / (1 - WARM))) + 1e-3)


def load_network(path: Path) -> nn.Module:
    """Return the trained network, ready to embed."""
    network = make_network()
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()
