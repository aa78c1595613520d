"""Compute the scale selector's logits with bfloat16 matrix products, for processors on which these are faster."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from starfc.models.hierarchical import ScaleSelector
from starfc.scoring import selector_kernels as kernels

_BLOCK = 1 << 9  # nodes per block: 2^9 x 3 tokens x 2048 bfloat16 = 6 MiB between the two products of the MLP


class HalfSelector:
    """A scale selector on the CPU with bfloat16 matrix products (:mod:`starfc.scoring.selector_kernels`)."""

    def __init__(self, selector: ScaleSelector) -> None:
        block = selector.block
        attention = block.self_attn
        self._heads = attention.num_heads
        self._weights = [
            p.detach().bfloat16().T
            for p in (attention.in_proj_weight, attention.out_proj.weight, block.linear1.weight, block.linear2.weight)
        ]
        self._biases = [
            p.detach().float().numpy()
            for p in (attention.in_proj_bias, attention.out_proj.bias, block.linear1.bias, block.linear2.bias)
        ]
        self._norms = [
            (np.float32(norm.eps), norm.weight.detach().float().numpy(), norm.bias.detach().float().numpy())
            for norm in (block.norm1, block.norm2, selector.norm)
        ]
        self._unit = selector.score.weight.detach().float().numpy()[0]
        self._constant = np.float32(selector.score.bias.item())

    def __call__(self, tokens: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return logits (n, 3) and spreads (n,), both float32, of tokens (n, 3, h).

        The differences between the logits of a node are more exact than the logits. The spread of a node is the
        distance between its normalised tokens. The errors of the differences are proportional to it.
        """
        logits, spreads = np.empty(tokens.shape[:2], np.float32), np.empty(len(tokens), np.float32)
        for start in range(0, len(tokens), _BLOCK):
            part = slice(start, start + _BLOCK)
            self._score(tokens[part], logits[part], spreads[part])
        return logits, spreads

    @torch.inference_mode()
    def _score(self, tokens: NDArray[np.float32], logits: NDArray[np.float32], spreads: NDArray[np.float32]) -> None:
        n, _, h = tokens.shape
        bits, residual = np.empty((n, 3, h), np.int16), np.empty((n, 3, h), np.float32)
        kernels.norm_tokens(tokens, *self._norms[0], bits, spreads)
        kernels.attend(self._product(bits, 0), self._biases[0], self._heads, bits)
        kernels.add_and_norm(tokens, self._product(bits, 1), self._biases[1], *self._norms[1], residual, bits)
        hidden = self._product(bits, 2)
        kernels.activate(hidden, self._biases[2])
        kernels.score_tokens(
            residual, self._product(hidden, 3), self._biases[3], *self._norms[2], self._unit, self._constant, logits
        )

    def _product(self, bits: NDArray[np.int16], layer: int) -> NDArray[np.int16]:
        """Multiply (n, 3, ·) bfloat16 bits by the weights of a layer; return bfloat16 bits."""
        rows = torch.from_numpy(bits).view(torch.bfloat16).view(-1, bits.shape[2])
        return (rows @ self._weights[layer]).view(torch.int16).numpy().reshape(len(bits), 3, -1)
