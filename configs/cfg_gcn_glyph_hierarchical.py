# Hierarchical training and dynamic inference on the glyph embeddings; the recipe is cfg_gcn_glyph.py's.
_base_ = './cfg_gcn_glyph.py'

model = dict(type='hierarchical')
knn = 120
hierarchical = dict(selector_precision='bfloat16')
