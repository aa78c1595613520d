"""From numpy to a page to review: python examples/numpy_to_report.py [FOLDER]"""

import sys
from pathlib import Path

import numpy as np

from starfc import StarFC

DATA = Path(__file__).resolve().parent.parent / "data" / "glyph"
out = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/example")

# %% Embeddings as they come from a network: (N, d), any float type, of any length
X = np.load(DATA / "features" / "sample.npy")
today, tomorrow = X[:8000], X[8000:]

# %% Clusters, without saying how many
model = StarFC().fit(today)
print(f"{len(today)} instances, {model.labels_.max() + 1} clusters, the largest of {np.bincount(model.labels_)[0]}")

# %% Tomorrow's instances join them; nobody's cluster changes its number
model.partial_fit(tomorrow)
print(f"{model.assigned_.joined} of {len(tomorrow)} joined clusters that existed before")

# %% Why two are together, or apart, and a page to look at
print(model.explain(*np.flatnonzero(model.labels_ == 0)[[0, -1]]).text())
model.report(out, images=DATA / "thumbs.npz")
print(f"open {out / 'index.html'}")
