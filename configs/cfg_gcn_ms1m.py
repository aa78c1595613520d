# STAR-FC (CVPR 2021) on MS1M, as published. base.py has the data, the kNN graph and the machine.
_base_ = './base.py'

model = dict(
    type='gcn',
    kwargs=dict(feature_dim=256, nhid=512, dropout=0., init='xavier'))
pretrained = '{{ fileDirname }}/../pretrained_model'  # Backbone.pth and Head.pth for test_final.py

# training: structure-preserved subgraph sampling
cluster_num = 1300  # identities in a subgraph
sampling = dict(
    nearest=1500,  # they are drawn from this number of identities nearest to the seed identity
    instance_share=0.9,
    patches=40,
    passes=2,
    min_nodes=100,
    max_nodes=100000,
    rotation=0.,  # size of the random rotation of the features at every step, a regulariser
    subgraphs_per_epoch=None)  # None: every identity is the seed once

optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-5)
total_epochs = 50
lr_config = dict(policy='step', step=[0.5, 0.8, 0.9])  # below 1: shares of total_epochs; otherwise epochs
validation = dict(source='test', holdout_share=0.)

# inference
tau1 = 0.7  # graph parsing keeps edges with p > tau1
tau2 = 0.72  # refinement keeps edges with node intimacy > tau2
dynamic = dict(tau1=0.85, tau2=0.78)  # the thresholds of test_dynamic.py
