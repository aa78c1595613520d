# STAR-FC (CVPR 2021) on MS1M, as published. Names in braces are filled in after --cfg-options.

# data locations
prefix = '{{ fileDirname }}/../data'
train_name = 'part0_train'
test_name = 'part1_test'
knn = 80  # entries per node, the node itself counted
knn_method = 'exact'  # ivf is approximate, for a million nodes and more; faiss_gpu needs a GPU build
knn_params = dict()  # ivf: nlist, nprobe; by default what reaches knn_recall
knn_recall = 0.99
th_sim = 0.  # kNN entries below this similarity stay out of the affinity graph

# without a suffix, every known one is tried: .bin, .npy, .npz; .meta, .txt, .npy
train_data = dict(
    feat_path='{prefix}/features/{train_name}',
    label_path='{prefix}/labels/{train_name}',
    is_norm_feat=True)
test_data = dict(
    feat_path='{prefix}/features/{test_name}',
    label_path='{prefix}/labels/{test_name}',  # may be missing: clusters are written, metrics skipped
    knn_graph_path='{prefix}/knns/{test_name}/{knn_method}_k_{knn}',  # a folder, or a published .npz beside it
    is_norm_feat=True)
invalid_rows = 'error'  # or 'singleton': rows of NaN or zeros become clusters of their own
copies = 'collapse'  # or 'keep': gcn_structural clusters one of several rows of the same direction, the others follow
adapt = 'auto'  # or 'off': whether gcn_structural_any is trained further on the clusters of the data

# model
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
giant_share = 0.1  # a component that holds more of the instances than this is warned of
metrics = ['pairwise', 'bcubed', 'nmi']

# misc
seed = 0
device = 'auto'  # cpu, cuda, cuda:N
threads = None  # CPU threads; None: one per core
memory_limit = None  # such as '16GB'
checkpoint_config = dict(interval=100, keep=3)  # in subgraphs; the newest ones are kept, and the best by validation
log_level = 'INFO'
log_config = dict(interval=1, hooks=[
    dict(type='TextLoggerHook'),
    dict(type='TensorboardLoggerHook'),
])
