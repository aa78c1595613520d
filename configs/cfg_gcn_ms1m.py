# STAR-FC (CVPR 2021) on MS1M, as published. Data, kNN graph and machine: base.py.
_base_ = './base.py'

model = dict(
    type='gcn',
    kwargs=dict(feature_dim=256, nhid=512, dropout=0., init='xavier'))
pretrained = '{{ fileDirname }}/../pretrained_model'  # Backbone.pth and Head.pth for test_final.py

# training: structure-preserved subgraph sampling
cluster_num = 1300  # identities drawn into a subgraph
sampling = dict(
    nearest=1500,  # from this many nearest to the seed identity
    instance_share=0.9,
    patches=40,
    passes=2,
    min_nodes=100,
    max_nodes=100000,
    rotation=0.,  # random rotation of the features at every step, a regulariser
    subgraphs_per_epoch=None)  # every identity is the seed once

optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-5)
total_epochs = 50
lr_config = dict(policy='step', step=[0.5, 0.8, 0.9])  # shares of total_epochs; from 1 on, epochs
validation = dict(source='test', holdout_share=0.)

# inference
tau1 = 0.7  # graph parsing: edges with p > tau1 stay
tau2 = 0.72  # refinement: edges with node intimacy > tau2 stay
dynamic = dict(tau1=0.85, tau2=0.78)  # the same for test_dynamic.py
