"""First weights of the judges, fitted on part0_train of the glyphs and LFW (dlib): ``benchmarks/answers.py --fit``."""

from __future__ import annotations

import numpy as np

from starfc.answers.evidence import Judge

JOIN = Judge(
    np.array([0.577, -5.022, -2.726, 0.163, 0.512, 2.539]),
    np.array([0.221, 2.776, 0.945, 0.252, 1.224, 1.871]),
    np.array([0.920, -0.810, 1.160, 0.462, -1.038, 0.203, -3.343]),
)
SPLIT = Judge(
    np.array([0.924, -0.337, -0.073, 0.933, 2.373, 3.046]),
    np.array([0.069, 0.365, 0.110, 0.133, 0.985, 0.835]),
    np.array([0.464, 0.040, 0.634, 0.388, 0.388, -0.391, 4.469]),
)
