# Hierarchical training and dynamic inference on the glyph embeddings.
_base_ = ['./base.py', '../src/starfc/recipes/hierarchical.py']

prefix = '{{ fileDirname }}/../data/glyph'
test_name = 'sample'
pretrained = '{{ fileDirname }}/../pretrained_model/glyph'
