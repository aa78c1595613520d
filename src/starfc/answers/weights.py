"""First weights of the judges, fitted on part0_train of the glyphs and LFW (dlib): ``benchmarks/answers.py --fit``."""

from __future__ import annotations

import numpy as np

JOIN = np.array([1.181, 0.540, 0.320, 0.344, -1.377, 0.524, -3.664])
SPLIT = np.array([0.484, 0.012, 0.661, 0.400, 0.293, -0.325, 4.408])
