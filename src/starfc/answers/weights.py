"""First weights of the judges, fitted on part0_train of the glyphs and LFW (dlib): ``benchmarks/answers.py --fit``."""

from __future__ import annotations

import numpy as np

JOIN = np.array([1.159, -0.000, 0.487, 0.381, -1.033, 0.295, -3.364])
SPLIT = np.array([0.591, -0.066, 0.686, 0.409, 0.165, -0.282, 4.502])
