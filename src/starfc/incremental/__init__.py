"""Adding instances to a clustering, and removing them, without clustering everything again.

:mod:`starfc.incremental.state` holds what a step needs and makes a step; :mod:`starfc.runs.assign` keeps it in a
run's folder. A step goes through the kNN lists (:mod:`~starfc.incremental.lists`), the scores of the edges at new
instances (:mod:`~starfc.incremental.scores`), the parsed edges (:mod:`~starfc.incremental.edges`), where clusters are
communities which edges are within one (:mod:`~starfc.incremental.communities`), and the clusters
(:mod:`~starfc.incremental.clusters`).
"""
