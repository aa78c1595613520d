# Hierarchical training and dynamic inference on the glyph embeddings; the recipe is cfg_gcn_glyph.py's.
_base_ = './cfg_gcn_glyph.py'

model = dict(type='hierarchical')

# A step costs some four of the basic method's, so subgraphs are smaller. An identity has 50 instances here, fewer than
# in MS1M: graphs of 80 to 120 neighbours would average over strangers.
cluster_num = 100
sampling = dict(nearest=133)
knn = 80
hierarchical = dict(k_mid=60, scales=[40, 60, 80], selector_precision='bfloat16')
