# STAR-FC on the glyph embeddings: the published network, trained by the short recipe. The test split is the bundled
# sample. To train and test on the full splits, use --cfg-options prefix=FOLDER test_name=part1_test
_base_ = ['./base.py', '../src/starfc/recipes/gcn.py']

prefix = '{{ fileDirname }}/../data/glyph'
test_name = 'sample'
pretrained = '{{ fileDirname }}/../pretrained_model/glyph'
