"""The edge list that every stage after scoring takes and returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class EdgeList:
    """Directed edges rows_e -> cols_e among ``num_nodes`` nodes, sorted by row, with scores (probabilities p).

    ``rows`` and ``cols`` are int32 (int64 from 2^31 nodes), ``scores`` float32, all of shape (E,). No self loops, no
    repeated edge.
    """

    rows: NDArray[np.integer]
    cols: NDArray[np.integer]
    scores: NDArray[np.float32]
    num_nodes: int

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, mask: NDArray[np.bool_]) -> EdgeList:
        """The edges where ``mask`` (E,) holds, in the same order."""
        return EdgeList(self.rows[mask], self.cols[mask], self.scores[mask], self.num_nodes)
