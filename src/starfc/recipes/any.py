# Structure-aware edge confidence for any embedding, trained on many kinds of data (src/starfc/training/kinds.py).
# Most kinds are made from seeds, and some from the training split. Without a training split all are made from seeds.
# Candidate edges and the remaining keys are those of the structural recipe.
_base_ = './structural.py'

model = dict(type='gcn_structural_any', kwargs=dict(nhid=48))
kinds = dict(
    first=1800,  # kinds to train the early first round on
    second=6600,  # other kinds to train the second round on; the final first round is trained on all kinds
    edges=6000,  # training edges per kind
    members=4,  # scorers per round, trained separately; their mean logit is used
    steps=3000)  # optimiser steps per scorer, 4,096 edges each
partition = dict(type='infomap')
validation = dict(_delete_=True, source='none')
