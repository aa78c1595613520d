# Structure-aware edge confidence on MS1M.
_base_ = ['./base.py', '../src/starfc/recipes/structural.py']

# The weights that come with the package, trained on the glyph embeddings: they see how instances are neighbours, not
# what they look like, so they take embeddings of any kind.
pretrained = '{{ fileDirname }}/../src/starfc/pretrained/structural'
