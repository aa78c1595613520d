# Structure-aware edge confidence for any embedding: trained over many kinds of data (src/starfc/training/kinds.py),
# most of them made from seeds. The configured training split is one source of them; without it they are all made.
#   python train.py --config configs/cfg_gcn_structural_any.py --work-dir work_dirs/any --cfg-options prefix=FOLDER
_base_ = './cfg_gcn_structural_glyph.py'

# The weights that come with the package.
pretrained = '{{ fileDirname }}/../src/starfc/pretrained/any'

model = dict(type='gcn_structural_any', kwargs=dict(nhid=48))
kinds = dict(
    first=900,  # kinds that the early first round learns from
    second=900,  # other ones, which the second round learns from; the first round learns from all
    edges=6000,  # of each kind
    members=2,  # scorers of each round, trained apart: their mean logit counts
    steps=6000)  # of each scorer, 4,096 edges each
partition = dict(type='infomap')
validation = dict(_delete_=True, source='none')
