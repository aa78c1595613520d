# STAR-FC on the glyph embeddings. The bundled sample is the test split; train and test on the full splits with
#   --cfg-options prefix=FOLDER test_name=part1_test
_base_ = './cfg_gcn_ms1m.py'

prefix = '{{ fileDirname }}/../data/glyph'
test_name = 'sample'
pretrained = '{{ fileDirname }}/../pretrained_model/glyph'

# The head starts as a distance between the two nodes, and a few hundred AdamW steps refine it; higher rates undo the
# start first. A step costs what its nodes cost: 6,700 of them (150 identities) teach as much as twice as many.
model = dict(kwargs=dict(init='metric'))
cluster_num = 150
sampling = dict(nearest=200, patches=4, passes=1, rotation=0.35, subgraphs_per_epoch=85)
optimizer = dict(_delete_=True, type='AdamW', lr=5e-4, weight_decay=0.01)
total_epochs = 1
lr_config = dict(_delete_=True, policy='onecycle', warmup=0.15)

# Thresholds are chosen on identities held back from training and stored beside the weights.
validation = dict(source='holdout', holdout_share=0.2, holdout_group=100)
tau1 = None
tau2 = None
dynamic = dict(tau1=None, tau2=None)
