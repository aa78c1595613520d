# Structure-aware edge confidence for any embedding: trained over many kinds of data (src/starfc/training/kinds.py),
# most of which are made from seeds. The training split is one source of them; without it, all are made from seeds.

model = dict(type='gcn_structural_any', kwargs=dict(nhid=48))
structural = dict(
    candidates=40,  # neighbours of a node that are candidate edges; whole lists (knn) are compared
    smoothing=10,  # neighbours of the graph convolution whose result is compared
    rounds=2)  # the second round sees the first one's probabilities
kinds = dict(
    first=900,  # kinds that the early first round learns from
    second=900,  # other kinds, which the second round learns from; the first round learns from all
    edges=6000,  # edges of each kind
    members=2,  # scorers of each round, trained apart: their mean logit counts
    steps=6000)  # steps of each scorer, 4,096 edges each
partition = dict(type='infomap')
validation = dict(source='none')
