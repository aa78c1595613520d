# Structure-aware edge confidence for any embedding. The test split is the bundled sample. To train:
#   python train.py --config configs/cfg_gcn_structural_any.py --work-dir work_dirs/any --cfg-options prefix=FOLDER
_base_ = ['./base.py', '../src/starfc/recipes/any.py']

prefix = '{{ fileDirname }}/../data/glyph'
test_name = 'sample'
pretrained = '{{ fileDirname }}/../src/starfc/pretrained/any'  # the weights that come with the package

# only for training with another model.type on one data set
sampling = dict(subgraphs_per_epoch=150)
