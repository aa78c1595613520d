# What all configs share: where data lie, the kNN graph, inference and the machine. Names in braces are filled in after
# --cfg-options.

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
reach = 'auto'  # or 'off': whether gcn_structural_any joins clusters that samples of the rows hold together

# inference
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
