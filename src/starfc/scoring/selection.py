"""Choose the scale of each node's embedding: the scale with the highest logit of the scale selector.

Near-ties are recomputed at higher precision. If the processor multiplies bfloat16 several times faster than float32,
the logits are computed from bfloat16 products (:mod:`starfc.scoring.selector`). If the two highest logits of a node are
too close, its logits are computed again in float32. If they are still too close, its embeddings and logits are computed
again in float64.

The limit for bfloat16 is measured, not proven. The error of a difference of two logits is assumed proportional to
(range of the node's logits + a small constant × distance of the node's tokens). Each call measures the largest ratio on
up to 2^10 evenly spaced nodes and multiplies it by a safety factor.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starfc.models.hierarchical import HierarchicalModel, ScaleSelector
from starfc.runtime import threads
from starfc.runtime.products import product_dtype, slices
from starfc.scoring.nodes import NodeProjections
from starfc.scoring.selector import HalfSelector

_SAMPLE = 1 << 10  # maximum number of nodes on which the error of bfloat16 is measured
_SAFETY = 2.0  # the measured error is multiplied by this
_FLOOR = 2e-4  # weight of a node's spread in the error scale
_CLOSE = 5e-6  # bound on the float32 error of a difference of logits, relative to max(1, largest |logit|)
_BLOCK = 1 << 9  # nodes per block: 2^9 x 3 tokens x 2048 float32 = 12 MiB inside the selector


def chosen_embeddings(nodes: NodeProjections) -> Callable[[NDArray[np.integer]], Tensor]:
    """Return a function of nodes (m,) that chooses their scales and returns their embeddings X (m, h).

    The function also writes the chosen scales to ``nodes.choice``.
    """
    if not isinstance(nodes.model, HierarchicalModel):
        return nodes.embed  # there is only one scale
    choose = _choice(nodes, nodes.model.selector)

    @torch.inference_mode()
    def embed(rows: NDArray[np.integer]) -> Tensor:
        tokens = nodes.tokens(rows)
        nodes.choice[rows] = choice = choose(rows, tokens)
        chosen = torch.from_numpy(choice).long().to(nodes.device)
        return tokens[torch.arange(len(rows), device=nodes.device), chosen]

    return embed


def _choice(
    nodes: NodeProjections, selector: ScaleSelector
) -> Callable[[NDArray[np.integer], Tensor], NDArray[np.uint8]]:
    """Return a function of nodes (m,) and their tokens (m, 3, h) that returns the scale (m,) of each node."""
    exact = nodes.in_double()
    assert isinstance(exact.model, HierarchicalModel)  # the caller has checked nodes.model
    sure = exact.model.selector
    fast = nodes.on_device is None and product_dtype() == torch.bfloat16
    half = HalfSelector(selector) if fast else None
    margin = _SAFETY * _relative_error(nodes, selector, half) if half else 0.0

    def choose(rows: NDArray[np.integer], tokens: Tensor) -> NDArray[np.uint8]:
        if half:
            logits, spreads = half(tokens.numpy())
            close = np.flatnonzero(_gaps(logits) <= margin * _error_scale(logits, spreads))
        else:
            logits, close = np.empty(tokens.shape[:2], np.float32), np.arange(len(rows))
        logits[close] = again = _logits(selector, tokens[close])
        choice = logits.argmax(axis=1).astype(np.uint8)
        close = close[_gaps(again) <= _CLOSE * np.maximum(1, np.abs(again).max(axis=1, initial=0))]
        if close.size:
            choice[close] = _logits(sure, exact.tokens(rows[close])).argmax(axis=1)
        return choice

    return choose


def _relative_error(nodes: NodeProjections, selector: ScaleSelector, half: HalfSelector) -> float:
    """Return the largest error of ``half`` in differences of a node's logits, relative to :func:`_error_scale`."""
    n = len(nodes.order)
    sample = nodes.order[:: -(-n // _SAMPLE)]
    errors: list[float] = []

    def work(part: slice) -> None:
        tokens = nodes.tokens(sample[part])
        logits, spreads = half(tokens.numpy())
        wrong = np.ptp(logits - _logits(selector, tokens), axis=1)
        scale = _error_scale(logits, spreads)
        apart = scale > 0  # scale is 0 if all tokens of a node are equal; then the differences are exactly 0
        errors.append(float((wrong[apart] / scale[apart]).max(initial=0.0)))

    threads.each(work, slices(len(sample), _BLOCK))
    return max(errors)


def _error_scale(logits: NDArray[np.float32], spreads: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the scale (m,) of the errors of differences, from logits (m, 3) and spreads (m,)."""
    return np.ptp(logits, axis=1) + np.float32(_FLOOR) * spreads


@torch.inference_mode()
def _logits(selector: ScaleSelector, tokens: Tensor) -> NDArray[np.floating]:
    """Return the logits (m, 3) of the selector module itself, in its dtype."""
    parts = [selector(tokens[part]) for part in slices(len(tokens), _BLOCK)]
    return (torch.cat(parts) if parts else tokens[:, :, 0]).cpu().numpy()


def _gaps(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the difference (m,) between the highest and the second highest of the logits (m, 3)."""
    top = np.sort(logits, axis=1)
    return top[:, -1] - top[:, -2]
