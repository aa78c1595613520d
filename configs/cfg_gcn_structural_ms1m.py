# Structure-aware edge confidence on MS1M.
_base_ = ['./base.py', '../src/starfc/recipes/structural.py']

# The packaged weights were trained on the glyph embeddings. The model sees only which instances are neighbours and how
# similar they are, so it accepts embeddings of any kind.
pretrained = '{{ fileDirname }}/../src/starfc/pretrained/structural'
