"""Add instances to a clustering and remove instances, without clustering everything again.

:mod:`starfc.incremental.state` has the state of a clustering and computes a step; :mod:`starfc.runs.assign` stores the
state in a run's folder. A step updates, in this order: the kNN lists (:mod:`~starfc.incremental.lists`), the scores of
edges at new instances (:mod:`~starfc.incremental.scores`), the parsed edges and their node intimacy
(:mod:`~starfc.incremental.edges`), the communities, if clusters are communities
(:mod:`~starfc.incremental.communities`), and the clusters (:mod:`~starfc.incremental.clusters`).
"""
