# STAR-FC on the glyph embeddings: the network as published, trained by the short recipe. The bundled sample is the test
# split; train and test on the full splits with --cfg-options prefix=FOLDER test_name=part1_test
_base_ = ['./base.py', '../src/starfc/recipes/gcn.py']

prefix = '{{ fileDirname }}/../data/glyph'
test_name = 'sample'
pretrained = '{{ fileDirname }}/../pretrained_model/glyph'
