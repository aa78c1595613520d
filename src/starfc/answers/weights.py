"""First weights of the judges, fitted on glyphs (part0_train) and synthetic data: ``benchmarks/answers.py --fit``."""

from __future__ import annotations

import numpy as np

JOIN = np.array(
    [
        0.000, 0.130, 0.641, 0.000, 0.625, 0.068, 0.000, 0.000, 0.000, 0.000, 0.000,
        -0.500, -0.363, 0.199, -0.039, -0.247, -0.109, -0.079, -0.117, -4.040,
    ]
)  # fmt: skip
SPLIT = np.array(
    [
        0.000, 1.031, 0.347, 0.000, 0.718, 0.081, 0.092, 0.000, 0.000, 0.000, 0.000,
        -0.364, 0.012, -0.320, -0.486, -0.299, -0.316, -0.191, 0.145, 4.061,
    ]
)  # fmt: skip
