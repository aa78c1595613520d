"""Which scale each node takes its embedding from: the highest of the scale selector's logits.

Rounding is kept from deciding, as far as it can be told. Where the processor multiplies bfloat16 several times faster
than float32, the logits are made from such products (:mod:`starfc.scoring.selector`); a node whose two highest logits
stand too close is chosen for again in float32, and in float64, embeddings included, where that leaves a doubt too.

How close is too close for bfloat16 is measured, not proven. The error of a difference of logits is in proportion to
the differences themselves, down to a floor in proportion to how far the node's tokens lie apart; the largest ratio, on
up to 2^10 nodes spread over all, times a safety factor is what a call goes by.
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

_SAMPLE = 1 << 10
_SAFETY = 2.0
_FLOOR = 2e-4  # of a node's spread
_CLOSE = 5e-6  # of a difference of logits, or relative to the highest of them: float32 errors stay below it
_BLOCK = 1 << 9  # nodes: 2^9 x 3 tokens x 2048 float32 = 12 MiB within the selector


def chosen_embeddings(nodes: NodeProjections) -> Callable[[NDArray[np.integer]], Tensor]:
    """A function of nodes (m,) that chooses the scale of each, notes it in ``nodes.choice``, and gives X (m, h)."""
    if not isinstance(nodes.model, HierarchicalModel):
        return nodes.embed  # of the one scale there is
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
    """A function of some nodes (m,) and their tokens (m, 3, h) that gives the scale (m,) of each."""
    exact = nodes.in_double()
    assert isinstance(exact.model, HierarchicalModel)  # as that of the nodes
    sure = exact.model.selector
    fast = nodes.device.type == "cpu" and product_dtype() == torch.bfloat16
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
    """Largest error of ``half`` in the differences of a node's logits, relative to :func:`_error_scale`."""
    n = len(nodes.order)
    sample = nodes.order[:: -(-n // _SAMPLE)]
    errors: list[float] = []

    def work(part: slice) -> None:
        tokens = nodes.tokens(sample[part])
        logits, spreads = half(tokens.numpy())
        wrong = np.ptp(logits - _logits(selector, tokens), axis=1)
        scale = _error_scale(logits, spreads)
        apart = scale > 0  # where all tokens are alike there is no difference to be wrong in
        errors.append(float((wrong[apart] / scale[apart]).max(initial=0.0)))

    threads.each(work, slices(len(sample), _BLOCK))
    return max(errors)


def _error_scale(logits: NDArray[np.float32], spreads: NDArray[np.float32]) -> NDArray[np.float32]:
    """What errors of differences are in proportion to: logits (m, 3) and spreads (m,) -> (m,)."""
    return np.ptp(logits, axis=1) + np.float32(_FLOOR) * spreads


@torch.inference_mode()
def _logits(selector: ScaleSelector, tokens: Tensor) -> NDArray[np.floating]:
    """Logits (m, 3) by the module itself, in its dtype."""
    parts = [selector(tokens[part]) for part in slices(len(tokens), _BLOCK)]
    return (torch.cat(parts) if parts else tokens[:, :, 0]).cpu().numpy()


def _gaps(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    """How far the highest logit stands above the next: (m, 3) -> (m,)."""
    top = np.sort(logits, axis=1)
    return top[:, -1] - top[:, -2]
