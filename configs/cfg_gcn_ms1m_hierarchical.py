# STAR-FC with hierarchical training and dynamic inference (TPAMI 2023) on MS1M, as published.
_base_ = './cfg_gcn_ms1m.py'

model = dict(type='hierarchical')
knn = 120  # the largest of the three graphs at inference
hierarchical = dict(
    k_mid=100,  # neighbours of the middle training graph
    offsets=[5, 10, 15, 20, 25, 30],  # the other graphs have k_mid ± two of these; training learns which two
    balance=1.,  # weight of the loss term that keeps all three scales in use
    patch_edges=120000,  # edges in an optimiser step
    offset_lr=0.001,
    selector_precision='float32',  # or 'bfloat16': faster on processors that multiply bfloat16
    scales=[80, 100, 120])  # neighbours of the three graphs at inference

cluster_num = 1000
sampling = dict(nearest=1150, passes=1, max_nodes=70000)
total_epochs = 1000
lr_config = dict(policy='step', step=[0.5, 0.8])
checkpoint_config = dict(interval=100, keep=3)

# inference: test_dynamic.py
dynamic = dict(
    tau1=0.85,  # graph parsing keeps undirected edges with p > tau1
    tau2=0.78)  # refinement: node intimacy > tau2 / (0.85^(10 b) + 1), b = 1, 2, 3 by the smaller degree
