# The published network (CVPR 2021), trained with a short schedule.

# The head starts as a distance between the two nodes, and a few hundred AdamW steps refine it; a higher rate
# would undo this start. The cost of a step grows with its nodes: a step of 6,700 nodes (150 identities) improves the
# model as much as a step of twice as many.
model = dict(type='gcn', kwargs=dict(init='metric'))
cluster_num = 150
sampling = dict(nearest=200, patches=4, passes=1, rotation=0.35, subgraphs_per_epoch=85)
optimizer = dict(type='AdamW', lr=5e-4, weight_decay=0.01)
total_epochs = 1
lr_config = dict(policy='onecycle', warmup=0.15)

# Thresholds are chosen on identities held out of training, and stored with the weights.
validation = dict(source='holdout', holdout_share=0.2, holdout_group=100)
