# Structure-aware edge confidence on MS1M: data, graph and sampling are cfg_gcn_ms1m.py's.
_base_ = './cfg_gcn_ms1m.py'

# The weights that come with the package, trained on the glyph embeddings: they see how instances are neighbours, not
# what they look like, and take embeddings of any kind. StarFC() takes them too.
pretrained = '{{ fileDirname }}/../src/starfc/pretrained/structural'

model = dict(type='gcn_structural', kwargs=dict(nhid=64))
structural = dict(
    candidates=40,  # neighbours of a node that are candidate edges; whole lists (knn) are compared
    smoothing=10,  # neighbours of the graph convolution whose result is compared
    rounds=2)  # the second round sees the first one's probabilities

cluster_num = 300
sampling = dict(nearest=400, instance_share=1., patches=40, passes=1, subgraphs_per_epoch=300)
optimizer = dict(_delete_=True, type='AdamW', lr=3e-3, weight_decay=1e-4)
total_epochs = 1
lr_config = dict(_delete_=True, policy='onecycle', warmup=0.15)

# Temperature and thresholds are chosen on identities held back from training and stored with the weights.
validation = dict(source='holdout', holdout_share=0.2, holdout_group=1)
tau1 = None
tau2 = None
dynamic = dict(tau1=None, tau2=None)
