# Structure-aware edge confidence on the glyph embeddings. The test split is the bundled sample. To train and
# test on the full splits, use --cfg-options prefix=FOLDER test_name=part1_test
_base_ = './cfg_gcn_structural_ms1m.py'

prefix = '{{ fileDirname }}/../data/glyph'
test_name = 'sample'

cluster_num = 300
sampling = dict(nearest=400, subgraphs_per_epoch=150)
