# The network with several scales (TPAMI 2023), trained with the same schedule as the basic network.
_base_ = './gcn.py'

model = dict(type='hierarchical')

# A step costs about four times as much as a step of the basic method, so subgraphs are smaller. These k are for
# identities of about 50 instances. With 80 to 120 neighbours, as published for MS1M, the graph convolution would
# average over other identities.
cluster_num = 100
sampling = dict(nearest=133)
hierarchical = dict(k_mid=60, scales=[40, 60, 80], selector_precision='bfloat16')
