# Structure-aware edge confidence for any embedding, trained on many kinds of data (src/starfc/training/kinds.py).
# Most kinds are made from seeds, and some from the training split. Without a training split all are made from seeds.

model = dict(type='gcn_structural_any', kwargs=dict(nhid=48))
structural = dict(
    candidates=40,  # nearest neighbours of a node that become candidate edges; whole lists (knn) are compared
    smoothing=10,  # neighbours in the graph convolution whose results are compared
    rounds=2)  # the second round uses the p of the first round
kinds = dict(
    first=900,  # kinds to train the early first round on
    second=900,  # other kinds to train the second round on; the final first round is trained on all kinds
    edges=6000,  # training edges per kind
    members=2,  # scorers per round, trained separately; their mean logit is used
    steps=6000)  # optimiser steps per scorer, 4,096 edges each
partition = dict(type='infomap')
validation = dict(source='none')
