# Values that all configs share: paths of the data, kNN graph, inference and machine. After --cfg-options, a name in
# braces is replaced by the value of that key.

# data locations
prefix = '{{ fileDirname }}/../data'
train_name = 'part0_train'
test_name = 'part1_test'
knn = 80  # neighbours of a node, counting the node itself
knn_method = 'exact'  # or 'ivf': approximate, for a million nodes and more; 'torch', 'faiss_gpu': docs/gpu.md
knn_params = dict()  # for ivf: nlist, nprobe, partitions, sweeps; by default they are chosen to reach knn_recall
knn_recall = 0.98
th_sim = 0.  # the affinity graph leaves out neighbours below this similarity

# for a path without a suffix, every known suffix is tried: .bin, .npy, .npz, …; .meta, .txt, .npy, …
train_data = dict(
    feat_path='{prefix}/features/{train_name}',
    label_path='{prefix}/labels/{train_name}',
    is_norm_feat=True)
test_data = dict(
    feat_path='{prefix}/features/{test_name}',
    label_path='{prefix}/labels/{test_name}',  # if the file is missing, clusters are written without metrics
    knn_graph_path='{prefix}/knns/{test_name}/{knn_method}_k_{knn}',  # a folder, or a published .npz next to it
    is_norm_feat=True)
invalid_rows = 'error'  # or 'singleton': each row of NaN or zeros becomes its own cluster
copies = 'collapse'  # structural models cluster one row of each direction, copies follow; or 'keep': all rows
adapt = 'auto'  # gcn_structural_any is trained further on the clusters of the data; or 'off'
reach = 'auto'  # gcn_structural_any joins and divides clusters as samples of the rows do; or 'off'

# inference
giant_share = 0.1  # a warning names clusters that hold more than this share of the instances
metrics = ['pairwise', 'bcubed', 'nmi']

# misc
seed = 0
device = 'auto'  # or 'cpu', 'cuda', 'cuda:N'
threads = None  # CPU threads; None means one per core
memory_limit = None  # or a size such as '16GB'
device_memory = None  # limit on a GPU, or a size such as '8GB'
checkpoint_config = dict(interval=100, keep=3)  # interval in subgraphs; keeps the newest 3, and the best by validation
log_level = 'INFO'
log_config = dict(interval=1, hooks=[
    dict(type='TextLoggerHook'),
    dict(type='TensorboardLoggerHook'),
])
