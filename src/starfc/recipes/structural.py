# Structure-aware edge confidence, trained on one data set, for similar data.

model = dict(type='gcn_structural', kwargs=dict(nhid=64))
structural = dict(
    candidates=40,  # nearest neighbours of a node that become candidate edges; whole lists (knn) are compared
    smoothing=10,  # neighbours in the graph convolution whose results are compared
    rounds=2)  # the second round uses the p of the first round

cluster_num = 300
sampling = dict(nearest=400, instance_share=1., patches=40, passes=1, subgraphs_per_epoch=300)
optimizer = dict(type='AdamW', lr=3e-3, weight_decay=1e-4)
total_epochs = 1
lr_config = dict(policy='onecycle', warmup=0.15)

# Temperature and thresholds are chosen on identities held out of training, and stored with the weights.
validation = dict(source='holdout', holdout_share=0.2, holdout_group=1)
