# The published recipe on the glyph embeddings: SGD, Xavier initialisation, 40 patches x 2 passes for each subgraph.
_base_ = './cfg_gcn_glyph.py'

model = dict(kwargs=dict(init='xavier'))
cluster_num = 300
sampling = dict(nearest=400, patches=40, passes=2, rotation=0., subgraphs_per_epoch=90)
optimizer = dict(_delete_=True, type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-5)
lr_config = dict(_delete_=True, policy='step', step=[])
